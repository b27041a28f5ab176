"""Copies of a network that has run: without the tensors that its forward pass has kept for the next call."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from genie_cli.errors import InputError
from genie_cli.models.tensor_kinds import check_kinds

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def copies(network: nn.Module) -> Iterator[nn.Module]:
    """A copy of the network on the CPU; then, where its modules keep tensors in plain attributes, copies without them.

    Such a tensor may be a part of the network, or the result of an earlier call, in a dictionary or as an attribute
    that was None or was not there before. The copies go from the first of these cases to the last.

    Raises:
        InputError: the network cannot be copied, or has tensors that cannot be used, see `check_kinds`.
    """
    check_kinds(network, f"Network '{type(network).__name__}'")
    yield _copied(network)
    kept = [value for module in network.modules() for value in _plain(module).values() if _holds_tensors(value)]
    if not kept:
        return
    for forget in (_forget_in_containers, _set_to_none, _delete):
        emptied = _copied(network)
        for module in emptied.modules():
            for name, value in _plain(module).items():
                if _holds_tensors(value):
                    forget(module, name, value)
        yield emptied


def writable(network: nn.Module) -> nn.Module:
    """The network itself; a copy of one that was made under `torch.inference_mode`, whose tensors take no weights.

    Raises:
        InputError: such a network cannot be copied.
    """
    if any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers())):
        return _copied(network)
    return network


def _copied(network: nn.Module) -> nn.Module:
    detached: dict[int, Any] = {}
    for module in network.modules():
        for value in _plain(module).values():
            detached.update({id(tensor): tensor.detach().clone() for tensor in _tensors(value) if not tensor.is_leaf})
    try:
        return copy.deepcopy(network, detached).cpu()  # which takes the detached ones for done
    except Exception as error:  # a file, a lock: modules may hold anything
        raise InputError(
            f"The network cannot be copied ({type(error).__name__}: {error}): name it as FILE.py:FACTORY instead."
        ) from error


def _plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are neither parameters, buffers nor modules."""
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)


def _holds_tensors(value: Any) -> bool:
    return next(_tensors(value), None) is not None


def _forget_in_containers(module: nn.Module, name: str, value: Any) -> None:
    if isinstance(value, dict):
        setattr(module, name, {key: item for key, item in value.items() if not _holds_tensors(item)})
    elif isinstance(value, list | set):
        setattr(module, name, type(value)(item for item in value if not _holds_tensors(item)))


def _set_to_none(module: nn.Module, name: str, value: Any) -> None:
    if isinstance(value, Tensor | tuple):
        setattr(module, name, None)
    _forget_in_containers(module, name, value)


def _delete(module: nn.Module, name: str, value: Any) -> None:
    if isinstance(value, Tensor | tuple):
        delattr(module, name)
    _forget_in_containers(module, name, value)
