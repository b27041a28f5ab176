"""``genie export``, ``genie benchmark`` and the evaluation of exported files, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import genie_cli
from genie_cli.config import QuantizeConfig
from genie_cli.models.digits import INPUT_SPEC
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.presets import preset_options
from tests.commands.conftest import Genie
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.students import save_student

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODEL = ("--model", "digits_resnet")


@pytest.fixture(scope="module")
def folder(digits_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network in 4 bits, its edges in 8."""
    config = QuantizeConfig(preset="minmax", weight_bits=4, activation_bits=4, **preset_options("minmax"))
    folder = tmp_path_factory.mktemp("digits") / "quantized"
    save_student(stages.quantize(digits_teacher, digit_images(48), config), digits_teacher, folder)
    return folder


def test_onnx_of_integers_gives_the_same_answers_without_genie(genie: Genie, folder: Path) -> None:
    out = genie("export", *MODEL, "--quantized", folder, "--images", "digits").stdout
    assert "agreement" in out
    report = json.loads(Path("model.onnx.export.json").read_text())
    content = Path("model.onnx").read_bytes()
    assert report["agreement"] >= 0.98
    assert report["num_images"] == 64
    assert report["operators"]["QLinearConv"] == 3
    assert (report["num_integer_layers"], report["num_layers"]) == (4, 10)
    assert "conv1/Conv" in report["float_islands"]
    assert report["num_bytes"] == len(content) < report["num_float_bytes"] / 2
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    codes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}["layer2.0.conv1.weight.codes"]
    assert codes.dtype == np.int8
    metadata = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "genie"))
    assert metadata["weight_bits"]["layer2.0.conv1"] == 4
    assert metadata["protocol"] == "genie"
    images = digit_images(5)
    np.save("images.npy", images.numpy())
    script = (
        "import sys; sys.modules['genie_cli'] = None; import numpy, onnxruntime; "
        "s = onnxruntime.InferenceSession('model.onnx'); "
        "numpy.save('logits.npy', s.run(['output'], {'images': numpy.load('images.npy')})[0]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    wanted = genie_cli.load("digits_resnet", folder)(images).detach().numpy()
    assert (np.load("logits.npy").argmax(1) == wanted.argmax(1)).all()
    genie("export", *MODEL, "--quantized", folder, "--out", "again.onnx")
    assert Path("again.onnx").read_bytes() == content


def test_packed_onnx_is_exact_and_smaller(genie: Genie, folder: Path) -> None:
    genie("export", *MODEL, "--quantized", folder, "--storage", "packed", "--input", "pixels")
    report = json.loads(Path("model.onnx.export.json").read_text())
    assert report["differences"]["output"]["largest"] < 1e-4
    assert report["num_bytes"] < report["num_float_bytes"] / 4
    session = ort.InferenceSession("model.onnx")
    assert session.get_inputs()[0].type == "tensor(uint8)"
    pixels = torch.randint(0, 256, (3, *INPUT_SPEC.shape), dtype=torch.uint8)
    images = (pixels / 255 - INPUT_SPEC.mean[0]) / INPUT_SPEC.std[0]
    wanted = genie_cli.load("digits_resnet", folder)(images).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"images": pixels.numpy()})[0], wanted, atol=1e-4)


@pytest.mark.slow
def test_pt2_runs_in_torch_and_is_the_same_at_every_export(genie: Genie, folder: Path) -> None:
    for name in ("one.pt2", "two.pt2"):
        genie("export", *MODEL, "--quantized", folder, "--format", "pt2", "--out", name)
    assert Path("one.pt2").read_bytes() == Path("two.pt2").read_bytes()
    images = digit_images(5)
    torch.save(images, "images.pt")
    script = (
        "import sys; sys.modules['genie_cli'] = None; import torch, torch.ao.quantization.fx._decomposed; "
        "network = torch.export.load('one.pt2').module(); torch.save(network(torch.load('images.pt'))[0], 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    wanted = genie_cli.load("digits_resnet", folder)(images)
    assert torch.equal(torch.load("logits.pt").argmax(1), wanted.argmax(1))


@pytest.mark.slow
def test_a_float_file_is_the_teacher_and_files_are_evaluated_and_timed(
    genie: Genie, folder: Path, digits_teacher: Teacher
) -> None:
    genie("export", *MODEL, "--out", "float.onnx")
    images = digit_images(5)
    found = ort.InferenceSession("float.onnx").run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, digits_teacher.graph(images).detach().numpy(), atol=1e-4)
    genie("export", *MODEL, "--quantized", folder)
    evaluated = [
        json.loads(genie("evaluate", *MODEL, "--quantized", file, "--data", "digits", "--json").stdout)
        for file in ("model.onnx", folder)
    ]
    assert evaluated[0]["runtime"].startswith("ONNX Runtime")
    assert abs(evaluated[0]["top1"] - evaluated[1]["top1"]) < 2
    assert evaluated[0]["teacher_top1"] == evaluated[1]["teacher_top1"]
    timed = json.loads(genie("benchmark", "float.onnx", "model.onnx", "--batch-size", "1", "--json").stdout)
    assert {each["weights"] for each in timed} == {"float", "int8"}
    assert all(each["milliseconds"]["1"] > 0 for each in timed)


