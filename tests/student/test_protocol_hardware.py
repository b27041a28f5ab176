"""Protocol `hardware`: which outputs are quantized beside the layers' inputs, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import genie_cli
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import InputSpec, ModelConfig, QuantizeConfig
from genie_cli.errors import InputError, UsageError
from genie_cli.models.graph.activation_functions import ELEMENTWISE
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.load import load_student
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.protocol import PROTOCOLS, find_protocol
from genie_cli.student.tensor_names import tensor_names
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.recipes import MINMAX_RANGES
from tests.support.students import save_student, student_of

SPEC = InputSpec(size=8)
Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """conv 3->4, whatever `body` does with two more, mean, linear 4->5, whatever `end` does."""

    def __init__(self, body: Body, end: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1)
        self.right = nn.Conv2d(4, 4, 1)
        self.gain = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.fc = nn.Linear(4, 5)
        self.body, self.end = body, end

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, x)
        return self.end(self.fc(y.mean((2, 3))))


def plain(net: Net, x: Tensor) -> Tensor:
    return net.left(F.relu(net.conv(x)))


def graph_of(network: nn.Module) -> fx.GraphModule:
    torch.manual_seed(0)
    return fold_batch_norms(capture(network, SPEC)).graph


def plan_of(graph: fx.GraphModule, protocol: str = "hardware", bits: int = 4) -> BitPlan:
    return assign_bits(graph, PROTOCOLS[protocol], bits, bits)


def added_sites(network: nn.Module) -> dict[str, str]:
    """Sites that `ait` does not have: name -> operation whose value it is."""
    graph = graph_of(network)
    known = {site.node for site in plan_of(graph, "ait").activations}
    targets = {node.name: str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"}
    return {site.name: targets[site.node] for site in plan_of(graph).activations if site.node not in known}


def test_unknown_protocol_lists_all() -> None:
    with pytest.raises(
        UsageError, match=r"'hardwear': genie, qdrop, ait, hardware, integer\. Did you mean 'hardware'\?"
    ):
        find_protocol("hardwear")


# --- which outputs


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (plain, {}),
        (lambda n, x: n.left(n.conv(x)) + n.right(n.conv(x)), {"mean0.input": "add"}),
        (lambda n, x: F.relu(n.left(n.conv(x)) + n.right(n.conv(x))), {"mean0.input": "relu"}),
        (lambda n, x: F.hardswish(torch.add(n.left(n.conv(x)), n.conv(x))), {"mean0.input": "hardswish"}),
        (lambda n, x: (n.left(n.conv(x)) + n.right(n.conv(x))).clamp(0, 6), {"mean0.input": "clamp"}),
        (lambda n, x: torch.relu(torch.relu(n.left(n.conv(x)) + n.conv(x))), {"relu1.input": "relu"}),
        (lambda n, x: n.left(y := n.conv(x)) + y + n.right(y), {"add1.lhs": "add", "mean0.input": "add"}),
        (lambda n, x: (y := n.conv(x)) + y, {"mean0.input": "add"}),
        (lambda n, x: (y := n.left(n.conv(x)) + n.conv(x)) * y.sigmoid(), {"sigmoid0.input": "add"}),
        (lambda n, x: n.conv(x) + n.conv(x).mean((2, 3), keepdim=True), {"mean1.input": "add"}),
        (lambda n, x: n.right(F.relu(n.left(n.conv(x)) + n.conv(x))), {}),  # right reads the site
        (lambda n, x: n.right(F.max_pool2d(F.relu(n.left(n.conv(x)) + n.conv(x)), 2)), {"max_pool2d0.input": "relu"}),
    ],
    ids=["no addition", "bare", "relu", "hardswish", "clamp", "one function only", "chain", "with itself",
         "function with another reader", "broadcast", "read by a layer", "behind it a pooling"],
)  # fmt: skip
def test_additions_behind_their_activation_function(body: Body, expected: dict[str, str]) -> None:
    assert added_sites(Net(body)) == {**expected, "fc.output": "linear"}


@pytest.mark.parametrize(
    "body",
    [
        lambda n, x: plain(n, x) + 1,
        lambda n, x: plain(n, x) + n.gain,
        lambda n, x: plain(n, x) + torch.arange(4.0).view(1, 4, 1, 1),
        lambda n, x: plain(n, x) + torch.zeros(x.size(0), 4, 1, 1),
        lambda n, x: plain(n, x + x.mean()),
        lambda n, x: plain(n, F.relu(x + x)),
        lambda n, x: plain(n, x) * n.conv(x),
    ],
    ids=["number", "parameter", "constant", "constant of the batch's size", "images", "images with relu", "product"],
)
def test_what_is_no_addition_of_two_activations(body: Body) -> None:
    assert added_sites(Net(body)) == {"fc.output": "linear"}


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda x: x, {"fc.output": "linear"}),
        (F.relu, {"relu1.output": "relu"}),
        (torch.sigmoid, {"sigmoid0.output": "sigmoid"}),
        (lambda x: x.log_softmax(1), {"log_softmax0.input": "linear"}),
        (lambda x: F.relu(x) + x, {"relu1.input": "linear", "add0.output": "add"}),
        (lambda x: x.reshape(-1, 5), {"reshape0.input": "linear"}),
    ],
    ids=["logits", "relu", "sigmoid", "softmax", "residual", "reshape"],
)
def test_the_last_layer_s_output(end: Callable[[Tensor], Tensor], expected: dict[str, str]) -> None:
    assert added_sites(Net(plain, end)) == expected


def test_activation_functions_are_those_that_capture_gives() -> None:
    functions = [
        F.relu, F.relu6, F.hardtanh, F.leaky_relu, nn.PReLU(4), F.elu, F.selu, F.celu, F.silu, F.mish, F.gelu,
        F.hardswish, F.hardsigmoid, F.sigmoid, torch.tanh, F.softplus, lambda x: x.clamp(min=0),
        lambda x: torch.clamp_min(x, 0), lambda x: F.threshold(x, 0, 0),
    ]  # fmt: skip

    class All(Net):
        def __init__(self) -> None:
            super().__init__(plain)
            self.functions = nn.ModuleList([f for f in functions if isinstance(f, nn.Module)])

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            for function in functions:
                y = function(y)
            return self.fc(y.mean((2, 3)))

    found = {node.target for node in graph_of(All()).graph.nodes}
    assert set(ELEMENTWISE) <= found


def test_names_of_the_other_protocols_are_as_they_were() -> None:
    graph = fold_batch_norms(load_untrained(ModelConfig(name="digits_resnet")).graph).graph
    names = [site.name for site in plan_of(graph, "ait").activations]
    assert names == ["layer1.0.conv1.input", "layer1.0.conv2.input", "layer2.0.conv1.input", "layer2.0.conv2.input",
                     "layer3.0.conv1.input", "layer3.0.conv2.input", "fc.input"]  # fmt: skip
    assert {site.node for site in plan_of(graph).activations} <= {node.name for node in tensor_names(graph).values()}


# --- the student


class Weight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        return self.weight


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_quantizers_stand_on_the_outputs() -> None:
    """A quantizer that doubles shows where it stands: behind the addition's relu, and on the logits."""
    network = Net(lambda n, x: F.relu(n.left(y := n.conv(x)) + y))
    graph = graph_of(network)
    plan = plan_of(graph)
    weights = {layer.name: Weight(get_tensor(graph, layer.weight_key)) for layer in weight_layers(graph)}
    student = insert_quantizers(graph, plan, weights, {site.name: Doubled() for site in plan.activations})
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        y = 2 * network.conv(images)
        y = 2 * F.relu(network.left(y) + y)
        expected = 2 * network.fc(2 * y.mean((2, 3)))
    torch.testing.assert_close(student(images), expected)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digit_images(48)


