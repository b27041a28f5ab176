"""Data and metrics of other tasks than classification: segmentation, detection, fidelity and users' own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

CODE = '''
import torch
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Segmenter(nn.Module):
    """Says 1 where a pixel is bright, at half the size of the image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = block(3, 4), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.body[0].weight.zero_()[:, :, 1, 1] = 1 / 3
            self.head.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]).view(2, 4, 1, 1))
            self.head.bias.copy_(torch.tensor([4.0, 0.0]))

    def forward(self, x):
        return nn.functional.avg_pool2d(self.head(self.body(x)), 2)


class Detector(nn.Module):
    """A score per cell of a grid of 4x4 cells, from the brightness of the cell; as one tensor, or in a dict of two."""

    def __init__(self, in_dict=False):
        super().__init__()
        self.in_dict = in_dict
        self.body = block(3, 4)
        with torch.no_grad():
            self.body[0].weight.zero_()[:, :, 1, 1] = 1 / 3

    def forward(self, x):
        x = nn.functional.avg_pool2d(self.body(x), (x.shape[2] // 4, x.shape[3] // 4))
        return {"scores": x[:, :1], "extent": x[:, 1:3]} if self.in_dict else x[:, :1]


def detector_of_two():
    return Detector(in_dict=True)


def decode(outputs):
    print("decoding")
    found = []
    for scores in (outputs["scores"] if isinstance(outputs, dict) else outputs)[:, 0]:
        rows, columns = (scores > 0.5).nonzero(as_tuple=True)
        x, y = columns * 6.0, rows * 4.0  # cells of an input of 16x24
        boxes = torch.stack((x, y, x + 6, y + 4), 1)
        found.append({"boxes": boxes, "scores": scores[rows, columns], "labels": torch.zeros(len(rows)).long()})
    return found


def raw(outputs):
    return outputs["scores"] if isinstance(outputs, dict) else outputs


class Dataset:
    def __len__(self):
        return 6

    def __getitem__(self, i):
        bright = torch.zeros(16, 24)
        bright[:, : 2 * i + 2] = 1
        return bright.expand(3, 16, 24), bright.long()


class Brightness:
    def __init__(self):
        self.sum = 0.0

    def update(self, outputs, targets):
        self.sum += outputs[:, 1].sum().item() / targets.sum().item()

    def compute(self):
        return {"brightness": self.sum}
'''
INPUT = ("--input-size", "16x24", "--mean", "0,0,0", "--std", "1,1,1")


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "task_code.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def segmenter(code: Path) -> list[str]:
    return ["--model", f"{code}:Segmenter", *INPUT]


@pytest.fixture
def detector(code: Path) -> list[str]:
    return ["--model", f"{code}:Detector", *INPUT]


def pictures(folder: Path, count: int = 4) -> Path:
    """Bright rectangles of 2x2 cells in dark images, with class maps (7 is void) and boxes."""
    for part in ("images", "masks", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        classes = np.zeros((16, 24), np.uint8)
        x = 6 * (i % 4)
        classes[4:8, x : x + 6] = 1
        Image.fromarray(np.repeat(classes[:, :, None] * 255, 3, 2)).save(folder / "images" / f"{i}.png")
        classes[0, 0] = 7
        Image.fromarray(classes).save(folder / "masks" / f"{i}.png")
        (folder / "labels" / f"{i}.txt").write_text(f"0 {(x + 3) / 24} {6 / 16} {6 / 24} {4 / 16}\n")
    return folder


def noise(folder: Path) -> Path:
    """Four images without labels."""
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def measured(genie: Callable[..., Any], *args: object) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(genie("evaluate", *args, "--json").stdout)
    return figures


def quantized(genie: Callable[..., Any], model: list[str], images: object, out: str = "quantized") -> Path:
    bits = ("--preset", "minmax", "--weight-bits", 8, "--activation-bits", 8)
    genie("quantize", *model, "--images", images, *bits, "--out", out)
    return Path(out)


def test_segmentation_of_float_and_quantized(genie: Any, segmenter: list[str], tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    folder_of_student = quantized(genie, segmenter, f"segmentation:{folder}")
    options = ("--data", f"segmentation:{folder}", "--ignore-class", 7)
    figures = measured(genie, *segmenter, "--quantized", folder_of_student, *options)
    assert list(figures) == [
        "model", "metric", "num_images", "miou", "pixel_accuracy", "teacher_miou", "drop", "teacher_pixel_accuracy",
        "drop_pixel_accuracy", "agreement", "per_class", "preset", "protocol", "weight_bits", "activation_bits",
        "num_bytes", "quantized_sha256",
    ]  # fmt: skip
    teacher = measured(genie, *segmenter, *options)
    assert (figures["metric"], figures["num_images"]) == ("segmentation", 4)
    assert figures["teacher_miou"] == teacher["miou"] and teacher["miou"] > 80
    assert figures["drop"] == pytest.approx(teacher["miou"] - figures["miou"], abs=1e-6)
    assert set(figures["per_class"]) == {"0", "1"}
    shown = genie("evaluate", *segmenter, *options).stdout
    assert "miou" in shown and "IoU %" in shown
    refused = genie("evaluate", *segmenter, "--data", f"segmentation:{folder}", code=3)
    assert (
        "holds class 7 and the network's classes are 0 to 1" in refused.stderr and "--ignore-class 7" in refused.stderr
    )


def test_detection_of_float_and_quantized(genie: Any, detector: list[str], code: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    folder_of_student = quantized(genie, detector, f"images:{folder / 'images'}")
    options = ("--data", f"detection:{folder}", "--decode", f"{code}:decode")
    result = genie("evaluate", *detector, "--quantized", folder_of_student, *options, "--json")
    figures = json.loads(result.stdout)
    assert "decoding" in result.stderr
    assert (figures["map50"], figures["teacher_map50"], figures["drop_map50"]) == (100, 100, 0)
    assert (figures["map"], figures["teacher_map"], figures["drop"]) == (100, 100, 0)
    assert figures["decode_sha256"] == hashlib.sha256(CODE.encode()).hexdigest()
    of_two = ["--model", f"{code}:detector_of_two", *INPUT]
    student_of_two = quantized(genie, of_two, f"images:{folder / 'images'}", "of_two")
    both = measured(genie, *of_two, "--quantized", student_of_two, *options)
    assert (both["map"], both["teacher_map"]) == (100, 100)
    told = genie("evaluate", *detector, "--data", f"detection:{folder}", "--decode", f"{code}:raw", code=3).stderr
    assert "takes a list with a dict per image" in told and "a tensor [4, 1, 4, 4] of float32" in told
    assert "--decode FILE.py:FUNCTION" in genie("evaluate", *detector, "--data", f"detection:{folder}", code=2).stderr


def test_fidelity_on_images_alone_and_on_synthetic_ones(genie: Any, detector: list[str], tmp_path: Path) -> None:
    folder = noise(tmp_path / "noise")
    genie("synthesize", *detector, "--n", 4, "--num-steps", 2, "--preset", "zeroq", "--out", "images.safetensors")
    student = quantized(genie, detector, "images.safetensors")
    for data in (f"images:{folder}", "images.safetensors"):
        figures = measured(genie, *detector, "--quantized", student, "--data", data)
        assert (figures["metric"], figures["num_images"], "outputs" in figures) == ("fidelity", 4, False)
        assert figures["sqnr_db"] > 20 and 0 < figures["relative_error"] < 0.1 and figures["cosine"] > 0.99
    refused = genie("evaluate", *detector, "--data", "images.safetensors", code=2).stderr
    assert "compares a network with its teacher" in refused
    other = genie("evaluate", *detector, "--data", "images.safetensors", "--input-size", 24, code=3).stderr
    assert "images of [3, 16, 24]" in other and "[3, 24, 24]" in other


def test_fidelity_of_several_outputs(genie: Any, code: Path, tmp_path: Path) -> None:
    folder = noise(tmp_path / "noise")
    model = ["--model", f"{code}:detector_of_two", *INPUT]
    student = quantized(genie, model, f"images:{folder}")
    folded = ("--folded", "--data", f"images:{folder}")
    for options, most in ((folded, 1e-4), (("--quantized", student, *folded[1:]), 0.1)):
        figures = measured(genie, *model, *options)
        assert set(figures["outputs"]) == {"scores", "extent"}
        assert figures["relative_error"] == max(each["relative_error"] for each in figures["outputs"].values()) < most
        assert "Per output" in genie("evaluate", *model, *options).stdout


def test_data_and_metric_of_the_users_own(genie: Any, segmenter: list[str], code: Path) -> None:
    data, hashed = f"{code}:Dataset", hashlib.sha256(CODE.encode()).hexdigest()
    student = quantized(genie, segmenter, data)
    with safe_open(student / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["genie"])["images_code_sha256"] == hashed
    figures = measured(genie, *segmenter, "--quantized", student, "--data", data, "--metric", f"{code}:Brightness")
    assert (figures["metric"], figures["num_images"]) == ("task_code.py:Brightness", 6)
    assert figures["data_sha256"] == figures["metric_sha256"] == hashed
    assert figures["drop"] == pytest.approx(figures["teacher_brightness"] - figures["brightness"])
    assert measured(genie, *segmenter, "--data", data)["metric"] == "segmentation"
    few = measured(genie, *segmenter, "--data", data, "--num-images", 2)
    assert few["num_images"] == 2
    told = genie("evaluate", *segmenter, "--data", data, "--num-images", 7, code=2).stderr
    assert "--num-images 7 is more than the 6 images" in told


def test_code_is_not_replaced_by_what_it_measures(genie: Any, segmenter: list[str], code: Path) -> None:
    data = ("--data", f"{code}:Dataset", "--metric", f"{code}:Brightness", "--out", code)
    other = ("--model", "digits_resnet")  # a network from elsewhere
    assert f"--out and --data are the same file {code}" in genie("evaluate", *other, *data, code=2).stderr
    assert f"--out and --model are the same file {code}" in genie("evaluate", *segmenter, *data, code=2).stderr
    images = ("--images", f"{code}:Dataset", "--performance", code)
    assert "--performance and --images are the same" in genie("quantize", *other, *images, code=2).stderr
    assert code.read_text() == CODE


def test_a_report_of_another_metric(genie: Any, segmenter: list[str], tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    student = quantized(genie, segmenter, f"segmentation:{folder}")
    options = ("--data", f"segmentation:{folder}", "--ignore-class", 7)
    Path("metrics").mkdir()
    genie("evaluate", *segmenter, "--quantized", student, *options, "--out", "metrics/net-w8a8.json")
    genie("evaluate", *segmenter, *options, "--out", "metrics/float.json")
    shown = genie("report", "metrics", "--out", "report").stdout
    assert "mIoU %" in shown and "pixels %" in shown and "top-1" not in shown
    table = Path("report/table.md").read_text()
    assert "Metric: segmentation" in table and "| drop_pixel_accuracy |" in table
    assert Path("report/table.csv").read_text().startswith("scheme,model,metric,preset,protocol,weight_bits")
    genie("report", "metrics", "--by-bits", "--out", "bits")
    assert "Mean intersection over union in %." in Path("bits/table.md").read_text()


def test_params_files_hold_metrics_too(genie: Any, code: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    Path("params.yaml").write_text(
        f"model: {{name: '{code}:Segmenter', input_size: 16x24, mean: [0, 0, 0], std: [1, 1, 1]}}\n"
        f"evaluate: {{data: 'segmentation:{folder}', ignore_class: 7, metric: segmentation}}\n"
    )
    assert measured(genie, "--params", "params.yaml")["metric"] == "segmentation"


def test_several_processes_are_refused_what_they_cannot_share() -> None:
    from types import SimpleNamespace

    from genie_cli.errors import UsageError
    from genie_cli.evaluation.metrics.choose import Metrics
    from genie_cli.evaluation.metrics.detection import Detection
    from genie_cli.evaluation.metrics.fidelity import Fidelity
    from genie_cli.stages.evaluate import _check_processes

    def check(size: int, metrics: Metrics, num_batches: int | None) -> None:
        run, samples = SimpleNamespace(workers=SimpleNamespace(size=size)), SimpleNamespace()
        samples.num_batches = lambda batch_size: num_batches
        _check_processes(run, metrics, samples)  # type: ignore[arg-type]

    detection = Metrics("detection", Detection(), None, None)
    fidelity = Metrics("fidelity", None, None, Fidelity(["output"]))
    check(1, detection, None)
    check(2, fidelity, 5)
    with pytest.raises(UsageError, match="Metric detection cannot be shared by 2 processes"):
        check(2, detection, 5)
    with pytest.raises(UsageError, match="number is not known"):
        check(2, fidelity, None)
    assert torch.is_tensor(fidelity.all()[0].counts()[0])
