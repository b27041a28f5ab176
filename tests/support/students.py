"""Quantized networks as tests look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.quantized_folder import save_quantized
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.export import to_artifact
from genie_cli.quantization.quantize import QuantizedNetwork
from tests.support import ARITHMETIC


def student_of(network: QuantizedNetwork) -> fx.GraphModule:
    """The network with its quantizers, ready to run."""
    return network.student().eval()


def save_student(network: QuantizedNetwork, teacher: Teacher, folder: Path, images: ImageSet | None = None) -> None:
    """Write the network as `genie quantize` does."""
    save_quantized(folder, to_artifact(network, teacher, images, ARITHMETIC))


def learned_bytes(network: QuantizedNetwork) -> dict[str, bytes]:
    """Every learned number as bytes: codes, step sizes and zero points of the weights, step sizes of the sites."""
    tensors: dict[str, Tensor] = {}
    for name, weight in network.weights.items():
        tensors |= {f"{name}.codes": weight.codes, f"{name}.scale": weight.scale, f"{name}.zero": weight.zero_point}
    tensors |= {name: activation.step_size for name, activation in network.activations.items()}
    return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


@torch.no_grad()
def node_values(graph: fx.GraphModule, images: Tensor) -> dict[str, Tensor]:
    """Each node's value on the images."""
    values: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorder(graph).run(images)
    return values
