"""Protocol `integer`: every tensor that an integer kernel reads or writes is quantized, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.teacher import Teacher
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.load import load_student
from genie_cli.student.protocol import PROTOCOLS
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.students import node_values, save_student, student_of

SPEC = InputSpec(size=8)
Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """conv 3->4, whatever `body` makes of it with two more, global average, linear 4->5, whatever `end` does."""

    def __init__(self, body: Body, end: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.gain = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.slope = nn.PReLU(4)
        self.fc = nn.Linear(4, 5)
        self.body, self.end = body, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc(self.body(self, self.conv(x)).mean((2, 3))))


def plan_of(network: nn.Module, bits: int = 4) -> tuple[fx.GraphModule, BitPlan]:
    torch.manual_seed(0)
    graph = fold_batch_norms(capture(network, SPEC)).graph
    return graph, assign_bits(graph, PROTOCOLS["integer"], bits, bits)


def quantized(network: nn.Module) -> list[str]:
    """The operations whose results are quantized, in order, without those that every `Net` has."""
    graph, plan = plan_of(network)
    targets = {node.name: str(node.target).removeprefix("aten.").split(".")[0] for node in graph.graph.nodes}
    found = [targets[site.node] for site in plan.activations]
    assert found[0] == "x"
    return found[1:]


ENDS = ["mean"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda n, y: y, ["conv2d"]),
        (lambda n, y: F.relu(y), ["relu"]),
        (lambda n, y: F.relu6(y), ["relu6"]),
        (lambda n, y: F.relu(y).clamp(max=1), ["clamp"]),
        (lambda n, y: F.relu(y) + y, ["conv2d", "relu", "add"]),
        (lambda n, y: F.relu(n.left(F.relu(y)) + y), ["conv2d", "relu", "conv2d", "relu"]),
        (lambda n, y: F.silu(y), ["conv2d", "silu"]),
        (lambda n, y: n.slope(y), ["conv2d", "prelu"]),
        (lambda n, y: y * y.sigmoid(), ["conv2d", "sigmoid", "mul"]),
        (lambda n, y: F.relu(torch.tanh(y) * n.gain), ["conv2d", "relu"]),
        (lambda n, y: F.max_pool2d(F.relu(y), 2), ["relu"]),
        (lambda n, y: F.max_pool2d(F.relu(y), 2, return_indices=True)[0], ["relu"]),
        (lambda n, y: n.left(F.max_pool2d(F.relu(y), 2)), ["relu", "conv2d"]),
        (lambda n, y: F.relu(F.max_pool2d(y, 2)), ["conv2d", "relu"]),
        (lambda n, y: F.avg_pool2d(F.relu(y), 2), ["relu", "avg_pool2d"]),
        (lambda n, y: n.left(torch.cat(y.chunk(2, 1)[::-1], 1)), ["conv2d", "cat", "conv2d"]),
        (lambda n, y: torch.cat([n.left(y), n.right(y)], 1)[:, ::2], ["conv2d", "conv2d", "conv2d", "cat"]),
        (lambda n, y: F.interpolate(y, scale_factor=2.0), ["conv2d"]),
        (lambda n, y: F.interpolate(y, scale_factor=2.0, mode="bilinear"), ["conv2d", "upsample_bilinear2d"]),
        (lambda n, y: F.pad(y, (1, 1)), ["conv2d"]),
        (lambda n, y: F.pad(y, (1, 1), value=1.0), ["conv2d", "pad"]),
        (lambda n, y: F.pad(y, (1, 1, 1, 1), mode="reflect"), ["conv2d"]),
        (lambda n, y: y + n.gain, ["conv2d", "add"]),
        (lambda n, y: 2 * y, ["conv2d", "mul"]),
    ],
    ids=["layer", "relu", "relu6", "two clips", "relu with another reader", "residual", "silu", "prelu", "gate",
         "island of two", "max pooling", "with indices", "max pooling before a layer", "relu behind a pooling",
         "average", "split and concatenation", "concatenation and slice", "nearest", "bilinear", "zeros around",
         "ones around", "reflection", "parameter", "number"],
)  # fmt: skip
def test_which_results_are_quantized(body: Body, expected: list[str]) -> None:
    assert quantized(Net(body)) == expected + ENDS


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda x: x, []),
        (lambda x: x.reshape(-1, 5, 1), []),
        (lambda x: x.mean(1), ["linear", "mean"]),
        (lambda x: F.relu(x), ["relu"]),
        (lambda x: x.softmax(1), ["linear", "_softmax"]),
        (lambda x: x.softmax(1).log(), ["linear", "log"]),
    ],
    ids=["linear", "reshape", "mean", "relu", "softmax", "island"],
)
def test_the_network_s_output(end: Callable[[Tensor], Tensor], expected: list[str]) -> None:
    found = quantized(Net(lambda n, y: y, end))
    assert [name.removeprefix("_") for name in found[2:]] == [name.removeprefix("_") for name in expected]


def test_layers_inputs_have_the_target_and_all_else_8_bits() -> None:
    network = Net(lambda n, y: F.max_pool2d(F.relu(n.right(F.relu(n.left(F.relu(y)))) + y), 2))
    _, plan = plan_of(network)
    assert plan.weights == {"conv": 8, "left": 4, "right": 4, "fc": 8}
    assert plan.symmetric_weights == {"conv", "fc"}
    bits = {site.name: site.bits for site in plan.activations}
    assert {name for name, own in bits.items() if own == 4} == {"right.input"}
    assert set(bits.values()) == {4, 8}
    _, wide = plan_of(network, bits=8)
    assert wide.symmetric_weights == set(wide.weights)


def test_digits_teacher_from_quantization_to_loading(digits_teacher: Teacher, tmp_path: Path) -> None:
    """Step sizes are learned where their unit is; the loaded network holds nothing but codes between its kernels."""
    images = digit_images(32)
    networks = {
        rate: stages.quantize(
            digits_teacher,
            images,
            QuantizeConfig(protocol="integer", num_steps=4, weight_range="minmax", activation_step_lr=rate),
        )
        for rate in (0.0, 1e-3)
    }
    network = networks[1e-3]
    sites = {site.node: site.name for site in network.plan.bits.activations}
    assert len(sites) == 14
    still = [
        n for n, a in network.activations.items() if torch.equal(a.step_size, networks[0.0].activations[n].step_size)
    ]
    assert still == []
    save_student(network, digits_teacher, tmp_path / "q")
    artifact = load_quantized(tmp_path / "q")
    assert {name for name, w in artifact.weights.items() if w.grid == "symmetric"} == {"conv1", "fc"}
    student, restored = student_of(network), load_student(digits_teacher, artifact)
    assert torch.equal(student(images), restored(images))
    values = node_values(restored, images)
    for node in restored.graph.nodes:
        if node.name in sites:
            (quantizer,) = node.users
            format, step_size = (
                getattr(restored.get_submodule(str(quantizer.target)), part) for part in ("format", "step_size")
            )
            codes = values[quantizer.name] / step_size
            torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
            assert format.quant_min - 0.01 <= codes.min() and codes.max() <= format.quant_max + 0.01
