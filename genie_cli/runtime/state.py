"""The state of optimizers as plain tensors, so that a run can go on where it was."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of every parameter, numbered in the order of the groups; copies on the CPU."""
    return {
        f"{i}.{key}": value.detach().cpu().clone()
        for i, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put the state back; rates and groups stay those of `optimizer`."""
    parameters = _parameters(optimizer)
    for name, value in state.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if key == "step":  # on the host, unless the steps are recorded
            on_device = optimizer.defaults.get("capturable", False)
            optimizer.state[parameter][key] = value.to(parameter.device if on_device else "cpu", copy=True)
        else:  # fused kernels take moments in the memory layout of their parameter
            optimizer.state[parameter][key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under names that start with `prefix` and a dot."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def without_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names start with `prefix` and a dot, under the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
