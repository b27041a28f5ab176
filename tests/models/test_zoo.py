"""From a SPEC to a teacher: names, weights, users' factories, the input, and the download."""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import genie_cli.models
from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import GenieError, InputError, UsageError
from genie_cli.models import zoo
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import describe_input, known_names, load_architecture, load_teacher, load_untrained

DIGITS = Path(genie_cli.models.__file__).parent / "assets" / "digits_resnet.safetensors"

FACTORY = """
from dataclasses import dataclass
from torch import nn
from helper_of_{name} import CLASSES

@dataclass
class Options:
    classes: int = CLASSES

def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, Options().classes))

def broken():
    raise RuntimeError("no disk")

def number():
    return 7

constant = 3
"""


@pytest.fixture
def user_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's file beside a module that it imports; a name of its own, for modules stay imported."""
    name = "net_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(FACTORY.format(name=name))
    (tmp_path / f"helper_of_{name}.py").write_text("CLASSES = 5\n")
    return tmp_path / f"{name}.py"


# --- weights


def test_both_formats_are_the_same_teacher(tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(DIGITS)}, tmp_path / "digits.pth")
    teachers = [load_teacher(ModelConfig(weights=weights)) for weights in (None, str(tmp_path / "digits.pth"))]
    assert teachers[0].sha256 == teachers[1].sha256
    assert [teacher.num_classes for teacher in teachers] == [10, 10]
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teachers[0].graph(images), teachers[1].graph(images))
    assert load_untrained(ModelConfig()).sha256 != teachers[0].sha256
    assert load_untrained(ModelConfig(weights=str(DIGITS))).sha256 == teachers[0].sha256


