"""Slopes in exported files: int8 codes, and the answers of genie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import genie_cli
from genie_cli.deployment.integer_form import StoredSlopes
from genie_cli.library.quantized_model import QuantizedModel
from genie_cli.student.formats import SLOPE_FORMAT
from genie_cli.student.grid import weight_grid
from genie_cli.student.modules import IntegerWeight
from tests.support.networks import noise
from tests.support.rectifiers import SLOPES, rectifiers

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    shape = {"num_channels": 1, "input_size": 8, "mean": (0.0,), "std": (1.0,)}
    options = {"preset": "minmax", "weight_bits": 4, "activation_bits": 8, "precision": "fp32"}
    return genie_cli.quantize(rectifiers(), noise(16, size=8).sigmoid(), **shape, **options)


@pytest.mark.parametrize("values", [[0.25, -0.5, 0.1], [0.0, 0.0], [0.7]], ids=str)
def test_stored_slopes_keep_their_values_to_the_bit(values: list[float]) -> None:
    slopes = torch.tensor(values)
    weight = IntegerWeight.nearest(slopes, *weight_grid(slopes, SLOPE_FORMAT, "minmax"), SLOPE_FORMAT)
    stored = StoredSlopes(weight)
    assert stored.codes.dtype == torch.int8
    assert torch.equal(stored(), weight())


@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_an_onnx_file_holds_int8_slopes_and_answers_as_genie(
    model: QuantizedModel, storage: str, tmp_path: Path
) -> None:
    report = model.export(tmp_path / "m.onnx", storage=storage)
    assert report["agreement"] == 1
    file = onnx.load(str(tmp_path / "m.onnx"))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    readers = {node.input[0]: node for node in file.graph.node if node.op_type == "DequantizeLinear"}
    for name in SLOPES:
        codes, slope = tensors[f"{name}.weight.codes"], model.artifact.weights[name]
        assert codes.dtype == np.int8
        np.testing.assert_array_equal(codes, slope.codes.numpy())
        scale, zero_point = (tensors[place] for place in readers[f"{name}.weight.codes"].input[1:])
        assert (scale.shape, zero_point.shape, int(zero_point)) == ((), (), 0)
        assert scale == slope.scale.numpy().item()
    floats = {tensor.size for tensor in tensors.values() if tensor.dtype == np.float32 and tensor.ndim != 1}
    assert floats <= {1}  # of the slopes nothing is left in float
    images = noise(5, size=8, seed=1)
    with torch.no_grad():
        wanted = model.module(images).numpy()
    found = ort.InferenceSession(file.SerializeToString()).run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


def test_a_pt2_file_answers_as_genie_to_the_bit(model: QuantizedModel, tmp_path: Path) -> None:
    report = model.export(tmp_path / "m.pt2")
    assert report["differences"]["output"]["largest"] == 0
    state = torch.export.load(tmp_path / "m.pt2").state_dict
    codes = [tensor for key, tensor in state.items() if key.endswith("weight_quantizers.act.codes")]
    assert [tensor.dtype for tensor in codes] == [torch.int8]
