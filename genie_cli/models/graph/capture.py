"""Capture a network as one functional graph in a normal form that all stages rely on.

The normal form of a captured ``GraphModule``:

- one placeholder, an image batch ``[B, C, H, W]`` with any B;
- its outputs are tensors with a row per image; what the network returns around them is in its ``meta`` (`outputs.py`);
- no in-place operation, no dropout; the batch size is read only where a tensor of that size is made;
- batch norms are ``aten.batch_norm`` nodes in evaluation mode (functional ones included);
- each weight layer (`operations.py`) has a weight with its output channels first;
- weight layers and batch norms read parameters of their own: what another node reads too is copied, and weights
  computed from parameters are evaluated once;
- constants are real: a complex one is stored as pairs of numbers;
- ``node.meta["val"]`` holds the shape of the value and ``node.meta["modules"]`` the paths of the
  modules around the node, outermost first.
"""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.config import InputSpec
from genie_cli.errors import DeviceError
from genie_cli.models.evaluation_mode import EvaluationMode
from genie_cli.models.graph.capture_failure import capture_failure
from genie_cli.models.graph.exporting import exported_graph
from genie_cli.models.graph.operations import operation_of
from genie_cli.models.graph.outputs import returned_keys
from genie_cli.models.graph.rows_first import rows_first
from genie_cli.models.graph.settle_outputs import settle_outputs
from genie_cli.models.graph.tensors import delete_tensor, get_tensor, named_tensors, set_tensor
from genie_cli.runtime.shortage import is_out_of_memory

aten = torch.ops.aten
_TRACE_BATCH = 2
_NO_MODULE = "_empty_nn_module_stack"
"""Beginning of the exporter's path of a node outside all modules."""


def capture(model: nn.Module, spec: InputSpec) -> fx.GraphModule:
    """Export `model` (put into evaluation mode) and bring its graph into the normal form.

    Raises:
        InputError: the network cannot be exported, or no tensor that it returns has a row for each image.
        DeviceError: no memory for it.
    """
    model = model.eval()
    example = torch.zeros(_TRACE_BATCH, *spec.shape)
    try:
        with _quiet(), EvaluationMode():
            traced, structure = exported_graph(model, example)
    except Exception as error:  # torch.export raises many types; each means the same to the user
        if is_out_of_memory(error):
            raise DeviceError("Memory runs out while the network is captured: it needs more than there is.") from None
        raise capture_failure(model, example, error) from error
    graph_module, returned = _copy_plain(traced)
    graph = graph_module.graph
    computed = _evaluate_parameter_expressions(graph_module)
    for node in list(graph.nodes):
        _normalize(graph, node)
    _drop_unread(graph_module)
    _bring_rows_first(graph_module, computed)
    _own_parameters(graph_module, computed)
    _store_as_real(graph_module)
    settle_outputs(graph_module, returned, structure)
    _drop_unread(graph_module)
    graph.lint()
    graph_module.recompile()
    for parameter in graph_module.parameters():
        parameter.requires_grad_(False)
    return graph_module


def _drop_unread(graph_module: fx.GraphModule) -> None:
    """Remove nodes without readers, and tensors that no node reads."""
    graph_module.graph.eliminate_dead_code()
    read = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"} | set(
        returned_keys(graph_module)
    )
    for key in named_tensors(graph_module):
        if key not in read:
            delete_tensor(graph_module, key)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own log lines, prints and deprecation warnings off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _copy_plain(traced: fx.GraphModule) -> tuple[fx.GraphModule, list[Any]]:
    """The traced graph without the exporter's calling convention: one tensor in, a tuple of nodes out.

    Returns:
        The graph, and the leaves of what the network returns: nodes of `traced` and plain values.
    """
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    assert len(placeholders) == 1, f"a network of one image batch was traced with {len(placeholders)} inputs"
    leaves = list(next(iter(reversed(traced.graph.nodes))).args[0])
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    root = nn.Module()
    for node in traced.graph.nodes:
        if node.op == "output":
            graph.output(tuple(copies[leaf] for leaf in leaves if isinstance(leaf, fx.Node)))
            continue
        if node.op == "get_attr":
            set_tensor(root, node.target, get_tensor(traced, node.target))
        if node.op == "call_module" or (node.op == "call_function" and "assert" in str(node.target)):
            continue  # guards on sizes: capture allows any batch
        if node.target is aten.copy_.default and not node.users:
            continue  # the end of an in-place change of the images or of a buffer: no part of the output
        copies[node] = graph.node_copy(node, copies.__getitem__)
        stack = node.meta.get("nn_module_stack") or {}
        copies[node].meta["modules"] = tuple(p for p, _ in stack.values() if p and not p.startswith(_NO_MODULE))
    return fx.GraphModule(root, graph), leaves


