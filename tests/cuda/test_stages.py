"""Both stages and all commands on a GPU: results repeat, and begin where those of a CPU do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from genie_cli.models import zoo
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, Event, silent
from tests.cuda.runs import as_bytes, network, quantization, steps_recorded, synthesis
from tests.support.pretended_gpu import CPU

Stage = Callable[..., dict[str, Tensor]]
BOTH_STAGES = pytest.mark.parametrize("stage", [synthesis, quantization])
FOR_A_REAL_GPU = pytest.mark.slow
"""On a pretended one they tell little that `test_pretended.py` does not, but that they will run."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@FOR_A_REAL_GPU
@BOTH_STAGES
@DTYPES
def test_a_run_repeats_bit_for_bit(stage: Stage, dtype: torch.dtype, device: torch.device):
    context = RunContext.alone(device, dtype, silent)
    first, again = (stage(context, "digits", num_steps=12) for _ in range(2))
    assert {tensor.device for tensor in first.values()} == {CPU}
    assert as_bytes(first) == as_bytes(again)


@FOR_A_REAL_GPU
@BOTH_STAGES
@DTYPES
def test_recorded_steps_give_the_bits_of_steps_that_are_not(stage: Stage, dtype: torch.dtype, device: torch.device):
    context, made = RunContext.alone(device, dtype, silent), []
    for is_recorded in (True, False):
        with steps_recorded(is_recorded):
            made.append(as_bytes(stage(context, "small", num_steps=20)))
    assert made[0] == made[1]


@FOR_A_REAL_GPU
def test_batches_side_by_side_are_those_made_alone(device: torch.device):
    """Recordings that replay at once share nothing that they write to."""
    context = RunContext.alone(device, torch.float32, silent)
    together, alone = (
        as_bytes(synthesis(context, "digits", num_images=16, num_steps=12, batches_at_once=at_once))
        for at_once in (4, 1)
    )
    assert together == alone


def test_a_synthesis_begins_with_the_loss_of_the_cpu(device: torch.device):
    on_cpu, on_gpu = (
        synthesis(RunContext.alone(place, torch.float32, silent), "digits", num_images=16, batch_size=16, num_steps=1)
        for place in (CPU, device)
    )
    torch.testing.assert_close(on_gpu["log"], on_cpu["log"], rtol=1e-3, atol=0)
    torch.testing.assert_close(on_gpu["images"], on_cpu["images"], rtol=0, atol=1e-2)


def test_a_reconstruction_begins_with_the_loss_of_the_cpu(device: torch.device):
    losses: dict[torch.device, list[float]] = {CPU: [], device: []}
    for place, own in losses.items():

        def report(event: Event, own: list[float] = own) -> None:
            if isinstance(event, Advanced) and "loss" in event.values:
                own.append(event.values["loss"])

        quantization(RunContext.alone(place, torch.float32, report), "digits", num_steps=1, drop_prob=0.0)
    assert losses[device] == pytest.approx(losses[CPU], rel=1e-2) and len(losses[CPU]) > 3
    assert losses[device][0] == pytest.approx(losses[CPU][0], rel=1e-3)


def test_all_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: torch.device
):
    from genie_cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "load_teacher", lambda config, recorded=None: copy.deepcopy(network("digits")))

    def genie(*arguments: str) -> None:
        with pytest.raises(SystemExit) as end:
            app([*arguments, "--model", "digits_resnet", "--device", "cuda"], prog_name="genie")
        assert end.value.code == 0, capsys.readouterr().err

    few = ("--num-steps", "8", "--batch-size", "4")
    genie("synthesize", "--n", "4", *few)
    genie("quantize", *few, "--patience", "4", "--set", "activation_range=minmax", "--set", "weight_range=minmax")
    genie("quantize", "--preset", "dfq", "--out", "dfq")
    genie("synthesize", "--n", "4", *few, "--preset", "zaq", "--student", "dfq", "--out", "zaq.safetensors")
    genie("evaluate", "--data", "digits", "--num-images", "40", "--quantized", "quantized", "--out", "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_images"] == 40 and metrics["agreement"] > 50
    about: Any = safe_open(tmp_path / "images.safetensors", framework="pt").metadata()
    assert torch.cuda.get_device_name(device) in about["genie"]
