"""The tensors that an integer runtime keeps as integers, for protocol ``integer``.

An integer kernel reads and writes codes: a weight layer, an addition, subtraction or product of two activations, a
concatenation, an averaging pooling, an interpolating resize. Each tensor that one reads or writes has a quantizer, with
these exceptions:

- A clip (ReLU, ReLU6) that alone reads a kernel's result is a part of that kernel: the tensor behind it counts.
- What moves values or takes the largest of several (max pooling, nearest resize, reshape) keeps the grid of its input.
- Any other function (SiLU, sigmoid, softmax, an affine map) is computed in float, a float island: what it reads of a
  kernel and what a kernel reads of it are quantized, what one island hands to the next is not.

The network's input and outputs are quantized too, but for an output that a linear layer writes: its integer kernel
gives its sums as floats. Class scores of 8 bits would often be equal.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.integer_operations import gives_floats, is_arithmetic, is_clip, keeps_grid
from genie_cli.models.graph.layers import weight_layers
from genie_cli.student.outputs import computed_from_images


def integer_tensors(folded: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values are quantized, in data-flow order."""
    activations = computed_from_images(folded)
    kernels = integer_kernels(folded)
    return [
        node
        for node in data_nodes(folded)
        if node in activations and _is_float_tensor(node) and not keeps_grid(node) and _is_stored(node, kernels)
    ]


def integer_kernels(folded: fx.GraphModule) -> set[fx.Node]:
    """The nodes that integer kernels compute: weight layers, arithmetic of activations, and clips of their results."""
    activations = computed_from_images(folded)
    kernels = {layer.node for layer in weight_layers(folded)}
    for node in data_nodes(folded):
        if is_arithmetic(node, activations) or (is_clip(node) and _is_part_of(node, kernels)):
            kernels.add(node)
    return kernels


def _is_part_of(clip: fx.Node, kernels: set[fx.Node]) -> bool:
    (source,) = clip.all_input_nodes
    return source in kernels and len(source.users) == 1


def _is_stored(node: fx.Node, kernels: set[fx.Node]) -> bool:
    """True if a node's value lies between two kernels, or between one and an end of the network or a float island."""
    if node.op == "placeholder":
        return True
    if node in kernels:
        if gives_floats(node) and all(reader.op == "output" for reader in _readers(node)):
            return False
        (reader, *others) = node.users
        return bool(others) or not (is_clip(reader) and reader in kernels)
    return any(reader in kernels or reader.op == "output" for reader in _readers(node))


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that compute with a node's values, those that merely move them passed over."""
    waiting = list(node.users)
    while waiting:
        reader = waiting.pop()
        if keeps_grid(reader):
            waiting += reader.users
        else:
            yield reader


def _is_float_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