def _evaluate_parameter_expressions(graph_module: fx.GraphModule) -> set[str]:
    """Evaluate once the values that depend on parameters alone (weight norm, standardised weights) or on nothing.

    Returns:
        The keys of the values.
    """
    known: dict[fx.Node, Any] = {}
    keys: set[str] = set()
    with torch.no_grad():
        for node in list(graph_module.graph.nodes):
            if node.op == "get_attr":
                known[node] = get_tensor(graph_module, node.target)
            if node.op != "call_function" or any(arg not in known for arg in node.all_input_nodes):
                continue
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
            if isinstance(known[node], Tensor):
                key = f"{'.'.join((*node.meta['modules'][-1:], node.name))}"
                set_tensor(graph_module, key, known[node])
                keys.add(key)
                with graph_module.graph.inserting_before(node):
                    constant = graph_module.graph.get_attr(key)
                constant.meta = dict(node.meta)
                node.replace_all_uses_with(constant)
                known[constant] = known[node]
    return keys


def _normalize(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrite one node into the normal form."""
    if node.op != "call_function":
        return
    if node.target is aten._native_batch_norm_legit_no_training.default:
        source, weight, bias, mean, var, _, eps = node.args
        with graph.inserting_before(node):
            plain = graph.call_function(
                aten.batch_norm.default, (source, weight, bias, mean, var, False, 0.0, eps, False)
            )
        plain.meta = {**node.meta, "val": node.meta["val"][0]}
        for user in list(node.users):
            assert user.target is operator.getitem and user.args[1] == 0, "statistics of a batch norm are read"
            user.replace_all_uses_with(plain)
            graph.erase_node(user)
        graph.erase_node(node)
    elif node.target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        _free_batch_size(node)
        node.target = aten.reshape.default  # a view of a channels-last tensor may need a copy
    elif node.target is aten.expand.default:
        _free_batch_size(node)
    elif node.target is aten.squeeze.default:  # which would take the batch of a single image away too
        source = node.args[0]
        assert isinstance(source, fx.Node)
        sides = enumerate(source.meta["val"].shape)
        node.target, node.args = (
            aten.squeeze.dims,
            (source, [dim for dim, side in sides if isinstance(side, int) and side == 1]),
        )


def _free_batch_size(node: fx.Node) -> None:
    """Write a traced batch size in a shape as -1, so that no node of the graph reads a size."""
    source, shape = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(shape, list | tuple)
    if not any(isinstance(size, fx.Node) for size in shape):
        return
    result = node.meta["val"].shape
    if node.target is aten.expand.default:  # -1 keeps the source's size, which is this batch size too
        value = source.meta.get("val")
        before = tuple(value.shape) if isinstance(value, Tensor) else ()
        before = (0,) * (len(result) - len(before)) + before
        sizes = [-1 if not isinstance(old, int) else size for size, old in zip(shape, before, strict=True)]
    else:  # -1 is inferred where every other size is known
        sizes = [size if isinstance(size, int) else -1 for size in result]
        if sizes.count(-1) > 1:
            return
    node.args = (source, sizes, *node.args[2:])


def _bring_rows_first(graph_module: fx.GraphModule, computed: set[str]) -> None:
    """Rewrite the operations whose weight does not have its output channels first."""
    graph = graph_module.graph
    weights = {n: get_tensor(graph_module, str(n.target)) for n in graph.nodes if n.op == "get_attr"}
    for node in list(graph.nodes):
        found = rows_first(node, weights)
        if found is None:
            continue
        old, new = found
        key = str(old.target)
        if len(old.users) > 1:
            key = _free_key(key, set(named_tensors(graph_module)))
        set_tensor(graph_module, key, new.rows)
        is_bias = isinstance(new.bias, fx.Node) and new.bias in weights and weights[new.bias].dim() == 1
        as_argument = is_bias and new.target is aten.linear.default
        with graph.inserting_before(node):
            rows = graph.get_attr(key)
            rest = (*new.rest, new.bias) if as_argument else new.rest
            result = graph.call_function(new.target, (new.source, rows, *rest))
            if new.bias is not None and not as_argument:
                product = result
                product.meta = dict(node.meta)
                result = graph.call_function(aten.add.Tensor, (product, new.bias))
        rows.meta, result.meta = dict(old.meta), dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        if not old.users:
            graph.erase_node(old)
        weights[rows] = new.rows


def _own_parameters(graph_module: fx.GraphModule, computed: set[str]) -> None:
    """Give each weight layer and batch norm parameters of its own, copying those that another node reads too.

    The first weight layer keeps the name. Weights in `computed` are named after their layer, as if they were its
    parameters.
    """
    graph = graph_module.graph
    taken: set[str] = set()
    owned: set[fx.Node] = set()
    for node in list(graph.nodes):
        operation = operation_of(node)
        if operation is not None:
            leaves = {operation.weight: "weight"}
            if operation.bias is not None:
                leaves[operation.bias] = "bias"
        elif node.target is aten.batch_norm.default:
            leaves = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}
        else:
            continue
        args = list(node.args)
        for index, leaf in leaves.items():
            attribute = args[index] if index < len(args) else None
            if not isinstance(attribute, fx.Node) or attribute.op != "get_attr":
                continue
            key = str(attribute.target)
            if key in computed and operation is not None:
                key = ".".join((*node.meta["modules"][-1:], leaf))
                taken |= {key} & set(named_tensors(graph_module))
            if key in taken:
                key = _free_key(key, taken)
            if key != attribute.target:
                set_tensor(graph_module, key, get_tensor(graph_module, str(attribute.target)).clone())
            taken.add(key)
            with graph.inserting_before(node):
                own = graph.get_attr(key)
            own.meta = dict(attribute.meta)
            owned.add(own)
            args[index] = own
        node.args = tuple(args)
    for node in list(graph.nodes):
        if node.op == "get_attr" and node not in owned and node.users and str(node.target) in taken:
            key = _free_key(str(node.target), taken | set(named_tensors(graph_module)))
            set_tensor(graph_module, key, get_tensor(graph_module, str(node.target)).clone())
            node.target = key


def _free_key(key: str, taken: set[str]) -> str:
    """A name beside `key` that is not taken: ``conv.reuse1.weight`` for ``conv.weight``."""
    owner, _, leaf = key.rpartition(".")
    count = 1
    while (free := ".".join(filter(None, (owner, f"reuse{count}", leaf)))) in taken:
        count += 1
    return free


def _store_as_real(graph_module: fx.GraphModule) -> None:
    """Keep complex constants as pairs of real numbers, which files and other arithmetic can hold."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        value = get_tensor(graph_module, str(node.target))
        if not value.is_complex():
            continue
        if value.numel():
            set_tensor(graph_module, str(node.target), torch.view_as_real(value.resolve_conj()).contiguous())
        first = next((user for user in graph.nodes if user in node.users), None)
        if first is None:
            continue
        with graph.inserting_before(first):  # behind the images, which are the first of the nodes that compute
            joined = graph.call_function(aten.view_as_complex.default, (node,))
        joined.meta = dict(node.meta)
        node.replace_all_uses_with(joined, delete_user_cb=lambda user, own=joined: user is not own)
