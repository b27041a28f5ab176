"""Networks that are trained with more branches than they need: the form that they are deployed in.

A block of RepVGG (X. Ding et al., CVPR 2021) or MobileOne trains parallel convolutions with a batch norm each, and
merges them into one convolution afterwards. The network's own modules know how: they have a method of one of a few
usual names. Its result is compared with the network as it was trained.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.graph.equivalence import distance_between
from genie_cli.models.preparation import prepared

METHODS = ("reparameterize", "switch_to_deploy", "merge_kernel", "fuse", "fuse_convs")
"""Names of the methods without arguments that merge a module, in place or as a new module; the first one counts."""
BOUND = 1e-5
"""Largest distance between the answers of both forms, as a share of their size."""


class NothingToMergeError(InputError):
    """No module of a network can be merged."""


@dataclass(frozen=True)
class Reparameterized:
    """A network in the form that it is deployed in.

    Attributes:
        network: a new module; the given one is left as it was.
        source_sha256: hash of the network as it was trained.
        note: what was done, for the user.
    """

    network: nn.Module
    source_sha256: str
    note: str


def reparameterized(name: str, network: nn.Module, spec: InputSpec) -> Reparameterized:
    """Merge all modules of a network that have a method for it.

    Some libraries merge a module before the ones inside it, whose methods it calls itself, and some after them: the
    order that keeps the network's answers is taken.

    Args:
        name: the user's name for the network.
        network: it, with its weights.
        spec: the images that it takes.

    Raises:
        NothingToMergeError: no module has such a method, or none changes anything.
        InputError: the merged network computes something else, or a method fails.
    """
    source, _ = prepared(network)
    source_sha256 = state_sha256(source)
    _check_runs(name, source, spec)
    problems = []
    for merge in (_outermost_first, _innermost_first):
        merged, calls = _copied(name, network), Counter[str]()
        try:
            with torch.no_grad():
                merged = merge(merged, calls, {})
        except Exception as error:  # the user's own code may raise anything
            problems.append(f"{_listed(calls)} failed: {type(error).__name__}: {error}")
            continue
        if not calls:
            raise NothingToMergeError(
                f"No module of '{name}' can be merged: none has a method {', '.join(f'{m}()' for m in METHODS)} that "
                "takes no arguments. Leave out --reparameterize, or name a factory of the merged network."
            )
        final, _ = prepared(merged)
        if state_sha256(final) == source_sha256:
            raise NothingToMergeError(
                f"{_listed(calls)} changed nothing in '{name}': it is merged already. Leave out --reparameterize."
            )
        try:
            distance = distance_between(final, source, spec)
        except Exception as error:  # of a network that was put together wrongly
            problems.append(f"it fails then: {type(error).__name__}: {error}")
            continue
        if distance <= BOUND:
            note = f"reparameterized by {_listed(calls)}: its output moves by {distance:.1e} of its size."
            return Reparameterized(merged, source_sha256, note)
        problems.append(f"its output differs by {distance:.2g} of its size after {_listed(calls)}")
    raise InputError(
        f"'{name}' does not compute the same once it is reparameterized: {problems[0]}. Leave out --reparameterize, or "
        "name a factory of the merged network."
    )


_Calls = Counter[str]
_Done = dict[nn.Module, nn.Module]


def _outermost_first(module: nn.Module, calls: _Calls, done: _Done) -> nn.Module:
    """Merge a module, then what it holds; a module in two places is merged once."""
    if module not in done:
        done[module] = merged = _merged(module, calls)
        done[merged] = merged
        _replace_children(merged, lambda child: _outermost_first(child, calls, done))
    return done[module]


def _innermost_first(module: nn.Module, calls: _Calls, done: _Done) -> nn.Module:
    """Merge what a module holds, then the module."""
    if module not in done:
        _replace_children(module, lambda child: _innermost_first(child, calls, done))
        done[module] = merged = _merged(module, calls)
        done[merged] = merged
    return done[module]


def _replace_children(module: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> None:
    for name, child in list(module._modules.items()):  # named_children() leaves a second name of a module out
        if child is not None:
            module._modules[name] = replacement(child)


def _merged(module: nn.Module, calls: _Calls) -> nn.Module:
    """The module itself, or what its method returns in its place."""
    method = _method(module)
    if method is None:
        return module
    calls[f"{type(module).__name__}.{method}()"] += 1
    result = getattr(module, method)()
    return result.eval() if isinstance(result, nn.Module) else module


def _method(module: nn.Module) -> str | None:
    """The first of `METHODS` that the module's class has, if it can be called without arguments."""
    for name in METHODS:
        function = getattr(type(module), name, None)  # an attribute of the module may be a layer called `fuse`
        if inspect.isfunction(function):
            _, *rest = inspect.signature(function).parameters.values()
            if all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in rest):
                return name
    return None


def _check_runs(name: str, source: nn.Module, spec: InputSpec) -> None:
    """Refuse a network that fails as it was trained, so that no merge is blamed for it."""
    try:
        distance_between(source, source, spec)
    except InputError:
        raise
    except Exception as error:  # the user's own code may raise anything
        shape = "x".join(map(str, spec.shape))
        raise InputError(f"'{name}' fails on images of {shape}: {type(error).__name__}: {error}") from error


def _copied(name: str, network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network).eval()
    except Exception as error:  # a file, a lock: modules may hold anything
        raise InputError(f"'{name}' cannot be copied to be reparameterized: {type(error).__name__}: {error}") from error


def _listed(calls: _Calls) -> str:
    """``RepBlock.switch_to_deploy() (22 times)``."""
    return ", ".join(f"{call} ({count} times)" if count > 1 else call for call, count in calls.items())