def quantize(teacher: Teacher, images: Tensor, **options: Any) -> QuantizedNetwork:
    keys = {"protocol": "hardware", "num_steps": 6, "rounding_lr": 0.1, **MINMAX_RANGES, **options}
    return stages.quantize(teacher, images, QuantizeConfig(**keys))


OUTPUTS = {"avgpool.adaptive_avg_pool2d0.input", "fc.output"}
"""What `hardware` adds on the digits network: the other additions are read by convolutions."""


@pytest.mark.parametrize("reconstruct", [True, False], ids=["learned", "nearest"])
def test_digits_teacher_from_quantization_to_loading(
    digits_teacher: Teacher, images: Tensor, tmp_path: Path, reconstruct: bool
) -> None:
    options = {"reconstruct": reconstruct, "bits_override": {"layer1.*": (8, 7), "fc": (6, 5)}}
    network = quantize(digits_teacher, images, **options)
    assert set(network.activations) == {site.name for site in network.plan.bits.activations} >= OUTPUTS
    assert {name: w.format.bits for name, w in network.weights.items() if w.format.bits != 4} == {
        "layer1.0.conv1": 8, "layer1.0.conv2": 8, "fc": 6,
    }  # fmt: skip
    assert {name: a.format.bits for name, a in network.activations.items() if a.format.bits != 4} == {
        "layer1.0.conv1.input": 7, "layer1.0.conv2.input": 7, "fc.input": 5,
    }  # fmt: skip
    student = student_of(network)
    logits = student(images)
    assert network.activations["fc.output"].format.signed
    assert len(logits.unique()) <= 2**4  # the logits are on their grid
    assert (logits.argmax(1) == digits_teacher.graph(images).argmax(1)).float().mean() > 0.7
    save_student(network, digits_teacher, tmp_path / "quantized")
    artifact = load_quantized(tmp_path / "quantized")
    assert artifact.metadata.config["bits_override"] == {"layer1.*": [8, 7], "fc": [6, 5]}
    assert torch.equal(genie_cli.load("digits_resnet", tmp_path / "quantized")(images), logits)
    assert torch.equal(load_student(digits_teacher, artifact)(images), logits)


