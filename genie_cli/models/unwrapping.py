"""The network inside of wrappers that compute what it computes: data parallel, compiled and averaged networks."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, whatever stands around it.

    Data parallelism of parts is switched off in place: their forward pass is that of the part.
    """
    while (inner := _inside(network)) is not None:
        network = inner
    for module in network.modules():
        if isinstance(module, nn.DataParallel):
            module.device_ids = []
    return network


def _inside(network: nn.Module) -> nn.Module | None:
    """The module that a wrapper holds; None of one that is no wrapper."""
    if isinstance(network, nn.DataParallel | DistributedDataParallel | AveragedModel):
        return network.module
    compiled = getattr(network, "_orig_mod", None)  # torch.compile's class is not public
    return compiled if isinstance(compiled, nn.Module) else None
