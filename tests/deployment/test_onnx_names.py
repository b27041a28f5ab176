"""Names in ONNX files: each stands once, whatever the network calls its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genie_cli
from genie_cli.deployment.program import InputForm
from tests.support.networks import noise
from tests.support.onnx_files import Small, check_answers, written

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def classes(self: Any, x: Tensor) -> Tensor:
    return self.fc(x.mean((2, 3)))


def scaled(self: Any, x: Tensor) -> Tensor:
    """A layer scale, whose view is computed before the file is written, and a later view."""
    return (x + x.relu() * self.gamma.view(1, -1, 1, 1)).flatten(1) * 2


COLLIDING = {
    "layer scale": Small(scaled, gamma=nn.Parameter(torch.rand(8))),
    "mean": Small(lambda self, x: self.fc((x * self.mean).mean((2, 3))), mean=torch.rand(8, 1, 1)),
    "add": Small(lambda self, x: self.fc((x + self.add).mean((2, 3))), add=nn.Parameter(torch.rand(8, 1, 1))),
    "images": Small(lambda self, x: self.fc((x * self.images).mean((2, 3))), images=torch.rand(8, 1, 1)),
}


@pytest.mark.parametrize("form", ["normalized", "pixels"])
@pytest.mark.parametrize("name", COLLIDING)
def test_tensors_that_are_called_as_what_is_computed(name: str, form: InputForm) -> None:
    network = COLLIDING[name]
    content = written(network, form)
    assert check_answers(content, network, form) == ["output"]
    onnx.checker.check_model(onnx.load_from_string(content))


def test_stored_tensors_keep_their_names() -> None:
    content = written(COLLIDING["mean"], "pixels")
    names = {tensor.name for tensor in onnx.load_from_string(content).graph.initializer}
    assert {"conv.weight", "fc.weight", "mean", "normalization.mean", "normalization.std"} <= names


@pytest.mark.parametrize("name", ["conv2d", "mean", "relu", "conv.weight", "logits"])
def test_outputs_keep_their_names(name: str) -> None:
    network = Small(lambda self, x: {"classes": classes(self, x.relu()), name: x.relu() * 2})
    assert check_answers(written(network), network) == ["classes", name]


def test_an_output_with_the_name_of_the_input_gets_a_number() -> None:
    network = Small(lambda self, x: {"images": x.relu(), "images_1": classes(self, x)})
    assert check_answers(written(network), network) == ["images_1", "images_1_1"]


def test_outputs_whose_paths_are_the_same_get_a_number_everywhere(tmp_path: Path) -> None:
    network = Small(lambda self, x: {"a.b": classes(self, x), "a": {"b": classes(self, x) * 2}})
    assert check_answers(written(network), network) == ["a.b", "a.b_1"]
    shape = {"num_channels": 3, "input_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    pixels = noise(8, size=8).sigmoid().expand(-1, 3, -1, -1)
    model = genie_cli.quantize(network, pixels, preset="minmax", weight_bits=8, activation_bits=8, **shape)
    assert list(model.export(tmp_path / "m.onnx", min_agreement=0)["differences"]) == ["a.b", "a.b_1"]


def test_a_tensor_that_is_returned_twice_and_one_that_is_stored() -> None:
    def behind(self: Any, x: Tensor) -> dict[str, Tensor]:
        found = classes(self, x * self.scale)
        return {"one": found, "two": found, "scale": self.scale, "again": self.scale}

    network = Small(behind, scale=torch.rand(8, 1, 1))
    assert check_answers(written(network), network) == ["one", "two", "scale", "again"]
