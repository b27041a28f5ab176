"""The library beside the commands: the same bytes, any form of networks and images, errors that name the option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import genie_cli
from genie_cli.config import ModelConfig
from genie_cli.errors import GenieError, InputError, UsageError
from genie_cli.models.digits import INPUT_SPEC, digits_resnet
from genie_cli.models.zoo import load_teacher
from genie_cli.runtime.progress import Event, Note, StageStarted
from tests.commands.conftest import run_here

SHAPE: dict[str, Any] = {
    "input_size": INPUT_SPEC.size,
    "num_channels": INPUT_SPEC.num_channels,
    "mean": INPUT_SPEC.mean,
    "std": INPUT_SPEC.std,
}
SMALL: dict[str, Any] = {"num_images": 8, "num_steps": 2, "seed": 3}
FLAGS = ("--num-steps", 2, "--seed", 3)


@pytest.fixture(scope="module")
def images() -> genie_cli.ImageSet:
    return genie_cli.synthesize("digits_resnet", **SMALL)


@pytest.fixture(scope="module")
def model(images: genie_cli.ImageSet) -> genie_cli.QuantizedModel:
    return genie_cli.quantize("digits_resnet", images, num_steps=2, seed=3)


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_commands_give_the_same_bytes(
    images: genie_cli.ImageSet, model: genie_cli.QuantizedModel, tmp_path: Path
) -> None:
    images.save(tmp_path / "own.safetensors")
    model.save(tmp_path / "own")
    run_here("synthesize", "--model", "digits_resnet", "--n", 8, *FLAGS, "--out", tmp_path / "i.safetensors")
    made = ("--images", tmp_path / "i.safetensors", "--out", tmp_path / "quantized")
    run_here("quantize", "--model", "digits_resnet", *FLAGS, *made)
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "i.safetensors").read_bytes()
    for name in ("weights.safetensors", "step_sizes.safetensors", "metrics.json"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "quantized" / name).read_bytes()


def test_a_module_is_quantized_and_left_alone(images: genie_cli.ImageSet) -> None:
    network = digits_resnet().train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    model = genie_cli.quantize(network, images, preset="minmax", **SHAPE)
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.teacher.name == "DigitsResNet"
    assert isinstance(model.module, nn.Module)
    assert model.module(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert {unit["name"] for unit in model.report["units"]}


def test_a_saved_model_is_loaded(model: genie_cli.QuantizedModel, tmp_path: Path) -> None:
    model.save(tmp_path / "quantized")
    batch = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(genie_cli.load("digits_resnet", tmp_path / "quantized")(batch), model.module(batch))


def test_what_is_done_to_the_module_changes_nothing_else(images: genie_cli.ImageSet, tmp_path: Path) -> None:
    model = genie_cli.quantize("digits_resnet", images, preset="minmax")
    before = {name: tensor.clone() for name, tensor in model.artifact.parameters.items()}
    for tensor in (*model.module.parameters(), *model.module.buffers()):
        tensor.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.artifact.parameters.items())


def test_forms_of_images_say_the_same() -> None:
    given = pixels()
    forms = [given, given.float() / 255, list(given), [(image, 0) for image in given]]
    found = [genie_cli.quantize("digits_resnet", form, preset="minmax").artifact for form in forms]
    for artifact in found[1:]:
        assert artifact.metadata.images_sha256 == found[0].metadata.images_sha256
        assert artifact.activations == found[0].activations


def test_accuracy_on_tensors_is_a_count(model: genie_cli.QuantizedModel) -> None:
    given = pixels()
    mean, std = torch.tensor(INPUT_SPEC.mean), torch.tensor(INPUT_SPEC.std)
    answers = load_teacher(ModelConfig(name="digits_resnet")).graph((given / 255 - mean) / std)
    labels = answers.argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    figures = genie_cli.evaluate("digits_resnet", (given, labels))
    assert figures["top1"] == 75.0
    beside = genie_cli.evaluate(model, (given, labels), num_images=8)
    assert beside["teacher_top1"] == 75.0
    assert beside["drop"] == pytest.approx(75.0 - beside["top1"])
    assert genie_cli.evaluate(model, given)["metric"] == "fidelity"


def test_notes_and_progress_are_reported_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    genie_cli.synthesize("digits_resnet", num_images=4, num_steps=1, report=events.append)
    assert any(isinstance(event, StageStarted) for event in events)
    assert any(isinstance(event, Note) and "the batch of 128 becomes 4" in event.message for event in events)
    assert capsys.readouterr() == ("", "")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu"),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "default dtype", "default device"],
)
def test_modes_of_the_caller_change_nothing_and_hold_afterwards(
    mode: Callable[[], Any], images: genie_cli.ImageSet, model: genie_cli.QuantizedModel, tmp_path: Path
) -> None:
    with mode():
        before = modes()
        assert genie_cli.synthesize("digits_resnet", **SMALL).sha256 == images.sha256
        own = genie_cli.quantize("digits_resnet", images, num_steps=2, seed=3)
        figures = genie_cli.evaluate(own, images)
        own.save(tmp_path / "own")
        networks = [own.module, genie_cli.load("digits_resnet", tmp_path / "own")]
        assert modes() == before
    assert figures == genie_cli.evaluate(model, images)
    inputs = images.normalized(INPUT_SPEC.mean, INPUT_SPEC.std)
    for network in networks:
        assert torch.equal(network(inputs), model.module(inputs))
        assert not any(tensor.is_inference() for tensor in network.state_dict(keep_vars=True).values())


def modes() -> tuple[Any, ...]:
    kept = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
    return *kept, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def test_a_network_of_inference_tensors_is_taken() -> None:
    with torch.inference_mode():
        network = digits_resnet()
    assert next(network.parameters()).is_inference()
    assert len(genie_cli.synthesize(network, **SMALL, **SHAPE)) == 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: genie_cli.synthesize("digits_resnet", num_image=4), UsageError, "Did you mean 'num_images'"),
        (lambda: genie_cli.synthesize("digits_resnet", out="x"), UsageError, "'out' belongs to the commands"),
        (lambda: genie_cli.synthesize(digits_resnet(), weights="x"), UsageError, "'weights' goes with a model SPEC"),
        (lambda: genie_cli.synthesize(digits_resnet(), weights_key="x"), UsageError, "'weights_key' goes with a"),
        (lambda: genie_cli.synthesize(nn.LazyConv2d(8, 3)), InputError, "has a lazy layer, whose 'weight' has no"),
        (lambda: genie_cli.synthesize("digits_resnet", num_images=1), UsageError, "num_images = 1 cannot be used"),
        (lambda: genie_cli.synthesize(3), UsageError, "a torch.nn.Module or a model SPEC"),
        (lambda: genie_cli.quantize("digits_resnet"), UsageError, "needs images"),
        (lambda: genie_cli.quantize("digits_resnet", preset="minmx"), UsageError, "Did you mean 'minmax'"),
        (lambda: genie_cli.quantize("digits_resnet", pixels()[..., :8]), InputError, r"an image of \[1, 16, 8\]"),
        (lambda: genie_cli.evaluate("digits_resnet", "digit"), UsageError, "Did you mean 'digits'"),
        (lambda: genie_cli.evaluate("digits_resnet", (pixels(), torch.zeros(3))), UsageError, "have 3 targets"),
    ],
)  # fmt: skip
def test_wrong_calls_are_told(call: Any, error: type[GenieError], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_quantized_model_is_exported(
    model: genie_cli.QuantizedModel, images: genie_cli.ImageSet, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    report = model.export(tmp_path / "model.onnx", images, min_agreement=0.5)
    assert (tmp_path / "model.onnx").stat().st_size == report["num_bytes"]
    assert report["num_images"] == 8
    with pytest.raises(UsageError, match="Did you mean 'storage'"):
        model.export(tmp_path / "other.onnx", storag="packed")
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        model.export(tmp_path / "model.bin")