def test_the_last_unit_holds_the_network_s_output(digits_teacher: Teacher, images: Tensor) -> None:
    """Its step size is found and learned on what the quantized layer gives; the units' chain gives the student."""
    network = quantize(digits_teacher, images, num_steps=3, activation_step_lr=1e-2)
    start = quantize(digits_teacher, images, reconstruct=False)
    for name in OUTPUTS:
        learned, initial = network.activations[name].step_size, start.activations[name].step_size
        assert not torch.equal(learned, initial)
    folded, logits = digits_teacher.graph(images), student_of(network)(images)
    error = ((logits - folded).square().sum() / folded.square().sum()).item()
    assert network.units[-1].relative_error == pytest.approx(error, rel=1e-3)


def test_early_stopping_and_held_out_images(digits_teacher: Teacher, images: Tensor) -> None:
    network = quantize(digits_teacher, images, num_steps=20, patience=4)
    assert set(network.activations) >= OUTPUTS


class AddsLast(nn.Module):
    """An addition as the network's output, in one unit with its layers."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)).mean((2, 3))
        y = self.a(y) + self.b(y)
        return F.relu(y) if self.fused else y


@pytest.mark.parametrize(("fused", "name"), [(False, "add0.output"), (True, "relu1.output")])
def test_addition_as_the_network_s_output(fused: bool, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = AddsLast(fused)
    teacher = make_teacher("adds_last", module, SPEC)
    images = torch.randn(16, 3, 8, 8)
    network = quantize(teacher, images, **preset_options("minmax"))
    assert list(network.activations)[-1] == name
    assert isinstance(network.activations[name], ActivationQuantizer)
    assert "add0.rhs" in network.activations  # the last layer's own output is another tensor
    logits = student_of(network)(images)
    assert len(logits.unique()) <= 2**4
    save_student(network, teacher, tmp_path / "quantized")
    assert torch.equal(genie_cli.load(AddsLast(fused), tmp_path / "quantized")(images), logits)
    with pytest.raises(InputError, match="activation site"):
        genie_cli.load(AddsLast(not fused), tmp_path / "quantized")
