"""timm's networks by name: the smallest that it has, its input against timm's own transform, and what goes wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from genie_cli.app import app
from genie_cli.config import InputSpec, ModelConfig
from genie_cli.data.decode import decode_image
from genie_cli.data.normalize import normalize_pixels
from genie_cli.errors import InputError, UsageError
from genie_cli.models.network_input import describe_input
from genie_cli.models.zoo import load_teacher, load_untrained

TINY = "timm:test_resnet"


def genie(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="genie")


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"'timm:resnet18' needs .* not installed: pip install 'genie-cli\[timm\]'"):
        load_untrained(ModelConfig(name="timm:resnet18"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_resnets", "Unknown model 'timm:test_resnets'.*Did you mean 'timm:test_resnet'"),
        ("timm:test_resnet.r160_in2k", "Unknown weights 'r160_in2k' of timm's 'test_resnet': r160_in1k"),
    ],
    ids=["architecture", "tag"],
)
def test_a_name_that_timm_does_not_know(timm: Any, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_untrained(ModelConfig(name=name))


def test_weights_of_a_file_and_the_declared_input(timm: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = timm.create_model("test_resnet").eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher(ModelConfig(name=TINY, weights=str(tmp_path / "w.safetensors"), input_size=32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher.graph(images), network(images))
    assert teacher.input == InputSpec(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, resize_size=33)
    assert teacher.notes == () and teacher.warnings == ()


def test_weights_that_cannot_be_downloaded(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False) -> Any:
        if pretrained:
            raise FileNotFoundError("An error happened: no connection.\nmore")
        return create(name)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"No weights for 'timm:test_resnet'.*\(An error happened: no connection\).*--wei"
    ):
        load_teacher(ModelConfig(name=TINY))


def test_a_network_without_weights(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "list_models", lambda *args, pretrained=False: [] if pretrained else ["test_resnet"])
    with pytest.raises(InputError, match="'timm:test_resnet' comes without weights"):
        load_teacher(ModelConfig(name=TINY))


def test_names_are_listed(timm: Any) -> None:
    listed = json.loads(genie("models", "--timm", "test_res", "--json").stdout)
    assert listed == [{"name": TINY, "input": [3, 160, 160], "weights": ["r160_in1k"]}]
    assert "r160_in1k" in genie("models", "--timm", "test_resne?").stdout
    outcome = genie("models", "--timm", "no_such_thing")
    assert outcome.exit_code == 2 and "no_such_thing" in outcome.stderr


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [
        (224, 0.95, "bicubic"),
        (160, 0.95, "bilinear"),
        (96, 0.9, "bicubic"),
        (128, 1.0, "nearest"),
        (48, 0.8, "bilinear"),
    ],
)
def test_image_files_are_prepared_as_timm_does_it(
    timm: Any, size: int, crop_pct: float, interpolation: str, tmp_path: Path
) -> None:
    from timm.data import create_transform, resolve_data_config

    declared = {
        "input_size": (3, size, size),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    noise = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(noise.unsqueeze(0), (300, 410), mode="bicubic")[0].clamp(0, 1) * 255
    path = tmp_path / "image.png"
    Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(path)
    spec = describe_input(ModelConfig(), InputSpec(), SimpleNamespace(pretrained_cfg=declared))  # type: ignore[arg-type]
    found = normalize_pixels(decode_image(path, spec).unsqueeze(0), spec)[0]
    wanted = create_transform(**resolve_data_config(pretrained_cfg=declared), is_training=False)(Image.open(path))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
