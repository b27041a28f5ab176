"""Layers are what multiplies stored weights, in integers or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import genie_cli
from genie_cli.deployment import kernels
from genie_cli.deployment.kernels import _factors, kernels_of
from genie_cli.errors import InputError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Products(nn.Module):
    """Three layers, the last of them with its weight in front, and two products of activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(6, 5)
        self.front = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).relu().flatten(2)
        scores = (tokens.transpose(1, 2) @ tokens).softmax(-1)
        mixed = (tokens @ scores).mean(2, keepdim=True)
        return self.fc((self.front @ mixed).flatten(1))


@pytest.mark.parametrize("protocol", ["genie", "integer"])
def test_products_of_activations_are_no_layers(protocol: str, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = genie_cli.quantize(
        Products().eval(), pixels, preset="mse", weight_bits=8, activation_bits=8, protocol=protocol,
        input_size=8, num_channels=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    report = model.export(tmp_path / "model.onnx", pixels, min_agreement=0)
    assert report["num_layers"] == 3
    assert report["num_integer_layers"] <= 3


def test_a_temporary_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself is whole: the graph that ONNX Runtime writes has no place."""
    model = Products().eval()
    torch.onnx.export(model, (torch.zeros(1, 3, 8, 8),), tmp_path / "model.onnx", dynamo=True, verbose=False)
    content = (tmp_path / "model.onnx").read_bytes()

    class Gone:
        def __enter__(self) -> str:
            return str(tmp_path / "gone")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(kernels.tempfile, "TemporaryDirectory", Gone)
    with pytest.raises(InputError, match=r"temporary folder .*gone.* TMPDIR"):
        kernels_of(content)


@pytest.mark.parametrize(
    ("operator", "inputs", "factors"),
    [
        ("QLinearMatMul", "a as az b bs bz ys yz", "a b"),
        ("Conv", "x w bias", "x w"),
        ("MatMulIntegerToFloat", "a b as bs", "a b"),
        ("Einsum", "a b c", "a b c"),
    ],
)
def test_factors_are_neither_scales_nor_biases(operator: str, inputs: str, factors: str) -> None:
    assert _factors(SimpleNamespace(op_type=operator, input=inputs.split())) == factors.split()
