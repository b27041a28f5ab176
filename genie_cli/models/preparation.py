"""A user's network made ready for capture: float32, and with the batch norms that it wrote in another way."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_PARTS = ("weight", "bias", "running_mean", "running_var")
_EPS = 1e-5
"""That of torchvision's frozen batch norms, where the module does not name one."""


def prepared(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network in evaluation mode, float32, and notes on what was changed.

    A module that is a batch norm in all but its class (`FrozenBatchNorm2d` of torchvision and detectron2 and their
    like) becomes one. The caller's module is copied where that is needed.
    """
    notes = cast_notes(network)
    if notes:
        network = copy.deepcopy(network).float()
    frozen = [name for name, module in network.named_modules() if _is_frozen_batch_norm(module)]
    if frozen:
        network = copy.deepcopy(network)
        for name in frozen:
            network.set_submodule(name, _as_batch_norm(network.get_submodule(name)))
    return network.eval(), notes


def cast_notes(network: nn.Module) -> list[str]:
    """A note on the network's floats of another type than float32; empty where it has none."""
    own = {tensor.dtype for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own - {torch.float32}))
    return [f"the network has weights in {names}: cast to float32."] if names else []


def _is_frozen_batch_norm(module: nn.Module) -> bool:
    """True for a module that holds the four vectors of a batch norm as buffers, and nothing else."""
    if isinstance(module, nn.modules.batchnorm._NormBase) or next(module.children(), None) is not None:
        return False
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    tensors.pop("num_batches_tracked", None)
    return set(tensors) == set(_PARTS) and len({tensor.shape for tensor in tensors.values()}) == 1


def _as_batch_norm(module: nn.Module) -> nn.Module:
    weight, bias, mean, var = (getattr(module, part) for part in _PARTS)
    assert isinstance(weight, Tensor)
    norm = _BatchNorm(weight.numel(), eps=float(getattr(module, "eps", _EPS)))
    with torch.no_grad():
        for own, value in zip(
            (norm.weight, norm.bias, norm.running_mean, norm.running_var), (weight, bias, mean, var), strict=True
        ):
            assert isinstance(own, Tensor)
            own.copy_(value.flatten())
    return norm.eval()


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over inputs of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass
