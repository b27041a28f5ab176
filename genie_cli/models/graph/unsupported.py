"""Name the operation of a graph that an arithmetic lacks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import tree_map_only

from genie_cli.runtime.retry import may_lack_arithmetic


def unsupported_operation(
    graph_module: fx.GraphModule,
    inputs: Sequence[Tensor],
    arithmetic: AbstractContextManager[Any],
    backward: bool = True,
) -> str | None:
    """The first operation that fails, in words such as ``avg_pool3d of 'lrn'``.

    Each operation is run by itself: a failure belongs to it and to nothing behind it.

    Args:
        graph_module: from one value or several to one or several.
        inputs: the first ones, in the dtype that the graph is given.
        arithmetic: entered around the run, such as an autocast.
        backward: compute each operation's gradient too.

    Returns:
        None where all operations can be computed one by one.
    """
    search = _Search(graph_module)
    with arithmetic, torch.set_grad_enabled(backward):
        try:
            search.run(*inputs)
        except Exception as error:  # what cannot be searched through has no name
            if search.found is None and not may_lack_arithmetic(error):
                raise
    return search.found


class _Search(fx.Interpreter):
    """Runs a graph node by node up to the first that fails, with gradients where they are enabled."""

    found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Return the node's value without its past; its gradient was computed where gradients are enabled."""
        try:
            value = super().run_node(n)
            _pass_back(value)
        except Exception:
            self.found = _words(n, self.module)
            raise
        return tree_map_only(Tensor, Tensor.detach, value)

    def map_nodes_to_values(self, args: Argument, n: fx.Node) -> Argument:
        """The values of the nodes in `args`; all but stored tensors need a gradient, and may be written to."""

        def value_of(node: fx.Node) -> Any:
            value = self.env[node]
            return value if node.op == "get_attr" else tree_map_only(Tensor, _as_input, value)

        return map_arg(args, value_of)


def _as_input(tensor: Tensor) -> Tensor:
    if not (tensor.is_floating_point() and torch.is_grad_enabled()):
        return tensor
    return tensor.detach().requires_grad_().clone()


def _pass_back(value: Any) -> None:
    outputs = [one for one in (value if isinstance(value, list | tuple) else (value,)) if isinstance(one, Tensor)]
    roots = [one for one in outputs if one.requires_grad]
    if roots:
        torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])


def _words(node: fx.Node, module: nn.Module) -> str:
    """The operation, and the module that it belongs to where it is known."""
    operation = str(node.target)
    if node.op == "call_module":
        operation = type(module.get_submodule(operation)).__name__
    elif hasattr(node.target, "overloadpacket"):
        operation = str(node.target.overloadpacket).rpartition(".")[2]
    modules = node.meta.get("modules") or ()
    return f"{operation} of '{modules[-1]}'" if modules else operation
