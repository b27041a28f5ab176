"""Networks of one output: two classes, a threshold that fits what the output is, and labels 0 and 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.config import InputSpec
from genie_cli.data.labeled import TensorImages, check_classes
from genie_cli.errors import InputError
from genie_cli.evaluation.metrics.decision import Decision, decision_of
from genie_cli.models.graph.capture import capture
from tests.support.stages import evaluate

SPEC = InputSpec(num_channels=1, size=8, mean=(0.5,), std=(0.5,))


MODEL = (
    "--model", "one_output_network.py:Net", "--num-channels", "1", "--input-size", "8", "--mean", "0", "--std", "1",
)  # fmt: skip


class Ends(nn.Module):
    """The mean of an image as its one output, behind a function."""

    def __init__(self, end: str = "logit") -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(1, 1, 1), end
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        ends = {
            "logit": lambda: y,
            "sigmoid": lambda: y.sigmoid(),
            "a number per image": lambda: y.sigmoid().squeeze(1),
            "squeezed": lambda: y.sigmoid().squeeze(),
            "reshaped": lambda: y.sigmoid().reshape(-1, 1, 1).flatten(1),
            "hard": lambda: F.hardsigmoid(4 * y),
            "scaled": lambda: 2 * y.sigmoid() - 1,
        }
        return ends[self.end]()


def images(labels: list[int]) -> TensorImages:
    """Bright images for the label 1, dark ones for 0."""
    values = torch.tensor([200 if label else 50 for label in labels], dtype=torch.uint8)
    return TensorImages(values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), torch.tensor(labels), SPEC)


@pytest.mark.parametrize(
    ("end", "threshold"),
    [
        ("logit", 0.0),
        ("sigmoid", 0.5),
        ("a number per image", 0.5),
        ("squeezed", 0.5),
        ("reshaped", 0.5),
        ("hard", 0.5),
        ("scaled", 0.0),
    ],
)
def test_the_threshold_fits_the_output(end: str, threshold: float) -> None:
    graph = capture(Ends(end), SPEC)
    assert decision_of(graph, 1) == Decision(1, threshold)
    result = evaluate(graph, images([0, 1, 1, 0, 1]), 1, 2, threshold=threshold)
    assert result.own == {"top1": 100, "per_class": {"0": 100, "1": 100}}


def test_agreement_is_of_decisions() -> None:
    class Inverted(Ends):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    data = images([0, 1, 1, 1])
    figures = evaluate(Inverted(), data, 1, 3, teacher=Ends()).as_json()
    assert (figures["top1"], figures["teacher_top1"], figures["agreement"]) == (0, 100, 0)


def test_several_outputs_decide_as_before() -> None:
    outputs = torch.tensor([[0.1, 0.3, 0.2], [-1.0, -3.0, -2.0]])
    assert Decision(3).classes(outputs).tolist() == [1, 0]
    assert Decision(3).num_classes == 3


@pytest.mark.parametrize(
    ("labels", "num_classes", "found"), [([0, 2], None, "label 2"), ([0, 1], 3, "3 classes")], ids=["label", "classes"]
)
def test_other_labels_are_refused(labels: list[int], num_classes: int | None, found: str) -> None:
    data = TensorImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor(labels), SPEC, num_classes)
    with pytest.raises(InputError, match=f"one output.*{found}: use data with the labels 0 and 1"):
        check_classes(data, 1)


@pytest.mark.parametrize("num_classes", [None, 1, 2])
def test_two_classes_fit(num_classes: int | None) -> None:
    data = TensorImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), SPEC, num_classes)
    check_classes(data, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one_output_network.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(1, 4, 1), nn.Linear(4, 1)\n"
        "        nn.init.ones_(self.conv.weight), nn.init.zeros_(self.conv.bias)\n"
        "        nn.init.ones_(self.head.weight), nn.init.constant_(self.head.bias, -2.0)\n"
        "    def forward(self, x):\n"
        "        return torch.sigmoid(self.head(self.conv(x).relu().mean((2, 3))))\n"
    )
    data = images([0, 1, 1, 0])
    save_file({"images": data.pixels(range(4)), "labels": data.labels}, tmp_path / "data.safetensors")
    yield tmp_path


def test_the_command_measures_a_student_of_one_output(folder: Path) -> None:
    bits = ("--preset", "minmax", "--weight-bits", "8", "--activation-bits", "8")
    runner = CliRunner()
    made = runner.invoke(app, ["quantize", *MODEL, "--images", "data.safetensors", *bits])
    assert made.exit_code == 0, made.output
    measured = runner.invoke(
        app, ["evaluate", *MODEL, "--quantized", "quantized", "--data", "data.safetensors", "--json"]
    )
    figures = json.loads(measured.stdout)
    assert (figures["top1"], figures["teacher_top1"], figures["agreement"]) == (100, 100, 100)
    assert figures["per_class"] == {"0": 100, "1": 100}
    assert "a probability above 0.5 is class 1" in " ".join(measured.stderr.split())


def test_a_loss_between_classes_is_refused_for_one_output(folder: Path) -> None:
    refused = CliRunner().invoke(app, ["quantize", *MODEL, "--images", "data.safetensors", "--preset", "ait"])
    assert refused.exit_code == 2
    assert "this network has one output" in " ".join(refused.stderr.split())
