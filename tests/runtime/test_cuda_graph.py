"""Steps as CUDA graphs: a few run, one is recorded, the others are replayed."""

from __future__ import annotations

import pytest
import torch

from genie_cli.runtime.cuda_graph import WARMUP_STEPS, GraphedStep


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recording_continues_what_the_warm_up_began():
    device = torch.device("cuda")
    total, amount = torch.zeros((), device=device), torch.ones((), device=device)
    step = GraphedStep(lambda: total.add_(amount) and None, device)
    for _ in range(WARMUP_STEPS + 5):
        step()
        amount.mul_(2)
    assert float(total) == 2 ** (WARMUP_STEPS + 5) - 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recording_draws_new_random_numbers():
    device = torch.device("cuda")
    generator, drawn = torch.Generator(device).manual_seed(0), torch.zeros(8, device=device)
    step = GraphedStep(lambda: drawn.uniform_(generator=generator) and None, device, (generator,))
    seen = []
    for _ in range(WARMUP_STEPS + 3):
        step()
        seen.append(drawn.cpu().clone())
    assert len({tuple(each.tolist()) for each in seen}) == len(seen)
