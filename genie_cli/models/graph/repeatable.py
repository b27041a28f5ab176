"""Operations whose gradient does not repeat on CUDA, found before any work."""

from __future__ import annotations

import copy

import torch

from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.pooling import with_repeatable_pooling
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.settings import nondeterminism_explained


def check_repeatable(teacher: Teacher, device: torch.device) -> None:
    """Pass two black images and their gradient through a teacher, where PyTorch refuses what does not repeat.

    Nothing is done where it does not refuse: on a CPU, or with ``--no-deterministic``.

    Raises:
        UsageError: the network holds an operation without a deterministic CUDA kernel.
    """
    if device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        return
    spec = teacher.input
    images = torch.zeros(2, *spec.shape, device=device, requires_grad=True)
    with nondeterminism_explained():
        network = with_repeatable_pooling(move(copy.deepcopy(teacher.graph), device))
        outputs = network(images)
        torch.stack([output.float().sum() for output in as_tuple(outputs)]).sum().backward()
