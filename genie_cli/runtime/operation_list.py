"""Record a computation as a flat list of operations: no modules, no autograd, little Python between them.

A quarter of a step on small tensors passes between its operations, in modules, autocast and the autograd engine. The
list also shows where each value is read for the last time: its memory is used again while the cache still holds it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

_SAME_VALUES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_END_OF_RECORDING = (torch.ops.aten._local_scalar_dense.default,)
"""Operations that give a value to Python, which may decide anything by it: a recording cannot hold them."""


class Recording(TorchDispatchMode):
    """Records the operations on tensors while it is entered, those of gradients and optimizers included.

    Tensors that are not among the inputs are read and written in place, in each replay too.
    (`make_fx` records the same in ten times the time, most of it for a description of each value.)
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        """Start an empty list of operations with these inputs."""
        super().__init__()
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._nodes: Any = WeakTensorKeyDictionary()
        for i, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input_{i}")
        self._num_found = 0
        self.obstacle: str | None = None
        """The reason that it cannot be replayed, in words; None: it can."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute the operation and record it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _END_OF_RECORDING or torch.Tag.nondeterministic_seeded in func.tags:
            self.obstacle = f"{func} gives other values each time"
        own_args, own_kwargs = tree_map_only(Tensor, self._node, (args, kwargs))
        if func in _SAME_VALUES:
            self._nodes[result] = own_args[0]
            return result
        node = self._graph.call_function(func, own_args, own_kwargs)
        if isinstance(result, Tensor):
            if not func._schema.is_mutable:  # a tensor that is written to keeps its node
                self._nodes[result] = node
        elif isinstance(result, list | tuple):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._nodes[part] = self._graph.call_function(operator.getitem, (node, i))
        return result

    def replay(self) -> Callable[..., None]:
        """The operations as a function of other inputs of the same shapes; the tensors they write are their result.

        Raises:
            ValueError: they cannot be replayed.
        """
        if self.obstacle is not None:
            raise ValueError(self.obstacle)
        self._graph.output(())
        self._graph.eliminate_dead_code(_has_effects)
        run = fx.GraphModule(self._root, self._graph).forward

        def replay(*inputs: Tensor) -> None:
            with torch.inference_mode():  # a tenth less time between operations than without gradients
                run(*inputs)

        return replay

    def _node(self, tensor: Tensor) -> fx.Node:
        node: fx.Node | None = self._nodes.get(tensor)
        if node is None:
            name = f"found_{self._num_found}"
            self._num_found += 1
            self._root.register_buffer(name, tensor.detach())
            node = self._nodes[tensor] = self._graph.get_attr(name)
        return node


def _has_effects(node: fx.Node) -> bool:
    """True if a node does more than return a value."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and bool(schema.is_mutable))