def test_a_format_has_a_report_of_its_own(genie: Genie) -> None:
    for format in ("onnx", "pt2"):
        genie("export", *MODEL, "--format", format, "--out", f"model.{format}")
        assert json.loads(Path(f"model.{format}.export.json").read_text())["format"] == format
    inspected = json.loads(genie("inspect", "model.pt2", "--json").stdout)
    assert (inspected["teacher"], inspected["format"]) == ("digits_resnet", "pt2")
    assert "digits_resnet" in genie("inspect", "model.onnx").stdout


def test_a_file_for_a_folder_is_named(genie: Genie) -> None:
    genie("export", *MODEL)
    stderr = genie("export", *MODEL, "--quantized", "model.onnx", code=2).stderr
    assert "--quantized model.onnx is a file" in stderr


def test_torch_saturates_nowhere(genie: Genie, folder: Path) -> None:
    genie("export", *MODEL, "--quantized", folder, "--format", "pt2", "--out", "model.pt2")
    assert json.loads(Path("model.pt2.export.json").read_text())["saturates_without_vnni"] == []


PLAIN = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)
    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))
"""
COLOURED = ("--model", "plain.py:Network", "--std", "0.5,0.5,0.5")
HALF = ("--mean", "0.5,0.5,0.5")


@pytest.mark.parametrize("form", ["normalized", "pixels"])
def test_a_file_is_evaluated_on_what_it_takes(genie: Genie, form: str) -> None:
    Path("plain.py").write_text(PLAIN)
    genie("export", *COLOURED, *HALF, "--input-size", 12, "--input", form)
    draws = torch.Generator().manual_seed(0)
    for size in (12, 16):
        pixels = torch.randint(0, 256, (6, 3, size, size), generator=draws, dtype=torch.uint8)
        save_file({"images": pixels, "labels": torch.zeros(6, dtype=torch.int64)}, f"pixels{size}.safetensors")
    evaluate = ("evaluate", *COLOURED, "--quantized", "model.onnx", "--data")
    figures = json.loads(genie(*evaluate, "pixels12.safetensors", *HALF, "--input-size", 12, "--json").stdout)
    assert figures["agreement"] == 100
    stderr = genie(*evaluate, "pixels16.safetensors", *HALF, "--input-size", 16, code=3).stderr
    assert "takes images of 3x12x12, and this teacher of 3x16x16" in stderr
    other = ("--mean", "0.3,0.3,0.3", "--input-size", 12)
    if form == "pixels":
        assert "--mean" in genie(*evaluate, "pixels12.safetensors", *other, code=3).stderr
    else:
        genie(*evaluate, "pixels12.safetensors", *other)


def test_too_little_agreement_is_an_error_of_its_own(
    genie: Genie, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "genie_cli.deployment.runtimes.OnnxRuntime.run", lambda self, images: [np.zeros((len(images), 10))]
    )
    stderr = genie("export", *MODEL, "--quantized", folder, "--images", "digits", code=7).stderr
    assert "--min-agreement" in stderr
    assert not list(Path().iterdir())


FACTORY = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head()
    def forward(self, x):
        return self.head(x)

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(256, 3)
    def forward(self, x):
        return torch.special.i1e(self.fc(x.flatten(1)))
"""
GRAY = ("--num-channels", "1", "--input-size", "16", "--mean", "0.3", "--std", "0.3")


def test_an_operation_that_onnx_cannot_say_is_named_with_its_layer(genie: Genie) -> None:
    Path("net.py").write_text(FACTORY)
    stderr = genie("export", "--model", "net.py:Network", *GRAY, code=3).stderr
    assert "special_i1e" in stderr
    assert "'head'" in stderr
    assert "--format pt2" in stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--out", "model.pt2"), 2, "must end in .onnx"),
        (("--storage", "packed", "--opset", "20"), 2, "needs 21 or more"),
        (("--format", "pt2", "--storage", "packed"), 2, "--storage packed is of --format onnx"),
        (("--format", "pt2", "--opset", "20"), 2, "--opset is of --format onnx"),
    ],
    ids=["suffix", "opset", "packed pt2", "opset of pt2"],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], code: int, message: str, genie: Genie, folder: Path
) -> None:
    assert message in genie("export", *MODEL, "--quantized", folder, *options, code=code).stderr
    assert not list(Path().iterdir())


def test_an_absent_runtime_is_told_with_its_extra(genie: Genie, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "genie-cli[onnx]" in genie("export", *MODEL, "--quantized", folder, code=2).stderr


def test_a_folder_of_another_network_is_refused(genie: Genie, folder: Path) -> None:
    Path("net.py").write_text(FACTORY)
    stderr = genie("export", "--model", "net.py:Network", "--quantized", folder, code=3).stderr
    assert "does not fit this network" in stderr
