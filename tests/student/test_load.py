"""From a quantized folder back to a network, without the teacher's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import genie_cli
from genie_cli.artifacts.quantized import QuantizedActivation, QuantizedArtifact
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.errors import InputError, UsageError
from genie_cli.models import zoo
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.digits import INPUT_SPEC, digits_resnet
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.presets import preset_options
from genie_cli.student.grid import dequantize_weight
from genie_cli.student.load import load_student, restore
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.students import save_student, student_of


@dataclass(frozen=True)
class Quantized:
    """A network quantized to nearest, in memory and on disk."""

    teacher: Teacher
    student: fx.GraphModule
    folder: Path
    images: Tensor
    logits: Tensor


def quantize(teacher: Teacher, images: Tensor, folder: Path, bits: int = 4) -> Quantized:
    config = QuantizeConfig(preset="minmax", weight_bits=bits, activation_bits=bits, **preset_options("minmax"))
    network = stages.quantize(teacher, images, config)
    save_student(network, teacher, folder)
    student = student_of(network)
    return Quantized(teacher, student, folder, images, student(images))


@pytest.fixture(scope="module")
def digits(digits_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    return quantize(digits_teacher, digit_images(48), tmp_path_factory.mktemp("digits") / "quantized")


def test_the_case_is_no_trivial_one(digits: Quantized) -> None:
    exact = digits.teacher.graph(digits.images)
    assert not torch.equal(digits.logits, exact)
    assert (digits.logits.argmax(1) == exact.argmax(1)).float().mean() > 0.8
    assert len(digits.logits.argmax(1).unique()) > 5


def test_name_and_folder_give_the_same_logits(digits: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_ASSETS", Path("/no/such/folder"))  # where the teacher's weights are
    network = genie_cli.load("digits_resnet", str(digits.folder))
    assert torch.equal(network(digits.images), digits.logits)
    assert torch.equal(network(digits.images[:1]), digits.student(digits.images[:1]))
    assert not network.training
    assert not [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def test_module_of_any_weights_gives_the_same_logits_and_is_left_alone(digits: Quantized) -> None:
    module = digits_resnet().train()
    before = state_sha256(module)
    assert torch.equal(genie_cli.load(module, digits.folder)(digits.images), digits.logits)
    assert state_sha256(module) == before
    assert module.training


def test_load_student_takes_its_own_teacher_only(digits: Quantized) -> None:
    artifact = load_quantized(digits.folder)
    assert torch.equal(load_student(digits.teacher, artifact)(digits.images), digits.logits)
    other = make_teacher("digits_resnet", digits_resnet(), INPUT_SPEC)
    with pytest.raises(InputError) as raised:
        load_student(other, artifact)
    assert digits.teacher.sha256[:12] in str(raised.value)
    assert other.sha256[:12] in str(raised.value)


class Narrow(nn.Module):
    """Takes the same images, has another architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv1(x)).mean((2, 3)))


def wide_digits() -> nn.Module:
    network = digits_resnet()
    network.fc = nn.Linear(64, 11)
    return network


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Narrow, r"the network lacks 8 weight layer\(s\), first 'layer1.0.conv1'"),
        (wide_digits, r"'fc' has shape \(10, 64\), not \(11, 64\)"),
        (lambda: "cifar_resnet20", "cannot be captured for input"),  # its images have three channels
    ],
    ids=["other layers", "other width", "other channels"],
)
def test_folder_of_another_network_is_refused(
    model: Callable[[], nn.Module | str], message: str, digits: Quantized
) -> None:
    with pytest.raises(InputError, match=message):
        genie_cli.load(model(), digits.folder)


