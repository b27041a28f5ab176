"""The network that is exported, as a program of torch.export: named images in, a flat tuple of named tensors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.traceback import preserve_node_meta

from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.graph.outputs import named_outputs

InputForm = Literal["normalized", "pixels"]

INPUT = "images"
"""Name of the input."""
_PATHS = ("stack_trace", "source_fn_stack", "torch_fn", "from_node")
"""Metadata of nodes about the code that made them: they hold paths, and no runtime needs them."""


class Normalization(nn.Module):
    """The normalisation of the images that a network takes."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        """Take mean and standard deviation of each channel from `spec`."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 ``[B, C, H, W]`` as the network takes them."""
        normalized: Tensor = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        return normalized


class Deployed(nn.Module):
    """A network with its normalisation in front, where it takes pixels, and flat outputs behind."""

    def __init__(self, network: fx.GraphModule, spec: InputSpec, form: InputForm) -> None:
        """Put `network`, which takes the images of `spec`, behind inputs of `form`."""
        super().__init__()
        self.network, self._form = network, form
        self.normalization = Normalization(spec)  # no operation has a name with a dot, as its tensors have

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors of what the network returns for images ``[B, C, H, W]``, normalised floats or uint8 pixels."""
        taken = self.normalization(images) if self._form == "pixels" else images
        return tuple(value for _, value in named_outputs(fx.Interpreter(self.network).run(taken)))


@dataclass(frozen=True)
class Program:
    """A program to be written.

    Attributes:
        exported: it.
        outputs: names of its outputs.
    """

    exported: ExportedProgram
    outputs: tuple[str, ...]


@torch.no_grad()
def make_program(network: fx.GraphModule, spec: InputSpec, form: InputForm) -> Program:
    """The program of a network, for any number of images.

    Raises:
        InputError: the network cannot be traced for any number of images.
    """
    example = torch.zeros(2, *spec.shape)
    names = tuple(name for name, _ in named_outputs(network(example)))
    images = example.to(torch.uint8) if form == "pixels" else example
    deployed = Deployed(network, spec, form).eval()
    try:
        with preserve_node_meta():  # which module a node belongs to
            exported = torch.export.export(deployed, (images,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # of any kind, as tracing runs the network's own operations
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"The network cannot be exported for any number of images: {reason}") from error
    for node in exported.graph.nodes:
        for key in _PATHS:
            node.meta.pop(key, None)
    return Program(exported, names)


def scope_of(node: fx.Node) -> str:
    """The module of the network that a node belongs to: ``layer1.0.conv1``, or ''."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]).removeprefix("network").lstrip(".") if paths else ""
