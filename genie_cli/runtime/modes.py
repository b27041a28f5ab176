"""PyTorch's modes in a process of its own, whatever modes the caller of the library has entered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def modes_of_commands() -> Iterator[None]:
    """Compute as in a command's own process; the caller's modes hold again afterwards.

    Gradients are recorded, tensors can be changed, no operation is cast on its own, and new tensors are float32 on the
    CPU. A function that it decorates computes so.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        modes.enter_context(_outside_autocast())
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """Leave all regions of autocast.

    To disable it is not enough. The outermost region alone forgets cast weights at its end, and inside of the caller's
    no region of a stage would be that: its later steps would compute with the weights of its first.
    """
    devices = [device for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    keeps_casts = torch.is_autocast_cache_enabled()
    depth = torch.autocast_increment_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(True)
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in devices:
            torch.set_autocast_enabled(device, True)
        torch.set_autocast_cache_enabled(keeps_casts)
        torch.clear_autocast_cache()
        for _ in range(depth - 1):
            torch.autocast_increment_nesting()