def test_wrong_arguments(digits: Quantized, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'digits_resnet'"):
        genie_cli.load("digit_resnet", digits.folder)
    with pytest.raises(InputError, match="does not exist"):
        genie_cli.load("digits_resnet", tmp_path / "none")


def without_first(entries: Any) -> dict[str, Any]:
    return dict(list(entries.items())[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda artifact: {"activations": {"nowhere.input": QuantizedActivation(0.1, 4, False)}},
            r"the network lacks 1 activation site\(s\), first 'nowhere.input'",
        ),
        (lambda artifact: {"weights": without_first(artifact.weights)}, r"the folder lacks 1 weight layer\(s\)"),
        (lambda artifact: {"parameters": without_first(artifact.parameters)}, r"the folder lacks 1 tensor\(s\)"),
        (
            lambda artifact: {"parameters": {**artifact.parameters, "gain": torch.ones(1)}},
            r"the network lacks 1 tensor\(s\), first 'gain'",
        ),
        (
            lambda artifact: {"parameters": {**artifact.parameters, "fc.bias": torch.ones(1)}},
            r"'fc.bias' has shape \(1,\), not \(10,\)",
        ),
    ],
    ids=["site", "layer", "tensor missing", "tensor unknown", "tensor shape"],
)
def test_parts_that_do_not_fit_are_named(
    change: Callable[[QuantizedArtifact], dict[str, Any]], message: str, digits: Quantized
) -> None:
    artifact = load_quantized(digits.folder)
    with pytest.raises(InputError, match=message):
        restore(fold_batch_norms(digits.teacher.graph).graph, dataclasses.replace(artifact, **change(artifact)))


def test_a_channel_takes_at_most_two_to_the_bits_values(digits: Quantized) -> None:
    artifact = load_quantized(digits.folder)
    bits = {name: weight.bits for name, weight in artifact.weights.items()}
    assert {name for name in bits if bits[name] == 8} == {"conv1", "fc"}
    assert set(bits.values()) == {4, 8}
    for weight in artifact.weights.values():
        rows = dequantize_weight(weight.codes.float(), weight.scale, weight.zero_point.float()).flatten(1)
        assert int(weight.codes.max()) < 2**weight.bits
        assert max(len(row.unique()) for row in rows) <= 2**weight.bits
        assert max(len(row.unique()) for row in rows) > min(2**weight.bits, rows.shape[1]) // 2  # and not far fewer


class Awkward(nn.Module):
    """A batch norm that stays, a layer used twice, a bare and a computed kernel, constants made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.bn2 = nn.BatchNorm2d(8)
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.bn3 = nn.BatchNorm2d(8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(F.relu(self.first(x)))) + torch.arange(8.0).view(1, 8, 1, 1) / 8
        y = y + F.relu(self.bn2(self.twice(F.relu(self.bn1(self.twice(y))))))
        y = self.normed(F.relu(self.bn3(F.conv2d(y, self.kernel))))
        y = torch.cat([y, torch.zeros(y.size(0), 8, 1, 8)], 2)
        return self.fc(F.adaptive_avg_pool2d(y, 1).view(y.size(0), -1))


def awkward(seed: int) -> Awkward:
    torch.manual_seed(seed)
    network = Awkward()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    return network


def test_awkward_network_comes_back(tmp_path: Path) -> None:
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    teacher = make_teacher("awkward", awkward(seed=1), InputSpec(size=8))
    quantized = quantize(teacher, images, tmp_path / "quantized")
    artifact = load_quantized(tmp_path / "quantized")
    assert list(artifact.weights) == sorted(["conv", "twice", "twice.reuse1", "kernel", "normed", "fc"])
    assert {"affine_maps.first.scale", "affine_maps.first.shift"} <= set(artifact.parameters)
    assert "first.running_mean" not in artifact.parameters
    assert "bn1.running_mean" not in artifact.parameters
    assert torch.equal(genie_cli.load(awkward(seed=2), tmp_path / "quantized")(images), quantized.logits)
    correlation = torch.corrcoef(torch.stack([quantized.logits.flatten(), teacher.graph(images).flatten()]))[0, 1]
    assert correlation > 0.9
