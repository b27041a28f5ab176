"""Kinds of tensors: a network's weights are dense, hold values, and are not given as integers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genie_cli.errors import InputError


def check_kinds(network: nn.Module, source: str) -> None:
    """Refuse a network with tensors that cannot be computed with, copied or hashed.

    Raises:
        InputError: a tensor of a lazy layer, on the device meta, sparse or quantized; the message names it.
    """
    for name, tensor in _named_tensors(network):
        if is_lazy(tensor):
            raise InputError(
                f"{source} has a lazy layer, whose '{name}' has no shape yet: run the network once on a batch of "
                "images before it is given, in the factory where one makes it."
            )
        if (problem := _problem(tensor)) is not None:
            raise InputError(f"{source} cannot be used: '{name}' {problem}.")


def kind_problem(found: Tensor, wanted: Tensor) -> str | None:
    """Words for a file's tensor that cannot become the network's tensor `wanted`; None: it can.

    Floats of any width become each other. Integers and truth values are no weights: they are the codes of a quantized
    network, or stand for something else.
    """
    problem = _problem(found)
    if problem is not None or not wanted.is_floating_point():
        return problem
    own, other = _named(wanted.dtype), _named(found.dtype)
    if found.is_complex():
        return f"is {other} where the network has {own}: save its real part"
    if not found.is_floating_point():
        return f"is {other} where the network has {own}: dequantize the weights and save them as floats"
    return None


def _problem(tensor: Tensor) -> str | None:
    """Words for a tensor that no network computes with, and the way around it."""
    if tensor.device.type == "meta":
        return "is on the device meta, without values: load the weights before they are saved or given"
    if tensor.is_quantized:
        return f"is a quantized tensor ({_named(tensor.dtype)}): use its dequantize()"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is not dense ({_named(tensor.layout)}): use its to_dense()"
    try:
        torch.empty(1, dtype=tensor.dtype).to(torch.complex64 if tensor.is_complex() else torch.float32)
    except (NotImplementedError, RuntimeError):  # packed formats, several values in one element
        return f"is {_named(tensor.dtype)}, which PyTorch does not convert: dequantize the weights"
    return None


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _named(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
