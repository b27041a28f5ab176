"""Quantized networks as tests look at them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.student.build import insert_quantizers


def student_of(network: QuantizedNetwork) -> fx.GraphModule:
    """The network with its quantizers, ready to run."""
    return insert_quantizers(network.folded.graph, network.plan, network.weights, network.activations).eval()


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