def test_weights_of_another_network_name_the_file(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other.safetensors does not fit .*'fc.weight' has shape \(2, 2\)"):
        load_teacher(ModelConfig(weights=str(tmp_path / "other.safetensors")))


def test_architecture_alone_needs_no_weights() -> None:
    for depth in (20, 32, 44, 56):
        network = load_architecture(ModelConfig(name=f"cifar_resnet{depth}"))
        assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth
    with pytest.raises(InputError, match="'cifar_resnet32' comes without weights: name a file with --weights"):
        load_teacher(ModelConfig(name="cifar_resnet32"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resnet81"}, "Unknown model 'resnet81'.*Did you mean 'resnet18'"),
        ({"name": "digit_resnet"}, "Did you mean 'digits_resnet'"),
        ({"name": "cifar_resnet110"}, "Unknown model"),
        (
            {"name": "resnet18", "weights": "IMAGENET1K_V9"},
            "Unknown weights 'IMAGENET1K_V9' of 'resnet18'.*IMAGENET1K_V1",
        ),
    ],
    ids=["near name", "near embedded name", "no such depth", "weights"],
)
def test_unknown_name_has_a_hint(config: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_teacher(ModelConfig(**config))


def test_known_names_are_classifiers() -> None:
    names = known_names()
    assert names[0] == "digits_resnet"
    assert {"resnet18", "mobilenet_v2", "cifar_resnet56"} <= set(names)
    assert not [name for name in names if "fcn" in name or "raft" in name or "quantized" in name]


def test_zoo_entries_tell_origin_and_size() -> None:
    entries = {entry.name: entry for entry in zoo.zoo_entries()}
    assert list(entries) == known_names()
    assert entries["digits_resnet"].num_parameters == 77_754
    assert entries["resnet18"].num_parameters == 11_689_512
    assert entries["inception_v3"].input.size == 299
    assert entries["cifar_resnet20"].origin == "needs --weights"


# --- training-only heads


def skip_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers whose graph is the network itself."""
    monkeypatch.setattr(
        zoo, "make_teacher", lambda name, network, spec: Teacher(name, network, spec, "", None, None, 0.0)
    )


def test_auxiliary_heads_of_googlenet_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_capture(monkeypatch)
    network = load_architecture(ModelConfig(name="googlenet"))
    state = {**network.state_dict(), "aux1.fc1.weight": torch.ones(1), "aux2.conv.bn.bias": torch.ones(1)}
    torch.save(state, tmp_path / "googlenet.pth")
    loaded = load_teacher(ModelConfig(name="googlenet", weights=str(tmp_path / "googlenet.pth")))
    assert state_sha256(loaded.graph) == state_sha256(network)


def test_a_user_s_own_aux1_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_capture(monkeypatch)
    source = "from torch import nn\ndef make():\n    return nn.ModuleDict({'aux1': nn.Linear(2, 2)})\n"
    (tmp_path / "with_aux.py").write_text(source)
    state = {"aux1.weight": torch.ones(2, 2), "aux1.bias": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    config = ModelConfig(name=f"{tmp_path}/with_aux.py:make", weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(load_teacher(config).graph.state_dict()["aux1.weight"], state["aux1.weight"])


# --- users' own networks


def test_factory_in_a_file(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = (list(sys.path), sys.dont_write_bytecode)
    teacher = load_teacher(ModelConfig(name=f"{user_file}:tiny", input_size=16))
    assert teacher.name == f"{user_file.name}:tiny"
    assert teacher.num_classes == 5
    assert [layer.name for layer in weight_layers(teacher.graph)] == ["0", "5"]
    assert (list(sys.path), sys.dont_write_bytecode) == before
    assert sorted(entry.suffix for entry in user_file.parent.iterdir()) == [".py", ".py"]  # no __pycache__


def test_factory_with_a_weights_file(user_file: Path, tmp_path: Path) -> None:
    network = load_architecture(ModelConfig(name=f"{user_file}:tiny"))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher(
        ModelConfig(name=f"{user_file}:tiny", weights=str(tmp_path / "w.safetensors"), input_size=16)
    )
    assert teacher.sha256 == state_sha256(network)


def test_factory_in_a_package(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = user_file.parent / "user_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(user_file.read_text())
    monkeypatch.chdir(user_file.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    network = load_architecture(ModelConfig(name="user_package.nets:tiny"))
    assert network[-1].out_features == 5
    assert not list(user_file.parent.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("{file}:broken", InputError, "failed in broken(): RuntimeError: no disk"),
        ("{file}:number", InputError, "must return a torch.nn.Module, it returned int"),
        ("{file}:tinny", UsageError, "has no factory 'tinny'. Did you mean 'tiny'?"),
        ("{file}:constant", UsageError, "has no factory 'constant'"),
        ("{file}:", UsageError, "has no factory ''"),
        ("{folder}/none.py:tiny", InputError, "none.py does not exist"),
        ("{folder}/syntax.py:tiny", InputError, "failed while it was imported: SyntaxError"),
        ("no_such_package.nets:tiny", InputError, "'no_such_package.nets' cannot be imported"),
        (":tiny", InputError, "failed while it was imported"),
    ],
    ids=["raises", "no module", "misspelt", "not callable", "empty", "no file", "syntax", "no package", "no place"],
)
def test_factory_that_fails(spec: str, error: type[GenieError], message: str, user_file: Path) -> None:
    (user_file.parent / "syntax.py").write_text("def tiny(:\n")
    with pytest.raises(error) as raised:
        load_architecture(ModelConfig(name=spec.format(file=user_file, folder=user_file.parent)))
    assert message in str(raised.value)
    assert str(user_file.parent) not in sys.path


# --- the input


def test_input_is_what_the_configuration_says_then_the_network_then_the_zoo() -> None:
    network = nn.Identity()
    default = InputSpec(resize_size=256, interpolation="bicubic")
    assert describe_input(ModelConfig(), default, network) == default
    network.pretrained_cfg = {"input_size": (1, 28, 28), "mean": [0.1], "std": [0.3], "crop_pct": 1}
    declared = describe_input(ModelConfig(), default, network)
    assert (declared.num_channels, declared.size, declared.mean, declared.std) == (1, 28, (0.1,), (0.3,))
    assert declared.resize_size == 28  # by its share for the crop
    given = describe_input(ModelConfig(input_size=56, mean=(0.5,)), default, network)
    assert (given.size, given.mean, given.std, given.resize_size) == (56, (0.5,), (0.3,), 56)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_channels": 1}, r"--mean has 3 value\(s\) for a network of 1 channel\(s\): give --mean with 1"),
        ({"num_channels": 1, "mean": (0.5,)}, r"--std has 3 value\(s\) for a network of 1"),
        ({"std": (1.0, 1.0)}, r"--std has 2 value\(s\) for a network of 3"),
        ({"std": (1.0, 0.0, 1.0)}, "--std must be positive"),
    ],
)
def test_input_that_does_not_fit_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        describe_input(ModelConfig(**given), InputSpec(), nn.Identity())


def test_single_channel_network_of_the_user(user_file: Path) -> None:
    user_file.write_text(user_file.read_text().replace("Conv2d(3", "Conv2d(1"))
    config = ModelConfig(name=f"{user_file}:tiny", num_channels=1, mean=(0.5,), std=(0.5,), input_size=16)
    assert load_teacher(config).graph(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    with pytest.raises(InputError, match="--num-channels"):
        load_teacher(config.model_copy(update={"num_channels": None, "mean": None, "std": None}))


# --- torchvision's weights


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """No network and an empty cache; collects the socket timeouts of the attempts."""
    timeouts: list[float | None] = []

    def refuse(*_: Any, **__: Any) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return timeouts


@pytest.fixture
def cached_file(tmp_path: Path) -> Path:
    """Where torch.hub looks for the weights of squeezenet1_1."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "squeezenet1_1-b8a52dc0.pth"


@pytest.mark.parametrize("weights", [None, "IMAGENET1K_V1"])
def test_failed_download_says_where_the_file_goes(
    weights: str | None, offline: list[float | None], cached_file: Path
) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123)
    try:
        with pytest.raises(InputError) as raised:
            load_teacher(ModelConfig(name="squeezenet1_1", weights=weights))
        assert socket.getdefaulttimeout() == 123
    finally:
        socket.setdefaulttimeout(before)
    assert offline
    assert all(timeout is not None and timeout <= 60 for timeout in offline)
    for part in (str(cached_file), "--weights", "no route to host", "https://download.pytorch.org"):
        assert part in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut off"], ids=["empty", "page", "cut"])
def test_damaged_file_in_the_cache(content: bytes, offline: list[float | None], cached_file: Path) -> None:
    cached_file.write_bytes(content)
    with pytest.raises(InputError, match=f"{cached_file} does not exist or is damaged"):
        load_teacher(ModelConfig(name="squeezenet1_1"))


def test_file_in_the_cache_needs_no_network(
    offline: list[float | None], cached_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_capture(monkeypatch)
    network = load_architecture(ModelConfig(name="squeezenet1_1"))
    torch.save(network.state_dict(), cached_file)
    assert state_sha256(load_teacher(ModelConfig(name="squeezenet1_1")).graph) == state_sha256(network)
    assert not offline
    assert capfd.readouterr().out == ""


def test_network_without_published_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie_cli.models.torchvision_zoo.default_weights", lambda name: None)
    with pytest.raises(InputError, match="'squeezenet1_1' comes without weights"):
        load_teacher(ModelConfig(name="squeezenet1_1"))


# --- networks of the kit

KITS = os.environ.get("GENIE_KITS")


@pytest.mark.kit
@pytest.mark.skipif(not KITS, reason="GENIE_KITS is not set")
def test_cifar_resnet20_takes_the_kit_s_weights() -> None:
    path = Path(str(KITS)) / "cifar10" / "resnet20.safetensors"
    teacher = load_teacher(ModelConfig(name="cifar_resnet20", weights=str(path)))
    assert (teacher.input.size, teacher.num_classes) == (32, 10)
    assert len(batch_norm_sites(teacher.graph)) == 19
    deeper = load_architecture(ModelConfig(name="cifar_resnet56")).state_dict()
    assert set(load_file(path)) - {key for key in load_file(path) if "num_batches" in key} <= set(deeper)


@pytest.mark.kit
@pytest.mark.skipif(not KITS, reason="GENIE_KITS is not set")
def test_dead_channels_of_mobilenet_v1_survive_folding() -> None:
    folder = Path(str(KITS)) / "imagenet"
    before = {entry.name for entry in folder.iterdir()}
    config = ModelConfig(
        name=f"{folder}/mobilenet_v1.py:mobilenet_v1",
        weights=str(folder / "mobilenet_v1_imagenet.safetensors"),
        input_size=96,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    teacher = load_teacher(config)
    assert {entry.name for entry in folder.iterdir()} == before
    assert sum(int((site.var < 1e-10).sum()) for site in batch_norm_sites(teacher.graph)) >= 24
    images = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    logits, folded = teacher.graph(images), fold_batch_norms(teacher.graph)
    assert not folded.unfolded
    assert float((folded.graph(images) - logits).abs().max()) < 1e-3 * float(logits.max() - logits.min())
    assert float(logits.std(0).mean()) > 0.1
    weights = [get_tensor(folded.graph, layer.weight_key) for layer in weight_layers(folded.graph)]
    assert max(float(weight.abs().max()) for weight in weights) == pytest.approx(223, abs=1)  # behind a dead channel
