"""Bad input: one message that names the thing and its fix, the right exit code, and nothing written."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genie_cli.artifacts.images import load_images
from genie_cli.artifacts.metadata import serialize
from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import GenieError
from genie_cli.models import zoo
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.presets import PRESETS as QUANTIZATION_PRESETS
from genie_cli.runtime.distribution import Workers
from genie_cli.student.protocol import PROTOCOLS
from genie_cli.synthesis.presets import PRESETS as SYNTHESIS_PRESETS
from genie_cli.work.lock import locked

USAGE, INPUT, DEVICE = 2, 3, 4
DIGITS = ["--model", "digits_resnet"]
COMMANDS = (
    "synthesize", "quantize", "evaluate", "inspect", "models", "presets", "config", "report", "verify", "clean",
)  # fmt: skip
SYNTHESIZE = ["synthesize", *DIGITS, "--n", "4", "--num-steps", "1"]
EVALUATE = ["evaluate", *DIGITS, "--data", "digits"]


@dataclass(frozen=True)
class Place:
    """Where a case runs: its working folder, and the files that a session shares."""

    folder: Path
    images: Path
    quantized: Path
    networks: Path
    monkeypatch: pytest.MonkeyPatch
    held: ExitStack

    def quantize(self, *args: object, model: tuple[str, ...] = ("--model", "digits_resnet")) -> list[str]:
        return ["quantize", *model, "--preset", "minmax", "--images", str(self.images), *map(str, args)]

    def own(self, name: str) -> tuple[str, str]:
        return "--model", f"{self.networks}:{name}"

    def during(self, manager: AbstractContextManager[Any]) -> None:
        """Stay inside `manager` until the case is over."""
        self.held.enter_context(manager)

    def write(self, name: str, content: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@dataclass(frozen=True)
class Case:
    name: str
    arguments: list[str] | Callable[[Place], list[str]]
    exit_code: int
    fragments: tuple[str, ...]


def case(name: str, exit_code: int, arguments: Any, *fragments: str) -> Any:
    return pytest.param(Case(name, arguments, exit_code, fragments), id=name.replace(" ", "-"))


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> Iterator[None]:
    """Networks are captured once for all cases: that takes most of a case's time."""
    known: dict[tuple[str, InputSpec, str], Teacher] = {}

    def remembered(name: str, network: torch.nn.Module, spec: InputSpec) -> Teacher:
        key = (name, spec, state_sha256(network))
        if key not in known:
            known[key] = make_teacher(name, network, spec)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "make_teacher", remembered)
        yield


def with_params(text: str, *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        place.write("p.yaml", text)
        return [*(args or SYNTHESIZE), "--params", "p.yaml"]

    return arguments


def without_network(place: Place) -> list[str]:
    (place.folder.parent / "torch/hub/checkpoints").mkdir(parents=True)  # torch makes its cache before it asks

    def urlopen(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    place.monkeypatch.setattr("torch.hub.urlopen", urlopen)
    return ["synthesize", "--model", "resnet18"]


def with_weights(name: str, content: Any, *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        path = place.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".pth":
            torch.save(content, path)
        else:
            save_file(content, path)
        return [*(args or SYNTHESIZE), "--weights", name]

    return arguments


def with_images(change: Callable[[Path], None]) -> Callable[[Place], list[str]]:
    """Quantize on a copy of the image set that `change` has spoilt."""

    def arguments(place: Place) -> list[str]:
        copy = place.folder / "bad.safetensors"
        shutil.copy(place.images, copy)
        change(copy)
        return ["quantize", *DIGITS, "--images", copy.name]

    return arguments


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def put_nan(path: Path) -> None:
    loaded = load_images(path)
    tensor = loaded.images.clone()
    tensor[0, 0, 0, 0] = float("nan")
    path.write_bytes(serialize({"images": tensor}, loaded.metadata))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def with_quantized(change: Callable[[Path], Any], *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        shutil.copytree(place.quantized, place.folder / "bad")
        change(place.folder / "bad")
        return [*(args or (*EVALUATE, "--quantized")), "bad"]

    return arguments


def spoil_metadata(folder: Path) -> None:
    path = folder / "weights.safetensors"
    loaded = json.dumps({"kind": "quantized_weights", "format_version": 1, "weights": 5})
    save_file({"a": torch.zeros(1)}, path, {"genie": loaded})


def with_bits(command: list[str], *options: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        return [*command, *(["--images", str(place.images)] if command[0] == "quantize" else []), *options]

    return arguments


def picture_folder(*names: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        for name in names:
            path = place.write(f"pictures/{name}")
            Image.new("L", (20, 20)).save(path)
        return ["evaluate", *DIGITS, "--data", "imagefolder:pictures"]

    return arguments


def broken_picture(place: Place) -> list[str]:
    arguments = picture_folder(*(f"{digit}/a.png" for digit in range(10)))(place)
    place.write("pictures/7/a.png", b"no picture")
    return arguments


def foreign_output(place: Place) -> list[str]:
    place.write("out/notes.txt", "mine")
    return place.quantize("--out", "out")


def own_file(name: str, *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        place.write(name, "mine")
        return list(args)

    return arguments


def json_of_something_else(place: Place) -> list[str]:
    place.write("x.json", json.dumps({"a": 1}))
    return ["inspect", "x.json"]


def outdated_metrics(place: Place) -> list[str]:
    place.write("metrics.json", json.dumps({"top1": 90.0, "drop": "much"}))
    return ["report", "metrics.json"]


def metrics_twice(place: Place) -> list[str]:
    place.write("metrics.json", json.dumps({"top1": 90.0}))
    return ["report", "metrics.json", "./metrics.json"]


def no_labels(place: Place) -> list[str]:
    return ["evaluate", *DIGITS, "--data", str(place.images)]


def replaced_weights(place: Place) -> list[str]:
    return [*with_weights("w.safetensors", {"a": torch.zeros(1)})(place), "--out", "./w.safetensors"]


def replaced_weights_of_another(place: Place) -> list[str]:
    path = place.write("w.safetensors", "mine")
    return [*SYNTHESIZE, *DIGITS, "--weights", "default", "--weights", path.name, "--out", "./w.safetensors"]


def real_images(shape: tuple[int, ...], *args: str) -> Callable[[Place], list[str]]:
    """Quantize on a file of three real images."""

    def arguments(place: Place) -> list[str]:
        save_file({"images": torch.zeros(3, *shape, dtype=torch.uint8)}, place.folder / "real.safetensors")
        return ["quantize", *DIGITS, "--images", "real.safetensors", *args]

    return arguments


def of_some_classes(*args: str, dtype: torch.dtype = torch.int64, label: int = 0) -> Callable[[Place], list[str]]:
    """Evaluate on a file of ten images, nine of class 0."""

    def arguments(place: Place) -> list[str]:
        labels = torch.tensor([0] * 9 + [label]).to(dtype)
        save_file({"images": torch.zeros(10, 1, 16, 16, dtype=torch.uint8), "labels": labels}, "data.safetensors")
        return ["evaluate", *DIGITS, "--data", "data.safetensors", *args]

    return arguments


def from_the_future(path: Path) -> None:
    content, count = re.subn(rb'(format_version\\":\s*)2', rb"\g<1>9", path.read_bytes())
    assert count == 1
    path.write_bytes(content)


def of_another_run(folder: Path) -> None:
    path = folder / "step_sizes.safetensors"
    content, count = re.subn(rb'(seed\\":\s*)0', rb"\g<1>7", path.read_bytes())
    assert count
    path.write_bytes(content)


def of_other_answers(folder: Path) -> None:
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    name = next(key for key in metrics if "probe" in key)
    metrics[name] = {output: [-value for value in values] for output, values in metrics[name].items()}
    path.write_text(json.dumps(metrics))


def spoilt_state(change: Callable[[dict[str, torch.Tensor]], Any], *args: str) -> Callable[[Place], list[str]]:
    """A command on the digits network's own weights, of which some are changed."""

    def arguments(place: Place) -> list[str]:
        state = zoo.load_architecture(ModelConfig(name="digits_resnet")).state_dict()
        change(state)
        return with_weights("w.safetensors", state, *args)(place)

    return arguments


def locked_output(*args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        place.during(locked(place.folder / args[-1]))
        return list(args)

    return arguments


class Agreeing(Workers):
    """Processes of which this one speaks for all."""

    def agree(self, error: GenieError | None) -> None:
        if error is not None:
            raise error


def of_many_processes(size: int, *args: str) -> Callable[[Place], list[str]]:
    """Quantize as the first of several processes."""

    @contextmanager
    def joined(device: torch.device) -> Iterator[Workers]:
        yield Agreeing(0, size)

    def arguments(place: Place) -> list[str]:
        place.monkeypatch.setattr("genie_cli.commands.running.joined_workers", joined)
        return place.quantize(*args)

    return arguments


def with_environment(**variables: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        for name, value in variables.items():
            place.monkeypatch.setenv(name, value)
        return [*EVALUATE]

    return arguments


def runs(*args: str, **bits: tuple[int, int]) -> Callable[[Place], list[str]]:
    """Report on runs: name -> bits of weights and activations."""

    def arguments(place: Place) -> list[str]:
        for name, (weight_bits, activation_bits) in bits.items():
            figures = {"top1": 80.0, "weight_bits": weight_bits, "activation_bits": activation_bits}
            place.write(f"m/{name.replace('_', '-')}.json", json.dumps(figures))
        return ["report", "m", *args]

    return arguments


def over_its_weights(option: str, *args: str) -> Callable[[Place], list[str]]:
    """A command whose `option` is its file of weights."""

    def arguments(place: Place) -> list[str]:
        place.write("w.safetensors", "mine")
        return [*args, "--weights", "w.safetensors", option, "./w.safetensors"]

    return arguments


def over_its_images(place: Place) -> list[str]:
    shutil.copy(place.images, "mine.safetensors")
    return ["quantize", *DIGITS, "--images", "mine.safetensors", "--performance", "mine.safetensors"]


def truncated_data(place: Place) -> list[str]:
    arguments = of_some_classes()(place)
    cut(place.folder / arguments[-1])
    return arguments


def over_its_data(place: Place) -> list[str]:
    return [*of_some_classes()(place), "--out", "data.safetensors"]


def plugged(name: str, *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        term = "@genie_cli.synthesis_term('tv')\ndef tv(batch):\n    return batch.images.abs().mean()\n"
        place.write(name, f"import genie_cli\n\n{term}")
        return [*args, "--plugin", name, "--term", "tv=0.1"]

    return arguments


def source_file(name: str, text: str, *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        place.write(name, text)
        return ["synthesize", "--model", *args]

    return arguments


def small_picture(place: Place) -> list[str]:
    return [*picture_folder(*(f"{digit}/a.png" for digit in range(10)))(place), "--resize-size", "10"]


def empty_class(place: Place) -> list[str]:
    (place.folder / "pictures/zebra").mkdir(parents=True)
    return picture_folder("ape/a.png")(place)


def foreign_student(place: Place) -> list[str]:
    return ["synthesize", *place.own("other"), *GRAY, "--preset", "zaq", "--student", str(place.quantized)]


LONG = "x" * 300
PROGRESS = ("Note: ", "Warning: ", "Downloading: ", "evaluate: ")
"""How lines begin that tell what is done and seen, up to where it cannot go on."""
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
OTHER_STATE = {"stem.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)}
GRAY = ["--num-channels", "1", "--input-size", "16", "--mean", "0.3", "--std", "0.3"]
LEARN = ["--preset", "genie-m", "--num-steps", "1"]
MISSING = "missing/out.safetensors"

BITS = [
    ("bits of no number", ["--bits-override", "fc"], ["--bits-override 'fc' must be PATTERN=W,A", "'layer1.*=8,8'"]),
    ("bits of one number", ["--bits-override", "fc=8"], ["--bits-override 'fc=8' must be PATTERN=W,A"]),
    ("nine bits of a layer", ["--bits-override", "fc=9,4"], ["--bits-override 'fc=9,4': 9 bits are not in 2..8"]),
    ("one bit of a layer's input", ["--bits-override", "fc=4,1"], ["1 bits are not in 2..16"]),
    ("17 bits of a layer's input", ["--bits-override", "fc=4,17"], ["17 bits are not in 2..16"]),
    ("floats of an integer network", ["--protocol", "integer", "--activation-bits", "none"],
     ["Protocol 'integer' quantizes every tensor", "--activation-bits"]),
    ("a float of an integer network", ["--protocol", "integer", "--bits-override", "fc=8,none"],
     ["Protocol 'integer' quantizes every tensor", "--bits-override"]),
    ("unknown weight grid", ["--weight-grid", "signed"], ["--weight-grid 'signed'", "'symmetric'"]),
    ("bits of no layer", ["--bits-override", "fcc=8,8"], ["'fcc' matches no layer", "Did you mean 'fc'?"]),
    ("bits of nothing like a layer", ["--bits-override", "9=8,8"], ["'9' matches no layer", "genie inspect MODEL"]),
    ("second bits of no layer", ["--bits-override", "fc=8,8", "--bits-override", "layer9.*=8,8"],
     ["'layer9.*' matches no layer", "Did you mean 'layer3.0.conv2'?"]),
    ("unknown protocol that is told all", ["--protocol", "hardwar"],
     [f"Unknown protocol 'hardwar': {', '.join(PROTOCOLS)}.", "Did you mean 'hardware'?"]),
]  # fmt: skip

CASES = [
    # --- the command line itself
    *(case(f"unknown option of {command or 'genie'}", USAGE, [*filter(None, [command]), "--no-such-option"],
           "No such option: --no-such-option")
      for command in ("", *COMMANDS)),
    case("unknown command", USAGE, ["synthesise"], "No such command 'synthesise'"),
    case("number in words", USAGE, ["synthesize", "--n", "many"], "'--n'", "valid integer"),
    case("option without its value", USAGE, ["synthesize", "--n"], "'--n'", "requires an argument"),
    case("nothing to inspect", USAGE, ["inspect"], "Missing argument", "SPEC-OR-ARTIFACT"),
    case("nothing to report", USAGE, ["report"], "Missing argument", "RUN"),
    case("nothing to verify", USAGE, ["verify"], "Missing argument", "ARTIFACT"),
    case("argument too many", USAGE, ["evaluate", "extra"], "extra argument", "(extra)"),
    # --- the model
    case("no model", USAGE, ["synthesize"], "No network is named", "--model"),
    case("unknown model", USAGE, ["synthesize", "--model", "digit_resnet"],
         "Unknown model 'digit_resnet'", "genie models", "Did you mean 'digits_resnet'?"),
    case("unknown model to inspect", USAGE, ["inspect", "resnet81"], "'resnet81'", "Did you mean 'resnet18'?"),
    case("missing file of models", INPUT, ["synthesize", "--model", "net.py:make"], "net.py does not exist"),
    case("missing module of models", INPUT, ["synthesize", "--model", "no_such_module:make"], "'no_such_module'"),
    case("unknown factory", USAGE, lambda p: ["synthesize", *p.own("colour")], "'colour'", "Did you mean 'color'?"),
    case("factory that is no function", USAGE, lambda p: ["synthesize", *p.own("size")], "no factory 'size'"),
    case("factory that fails", INPUT, lambda p: ["synthesize", *p.own("broken")], "RuntimeError: out of order"),
    case("factory without a network", INPUT, lambda p: ["synthesize", *p.own("no_network")],
         "must return a torch.nn.Module", "int"),
    case("network that branches on data", INPUT, lambda p: ["inspect", f"{p.networks}:Branching"],
         "cannot be captured", "control flow"),
    case("no batch norm", INPUT, lambda p: ["synthesize", *p.own("squeeze"), "--input-size", "32"],
         "no batch-norm layers", "real ones"),
    case("input that does not go in", INPUT,
         [*SYNTHESIZE, "--num-channels", "3", "--mean", ".5,.5,.5", "--std", ".5,.5,.5"],
         "cannot be captured", "(3, 16, 16)", "--num-channels"),
    case("mean of the wrong count", USAGE, [*SYNTHESIZE, "--mean", "0.5,0.5"], "--mean", "2 value(s)", "1 channel(s)"),
    case("mean without numbers", USAGE, [*SYNTHESIZE, "--mean", "half"], "--mean 'half'", "number"),
    case("mean that is not finite", USAGE, [*SYNTHESIZE, "--mean", "nan"], "--mean 'nan'", "finite"),
    case("std of zero", USAGE, [*SYNTHESIZE, "--std", "0"], "--std must be positive", "0"),
    case("huge input", USAGE, [*SYNTHESIZE, "--input-size", "65537"], "--input-size '65537'", "1 to 65536"),
    case("no channels", USAGE, [*SYNTHESIZE, "--num-channels", "0"], "--num-channels 0", "1"),
    case("factory that fails at length", INPUT, lambda p: ["synthesize", *p.own("wordy")],
         "ValueError: no such thing: it has two lines"),
    case("file of models that is no Python", INPUT, source_file("net.py", "def make(:", "net.py:make"),
         "net.py:make", "SyntaxError"),
    case("file of models without a factory", USAGE, source_file("net.py", "", "net.py:"), "net.py", "factory"),
    case("file of models alone", USAGE, source_file("net.py", "", "net.py"), "'net.py'", "FILE.py:FACTORY"),
    case("network without outputs", INPUT, lambda p: ["inspect", f"{p.networks}:NoOutputs"],
         "returns no tensor", "of 'largest' the shape [] has no row for each image", "of 'stride' 8 is no tensor"),
    case("output of another name", USAGE, lambda p: ["inspect", f"{p.networks}:TwoOutputs", "--logits", "head.clas"],
         "Unknown output 'head.clas'", "head.cls [B, 5]", "Did you mean 'head.cls'?"),
    case("output without class scores", USAGE, lambda p: ["inspect", f"{p.networks}:TwoOutputs", "--logits", "map"],
         "--logits map", "map [B, 4, 224, 224] holds no class scores", "head.cls [B, 5]"),
    case("classes of a network without class scores", USAGE,
         lambda p: ["synthesize", *p.own("Maps"), "--input-size", "32", "--preset", "gdfq"],
         "Preset 'gdfq' with class_weight = 1, conditioning = 'label' needs class scores", "output [B, 4, 32, 32]"),
    case("smoothness of images of one row", USAGE,
         lambda p: ["synthesize", *p.own("Maps"), "--input-size", "1x32", "--set", "smoothness_weight=1"],
         "smoothness_weight = 1", "images of 1x32 have too few", "at least 3"),
    case("KL divergence without class scores", USAGE,
         lambda p: ["quantize", *p.own("Maps"), "--input-size", "32", "--preset", "ait", "--images", "digits"],
         "Preset 'ait' with loss = 'kl'", "no output of the network holds class scores", "loss=squared"),
    case("post-processing in the network", INPUT, lambda p: ["inspect", f"{p.networks}:Detector"],
         "cannot be captured", "nms", "Give genie the part before that"),
    case("layer that does not take the size", INPUT,
         lambda p: ["inspect", f"{p.networks}:Flat", "--input-size", "8x12"],
         "input (3, 8, 12)", "at layer '1' (Linear) with input [2, 288]", "--input-size"),
    case("network without layers", INPUT, lambda p: p.quantize(*GRAY, model=p.own("no_layers")),
         "no convolution or linear layer"),
    case("empty input", USAGE, [*SYNTHESIZE, "--input-size", "0x4"], "--input-size '0x4'", "1 to 65536"),
    case("input of three sides", USAGE, [*SYNTHESIZE, "--input-size", "4x4x4"], "--input-size '4x4x4'", "360x480"),
    # --- its weights
    case("no weights", INPUT, ["synthesize", "--model", "cifar_resnet20"], "comes without weights", "--weights"),
    case("no network", INPUT, without_network,
         "torch/hub/checkpoints/resnet18-f37072fd.pth", "download.pytorch.org", "--weights"),
    case("unknown weights name", USAGE, ["synthesize", "--model", "resnet18", "--weights", "IMAGENET1K_V3"],
         "'IMAGENET1K_V3'", "Did you mean 'IMAGENET1K_V"),
    case("missing weights", INPUT, [*SYNTHESIZE, "--weights", "w.pth"], "w.pth does not exist", "--weights"),
    case("folder of weights", INPUT, [*SYNTHESIZE, "--weights", ".."], "..", "--weights"),
    case("weights of another network", INPUT, with_weights("w.safetensors", OTHER_STATE),
         "'bn1.weight'", "missing", "unexpected, first 'stem.weight'", "'conv1.weight' has shape (1,)"),
    case("weights that are code", INPUT, with_weights("w.pth", {"conv1.weight": Fraction(1, 2)}),
         "more than plain tensors"),
    case("weights that are a list", INPUT, with_weights("w.pth", [1, 2]), "does not hold a state dict"),
    case("weights with NaN", INPUT, spoilt_state(lambda state: state["fc.bias"].fill_(float("nan"))),
         "w.safetensors holds NaN", "'fc.bias'"),
    case("weights of a negative variance", INPUT,
         spoilt_state(lambda state: state["bn1.running_var"].fill_(-1.0), *EVALUATE, "--folded"),
         "'bn1"),
    case("weights without a key", INPUT, spoilt_state(lambda state: state.pop("fc.bias")), "missing", "'fc.bias'"),
    case("truncated weights", INPUT, with_weights("w.pth", b"PK\x03\x04 cut off"), "w.pth cannot be read"),
    case("truncated safetensors", INPUT, with_weights("w.safetensors", b"\x40\0\0\0\0\0\0\0{"),
         "w.safetensors cannot be read"),
    case("empty weights", INPUT, with_weights("w.safetensors", b""), "w.safetensors is no file that torch.save"),
    # --- budgets and recipes
    case("more images than any disk holds", USAGE, ["synthesize", *DIGITS, "--n", str(10**12)],
         f"--num-images {10**12}", "10000000"),
    case("latents of too many numbers", USAGE, [*SYNTHESIZE, "--set", f"latent_dim={10**20}"],
         f"latent_dim = {10**20}", str(2**20)),
    case("one image", USAGE, ["synthesize", *DIGITS, "--n", "1"], "--num-images 1", "at least 2"),
    case("one image to quantize", USAGE, lambda p: p.quantize("--num-images", 1), "--num-images 1", "2"),
    case("empty batch to quantize", USAGE, lambda p: p.quantize("--batch-size", 0), "--batch-size 0", "1"),
    case("empty batch to evaluate", USAGE, [*EVALUATE, "--batch-size", "0"], "--batch-size 0", "1"),
    case("one activation bit", USAGE, lambda p: p.quantize("--activation-bits", 1), "--activation-bits 1", "2"),
    case("patience of one step", USAGE, lambda p: p.quantize("--patience", 1), "--patience 1", "2"),
    case("negative time between checkpoints", USAGE, [*SYNTHESIZE, "--checkpoint-interval", "-1"],
         "--checkpoint-interval -1.0", "0"),
    case("time between checkpoints that is no number", USAGE, [*SYNTHESIZE, "--checkpoint-interval", "nan"],
         "--checkpoint-interval nan", "finite"),
    case("seed of too many bits", USAGE, [*SYNTHESIZE, "--seed", str(2**63)], f"--seed {2**63}"),
    case("memory limit below a batch", USAGE, lambda p: p.quantize("--memory-limit", "1KiB"),
         "--memory-limit 1.00 KiB is below the ", "MiB that a step of 32 images needs", "--batch-size"),
    case("more processes than images of a step", USAGE, of_many_processes(3, *LEARN, "--batch-size", "2"),
         "3 processes share 2 images per step", "at most 2", "--batch-size"),
    case("more processes than images", USAGE, of_many_processes(9), "9 processes share 8 images", "at most 8"),
    case("number of processes in words", USAGE, with_environment(WORLD_SIZE="two", RANK="0"),
         "WORLD_SIZE=two", "torchrun"),
    case("processes without a meeting place", USAGE, with_environment(WORLD_SIZE="2", RANK="0"),
         "no MASTER_ADDR", "torchrun"),
    case("memory limit in fruit", USAGE, lambda p: p.quantize("--memory-limit", "2 bananas"),
         "--memory-limit '2 bananas'", "2GiB"),
    case("no memory", USAGE, lambda p: p.quantize("--memory-limit", "0"), "--memory-limit '0'", "1"),
    case("memory limit that is a truth", USAGE, lambda p: p.quantize("--set", "memory_limit=true"), "True", "2GiB"),
    case("one weight bit", USAGE, lambda p: p.quantize("--weight-bits", 1), "--weight-bits 1", "2"),
    case("nine weight bits", USAGE, lambda p: p.quantize("--weight-bits", 9), "--weight-bits 9", "8"),
    case("17 activation bits", USAGE, lambda p: p.quantize("--activation-bits", 17), "--activation-bits 17", "16"),
    case("nine bits to inspect", USAGE, ["inspect", "digits_resnet", "--weight-bits", "9"], "--weight-bits 9", "8"),
    case("no steps", USAGE, ["synthesize", *DIGITS, "--num-steps", "0"], "--num-steps 0", "1"),
    case("no steps to quantize", USAGE, lambda p: p.quantize("--num-steps", 0), "--num-steps 0", "1"),
    case("batch of one", USAGE, [*SYNTHESIZE, "--batch-size", "1"], "--batch-size 1", "2"),
    case("negative seed", USAGE, [*SYNTHESIZE, "--seed", "-1"], "--seed -1", "0"),
    case("unknown precision", USAGE, [*SYNTHESIZE, "--precision", "fp16"], "--precision 'fp16'", "'bf16'"),
    case("unknown synthesis preset", USAGE, [*SYNTHESIZE, "--preset", "gene"], "'gene'", "Did you mean 'genie'?"),
    case("unknown preset", USAGE, lambda p: p.quantize("--preset", "min-max"), "'min-max'", "Did you mean 'minmax'?"),
    case("unknown protocol", USAGE, lambda p: p.quantize("--protocol", "qdop"), "'qdop'", "Did you mean 'qdrop'?"),
    case("unknown protocol to inspect", USAGE, ["inspect", "digits_resnet", "--protocol", "brecq"], "'brecq'", "ait"),
    *(case(f"{name} to {command[0]}", USAGE, with_bits(command, *options), *fragments)
      for command in (["inspect", "digits_resnet"], ["quantize", *DIGITS])
      for name, options, fragments in BITS),
    case("bits of the params file", USAGE,
         with_params("quantize: {bits_override: {layer1.*: [9, 8]}}", "quantize", *DIGITS),
         "bits_override = {'layer1.*': [9, 8]} cannot be used", "'layer1.*' needs two numbers", "[8, 8]"),
    case("unknown scheme", USAGE, with_params("quantize: {schemes: {w4a4: {}}}", "quantize", *DIGITS,
         "--scheme", "w4a"),
         "Unknown scheme 'w4a'", "Did you mean 'w4a4'?"),
    case("scheme without a file", USAGE, lambda p: p.quantize("--scheme", "w4a4"), "Unknown scheme 'w4a4'", "none"),
    case("set without equals", USAGE, [*SYNTHESIZE, "--set", "latent_lr"], "--set 'latent_lr'", "KEY=VALUE"),
    case("set without a key", USAGE, [*SYNTHESIZE, "--set", "=3"], "--set '=3'", "KEY=VALUE"),
    case("set to no YAML", USAGE, [*SYNTHESIZE, "--set", "latent_lr=["], "--set 'latent_lr=['", "not valid YAML"),
    case("set of an unknown key", USAGE, [*SYNTHESIZE, "--set", "latentlr=1"],
         "'latentlr'", "Did you mean 'latent_lr'?"),
    case("set of a wrong type", USAGE, [*SYNTHESIZE, "--set", "swing=7"], "swing = 7", "bool"),
    # --- recipes of other systems
    case("unknown synthesis preset is told all", USAGE, [*SYNTHESIZE, "--preset", "zero"],
         f"Unknown synthesis preset 'zero': {', '.join(SYNTHESIS_PRESETS)}."),
    case("unknown quantization preset is told all", USAGE, lambda p: p.quantize("--preset", "breq"),
         f"Unknown quantization preset 'breq': {', '.join(QUANTIZATION_PRESETS)}.", "Did you mean 'brecq'?"),
    case("latents without a generator", USAGE, [*SYNTHESIZE, "--no-generator", "--latents", "learned"],
         "--latents 'learned'", "--no-generator"),
    case("sampled latents of zeroq", USAGE, [*SYNTHESIZE, "--preset", "zeroq", "--latents", "sampled"],
         "--latents 'sampled'", "generator"),
    case("classes without a generator", USAGE, [*SYNTHESIZE, "--preset", "gdfq", "--no-generator", "--set",
         "latents=null"],
         "conditioning = 'label'", "--no-generator"),
    case("unknown latents", USAGE, [*SYNTHESIZE, "--latents", "drawn"], "--latents 'drawn'", "'learned' or 'sampled'"),
    case("margins crossed", USAGE, [*SYNTHESIZE, "--set", "margin_low=0.9"], "margin_low = 0.9", "margin_high = 0.8"),
    case("mixmix of one network", USAGE, [*SYNTHESIZE, "--preset", "mixmix"], "'mixmix'", "--model"),
    case("zaq without a student", USAGE, [*SYNTHESIZE, "--preset", "zaq"],
         "'zaq'", "discrepancy_weight", "--student"),
    case("discrepancy without a student", USAGE, [*SYNTHESIZE, "--set", "discrepancy_weight=1"],
         "discrepancy_weight", "--student"),
    case("student that is not used", USAGE, lambda p: [*SYNTHESIZE, "--student", str(p.quantized)],
         "--student ", "discrepancy_weight"),
    case("student that is missing", INPUT, [*SYNTHESIZE, "--preset", "zaq", "--student", "no"],
         "no does not exist", "genie quantize"),
    case("student of another teacher", INPUT, foreign_student, "made for 'digits_resnet'", "networks.py:other"),
    case("weights for some of the networks", USAGE,
         [*SYNTHESIZE, *DIGITS, *DIGITS, "--weights", "a.pth", "--weights", "b.pth"],
         "3 --model and 2 --weights", "'default'"),
    case("two weights for one network", USAGE, [*SYNTHESIZE, "--weights", "a.pth", "--weights", "b.pth"],
         "2 --weights for one network"),
    case("missing weights of the second network", INPUT,
         [*SYNTHESIZE, *DIGITS, "--weights", "default", "--weights", "w.pth"],
         "w.pth does not exist", "--weights"),
    case("unknown second network", USAGE, [*SYNTHESIZE, "--model", "digits_net"], "Unknown model 'digits_net'"),
    case("second network of other inputs", INPUT, lambda p: [*SYNTHESIZE, *p.own("color")],
         "'digits_resnet' takes 1 channel(s) of 16x16", "networks.py:color' 3 of 224x224", "--input-size"),
    case("second network without batch norm", INPUT,
         lambda p: ["synthesize", *p.own("color"), *p.own("squeeze"), "--input-size", "32"],
         "no batch-norm layers", "real ones"),
    case("unknown rounding", USAGE, lambda p: p.quantize("--rounding", "up"), "Unknown rounding 'up'", "adaquant"),
    case("unknown unit", USAGE, lambda p: p.quantize("--unit", "channel"), "--unit 'channel'", "'network'"),
    case("unknown loss", USAGE, lambda p: p.quantize("--set", "loss=huber"), "loss = 'huber'", "'squared' or 'kl'"),
    case("kl of blocks", USAGE, lambda p: p.quantize("--set", "loss=kl"), "loss = 'kl'", "unit = 'network'", "'block'"),
    case("ait by layer", USAGE, lambda p: p.quantize("--preset", "ait", "--unit", "layer"), "'kl'", "'layer'"),
    case("nothing to learn", USAGE,
         ["quantize", *DIGITS, "--rounding", "nearest", "--set", "activation_step_lr=0"], "leaves nothing to learn"),
    case("mixmix of unlike networks", INPUT, lambda p: [*SYNTHESIZE, *p.own("color"), "--preset", "mixmix"],
         "'digits_resnet' takes 1 channel(s) of 16x16", "networks.py:color' 3 of 224x224", "--input-size"),
    case("damaged student", INPUT,
         with_quantized(lambda f: cut(f / "weights.safetensors"), *SYNTHESIZE, "--preset", "zaq", "--student"),
         "bad/weights.safetensors", "truncated"),
    case("no images without batch norm", INPUT,
         lambda p: ["quantize", *p.own("squeeze"), "--input-size", "32", "--preset", "dfq"],
         "range of ", "--preset minmax"),
    case("holdout that leaves nothing", USAGE, lambda p: p.quantize(*LEARN, "--holdout", 0.99),
         "--holdout 0.99 of 8 image(s)", "lower it"),
    case("drops above one", USAGE, lambda p: p.quantize("--drop-prob", 1.5), "--drop-prob 1.5", "1"),
    case("negative weight of rounding", USAGE, lambda p: p.quantize("--round-weight", -1), "--round-weight -1.0", "0"),
    case("holdout of everything", USAGE, lambda p: p.quantize("--holdout", 1), "--holdout 1.0", "less than 1"),
    case("negative holdout", USAGE, lambda p: p.quantize("--holdout", -0.1), "--holdout -0.1", "0"),
    # --- the params file
    case("unknown section", USAGE, with_params("synthesise: {}"),
         "'synthesise'", "p.yaml", "Did you mean 'synthesize'?"),
    case("unknown key", USAGE, with_params("synthesize: {steps: 5}"), "'steps'", "'synthesize'", "'num_steps'"),
    case("section without keys", USAGE, with_params("synthesize: 5"), "'synthesize' of p.yaml", "it holds 5"),
    case("wrong type", USAGE, with_params("synthesize: {latent_dim: many}"), "latent_dim = 'many'", "valid integer"),
    case("params that are a list", USAGE, with_params("[1, 2]"), "p.yaml must hold sections", "[1, 2]"),
    case("unknown common key", USAGE, with_params("common: {sede: 3}"), "'sede'", "'common'", "Did you mean 'seed'?"),
    case("unknown key of a scheme", USAGE, with_params("quantize: {schemes: {w2: {bits: 2}}}"),
         "'bits'", "'quantize.schemes.w2'"),
    case("scheme without keys", USAGE, with_params("quantize: {schemes: {w2: 2}}"), "'w2' of p.yaml", "it holds 2"),
    case("folder of params", INPUT, [*SYNTHESIZE, "--params", "."], "Params file . cannot be read", "directory"),
    case("broken YAML", INPUT, with_params("model: {name: ["), "p.yaml is not valid YAML", "line 1"),
    case("params that are binary", INPUT, with_weights("p.yaml.pth", b"\xff\xfe", *SYNTHESIZE,
         "--params", "p.yaml.pth"),
         "p.yaml.pth cannot be read", "UTF-8"),
    case("missing params", INPUT, [*SYNTHESIZE, "--params", "no.yaml"], "no.yaml", "No such file"),
    # --- calibration images
    case("missing images", INPUT, ["quantize", *DIGITS], "images.safetensors does not exist", "genie synthesize"),
    case("folder of images", INPUT, ["quantize", *DIGITS, "--images", "."], "is a folder", "genie synthesize"),
    case("truncated images", INPUT, with_images(cut), "bad.safetensors", "truncated"),
    case("foreign images", INPUT, with_images(lambda path: save_file({"pixels": torch.zeros(2, 1, 16, 16)}, path)),
         "safetensors file of other content", "genie synthesize"),
    case("images of a later genie", INPUT, with_images(from_the_future),
         "bad.safetensors has format version 9", "install that version or a later one"),
    case("CIFAR-10 that is not there", INPUT,
         lambda p: ["quantize", *p.own("color"), "--input-size", "32", "--images", "cifar10:."],
         "CIFAR-10 is missing or damaged in ."),
    case("flat folder of real images", INPUT,
         lambda p: ["quantize", *DIGITS, "--images", picture_folder("1.png")(p)[-1]], "no class folders", "class_a"),
    case("real image that is broken", INPUT,
         lambda p: ["quantize", *DIGITS, "--images", broken_picture(p)[-1]], "pictures/7/a.png", "not an image"),
    case("real images that are no pixels", INPUT,
         with_images(lambda path: save_file({"images": torch.zeros(2, 1, 16, 16)}, path)),
         "'images' of bad.safetensors are float32", "uint8 (0..255)"),
    case("images in a pickle", INPUT, with_images(lambda path: torch.save(torch.zeros(1), path)), "PyTorch or pickle"),
    case("images with NaN", INPUT, with_images(put_nan), "bad.safetensors", "NaN"),
    case("images with another bit", INPUT, with_images(flip_a_bit), "bad.safetensors", "hash differs"),
    case("quantized as images", INPUT, lambda p: ["quantize", *DIGITS, "--images", str(p.quantized)],
         "the folder of a quantized network", "genie synthesize"),
    case("images of other channels", INPUT, lambda p: p.quantize(model=(*p.own("color"), "--input-size", "16")),
         "1x16x16", "3x16x16"),
    case("images of another size", INPUT, lambda p: p.quantize("--input-size", 32),
         "1x16x16", "1x32x32", "--input-size"),
    case("more images than there are", USAGE, lambda p: p.quantize("--num-images", 9), "--num-images 9", "8 images"),
    case("more real images than there are", USAGE, real_images((1, 16, 16), "--num-images", "4"),
         "--num-images 4", "3 images of real.safetensors"),
    case("more digits than there are", USAGE, ["quantize", *DIGITS, "--images", "digits", "--num-images", "1261"],
         "--num-images 1261", "1260 images of digits"),
    case("real images of another size", INPUT, real_images((1, 8, 8)), "[1, 8, 8]", "[1, 16, 16]"),
    case("real images of other channels", INPUT, real_images((3, 16, 16)), "[3, 16, 16]", "[1, 16, 16]"),
    case("one real image without a batch", INPUT, real_images(()), "real.safetensors holds images [3]", "uint8 [n,"),
    case("missing folder of real images", INPUT, ["quantize", *DIGITS, "--images", "imagefolder:no"],
         "no does not exist", "class_a"),
    case("real images without a place", USAGE, ["quantize", *DIGITS, "--images", "imagefolder:"],
         "It is written imagefolder:PATH."),
    case("CIFAR-10 for digits", INPUT, ["quantize", *DIGITS, "--images", "cifar10:."], "[3, 32, 32]", "[1, 16, 16]"),
    case("name that is too long", INPUT, ["quantize", *DIGITS, "--images", LONG], LONG, "File name too long"),
    # --- quantized folders
    case("missing folder", INPUT, [*EVALUATE, "--quantized", "no"], "no does not exist", "genie quantize"),
    case("file for a folder", INPUT, lambda p: [*EVALUATE, "--quantized", str(p.images)],
         "is a file", "genie quantize"),
    case("folder that is empty", INPUT, [*EVALUATE, "--quantized", "."], "lacks weights.safetensors"),
    case("truncated weights in a folder", INPUT, with_quantized(lambda f: cut(f / "weights.safetensors")),
         "bad/weights.safetensors", "truncated"),
    case("truncated metrics in a folder", INPUT, with_quantized(lambda f: cut(f / "metrics.json")),
         "bad/metrics.json is not valid JSON"),
    case("folder without step sizes", INPUT, with_quantized(lambda f: (f / "step_sizes.safetensors").unlink()),
         "lacks step_sizes.safetensors"),
    case("folder of two runs", INPUT, with_quantized(of_another_run), "bad mixes two runs", "genie quantize"),
    case("folder of a later genie", INPUT, with_quantized(lambda f: from_the_future(f / "weights.safetensors")),
         "bad/weights.safetensors has format version 9", "install that version or a later one"),
    case("folder with another bit", INPUT, with_quantized(lambda f: flip_a_bit(f / "weights.safetensors")),
         "bad/weights.safetensors", "hash differs"),
    case("folder of another teacher", INPUT,
         lambda p: ["evaluate", *p.own("other"), *GRAY, "--data", "digits", "--quantized", str(p.quantized)],
         "made for 'digits_resnet'", "networks.py:other", "--weights"),
    case("teacher and student", USAGE, lambda p: [*EVALUATE, "--folded", "--quantized", str(p.quantized)],
         "--folded", "--quantized", "one of them"),
    case("damaged folder to inspect", INPUT, with_quantized(spoil_metadata, "inspect"), "bad", "metadata"),
    case("damaged folder to inspect as JSON", INPUT, with_quantized(spoil_metadata, "inspect", "--json"), "metadata"),
    case("folder of something else to inspect", INPUT, ["inspect", "."], "no quantized network"),
    case("missing metrics to inspect", INPUT, ["inspect", "no.json"], "no.json cannot be read"),
    case("JSON of something else to inspect", INPUT, json_of_something_else,
         "x.json is JSON, and none of the files", "genie evaluate"),
    case("missing artifact to inspect", INPUT, ["inspect", "no.safetensors"], "no.safetensors does not exist"),
    # --- verification
    case("missing artifact to verify", INPUT, ["verify", "no.safetensors"], "no.safetensors does not exist"),
    case("something else to verify", INPUT, ["verify", "."], "no quantized network"),
    case("images with another bit to verify", INPUT, lambda p: ["verify", with_images(flip_a_bit)(p)[-1]],
         "bad.safetensors", "hash differs"),
    case("folder with another bit to verify", INPUT,
         with_quantized(lambda f: flip_a_bit(f / "step_sizes.safetensors"), "verify"),
         "bad/step_sizes.safetensors", "hash differs"),
    case("folder to verify against another teacher", INPUT,
         lambda p: ["verify", str(p.quantized), *p.own("other"), *GRAY],
         "made for 'digits_resnet'", "networks.py:other"),
    case("folder of other answers", INPUT, with_quantized(of_other_answers, "verify", *DIGITS),
         "'s output for a fixed input differs", "genie quantize"),
    case("folder to verify against an unknown model", USAGE,
         lambda p: ["verify", str(p.quantized), "--model", "digits"], "Unknown model 'digits'"),
    # --- labelled images
    case("no data", USAGE, ["evaluate", *DIGITS], "No data is named", "--data"),
    case("unknown data", USAGE, ["evaluate", *DIGITS, "--data", "digit"], "'digit'", "Did you mean 'digits'?"),
    case("missing data folder", INPUT, ["evaluate", *DIGITS, "--data", "imagefolder:no"],
         "no does not exist", "class_a"),
    case("flat data folder", INPUT, picture_folder("1.png"), "no class folders", "class_a"),
    case("class without pictures", INPUT, empty_class, "Class folders without images in pictures: zebra"),
    case("picture that is too small", INPUT, small_picture, "pictures/0/a.png is 20x20", "16x16", "resize"),
    case("pictures for two channels", INPUT,
         lambda p: [*picture_folder("a/1.png")(p), "--num-channels", "2", "--mean", "0,0", "--std", "1,1"],
         "(2, 16, 16)"),
    case("label beyond the classes", INPUT, of_some_classes(label=10), "label 10", "end at label 9"),
    case("label below the classes", INPUT, of_some_classes(label=-1), "data.safetensors", "-1", "count from 0"),
    case("labels that are no numbers of classes", INPUT, of_some_classes(dtype=torch.float32),
         "'labels' of data.safetensors are float32"),
    case("truncated data file", INPUT, truncated_data,
         "data.safetensors", "truncated"),
    case("two classes for ten", INPUT, picture_folder("a/1.png", "b/1.png"), "2 classes", "10"),
    case("broken picture", INPUT, broken_picture, "pictures/7/a.png", "not an image"),
    case("missing data file", INPUT, ["evaluate", *DIGITS, "--data", "no.safetensors"],
         "no.safetensors does not exist"),
    case("images without labels for accuracy", USAGE, lambda p: [*no_labels(p), "--metric", "classification"],
         "the data have none", "--metric fidelity"),
    case("images without labels for a teacher", USAGE, no_labels, "compares a network with its teacher", "--quantized"),
    case("digits for colour", INPUT, lambda p: ["evaluate", *p.own("color"), "--data", "digits"],
         "[1, 16, 16]", "[3, 224"),
    case("more data than there are", USAGE, [*EVALUATE, "--num-images", "538"], "--num-images 538", "537 images"),
    case("no data at all", USAGE, [*EVALUATE, "--num-images", "0"], "--num-images 0", "1"),
    case("resize to words", USAGE, [*EVALUATE, "--resize-size", "big"], "--resize-size 'big'", "pixels"),
    case("resize to nothing", USAGE, with_params("evaluate: {resize_size: 0}", *EVALUATE), "resize_size = 0", "1"),
    # --- outputs
    case("images into a missing folder", INPUT, [*SYNTHESIZE, "--out", MISSING], "missing does not exist", "--out"),
    case("images into a file", INPUT, own_file("taken", *SYNTHESIZE, "--out", "taken/images.safetensors"),
         "Output folder taken does not exist"),
    case("images over a device", INPUT, [*SYNTHESIZE, "--out", "/dev/null"], "/dev/null is not a regular file"),
    case("images with a name that is too long", INPUT, [*SYNTHESIZE, "--out", LONG], "File name too long"),
    case("images that another run writes", INPUT, locked_output(*SYNTHESIZE, "--out", "busy.safetensors"),
         "busy.safetensors is being written by another run", "choose another --out"),
    case("quantized that another run writes", INPUT,
         lambda p: locked_output(*p.quantize("--out", "busy"))(p), "busy is being written by another run"),
    case("performance into a missing folder", INPUT, [*SYNTHESIZE, "--performance", "no/p.json"], "no does not exist"),
    case("performance of quantize into a missing folder", INPUT, lambda p: p.quantize("--performance", "no/p.json"),
         "no does not exist"),
    case("performance over the log", USAGE, [*SYNTHESIZE, "--log", "a", "--performance", "a"],
         "--log and --performance are the same file a"),
    case("log over the weights", USAGE, over_its_weights("--log", *SYNTHESIZE), "--log and --weights are the same"),
    case("performance over the weights", USAGE, over_its_weights("--performance", "quantize", *DIGITS),
         "--performance and --weights are the same", "choose another --performance"),
    case("performance over the images", USAGE, over_its_images, "--performance and --images are the same"),
    case("performance over the quantized folder", USAGE, lambda p: p.quantize("--out", "q", "--performance", "q"),
         "--out and --performance are the same"),
    case("performance in the quantized folder", USAGE,
         with_quantized(lambda f: None, "quantize", *DIGITS, "--performance", "bad/p.json", "--out"),
         "--performance bad/p.json is in the folder of --out"),
    case("metrics over the weights", USAGE, over_its_weights("--out", *EVALUATE), "--out and --weights are the same"),
    case("images over the network's code", USAGE, source_file("net.py", "", "net.py:make", "--out", "net.py"),
         "--out and --model are the same file net.py"),
    case("log over the network's code", USAGE, source_file("net.py", "", "net.py:make", "--log", "./net.py"),
         "--log and --model are the same file net.py"),
    case("images over the params file", USAGE, with_params("", *SYNTHESIZE, "--out", "p.yaml"),
         "--out and --params are the same file p.yaml"),
    case("metrics over the params file", USAGE, with_params("", *EVALUATE, "--out", "p.yaml"), "--out and --params"),
    case("log of quantize over the params file", USAGE,
         lambda p: with_params("", *p.quantize("--log", "p.yaml"))(p), "--log and --params"),
    case("costs over the params file", USAGE,
         with_params("", "sensitivity", *DIGITS, "--images", "digits", "--out", "p.yaml"), "--out and --params"),
    case("images over a plug-in", USAGE,
         plugged("plug.py", *SYNTHESIZE, "--out", "plug.py"), "--out and --plugin are the same file plug.py"),
    case("a key by its flag and by --set", USAGE, [*SYNTHESIZE, "--set", "num-images=7"], "'num_images', 4"),
    case("no term of the loss", USAGE, [*SYNTHESIZE, "--set", "statistics_weight=0", "--set", "image_loss_weight=0"],
         "All terms of the loss have weight 0"),
    case("pixels too far for float16", INPUT, [*SYNTHESIZE, "--std", "1.5e-5"], "float16", "image_dtype=uint8"),
    case("metrics over the data", USAGE, over_its_data, "--out and --data are the same file data.safetensors"),
    case("metrics in the quantized folder", USAGE,
         with_quantized(lambda f: None, *EVALUATE, "--out", "bad/metrics.json", "--quantized"),
         "--out bad/metrics.json is in the folder of --quantized", "choose another --out"),
    case("log in the student's folder", USAGE,
         with_quantized(lambda f: None, *SYNTHESIZE, "--preset", "zaq", "--log", "bad/l.csv", "--student"),
         "--log bad/l.csv is in the folder of --student"),
    case("log into a missing folder", INPUT, [*SYNTHESIZE, "--log", "no/l.csv"], "no does not exist", "another --log"),
    case("log over a folder", INPUT, [*SYNTHESIZE, "--log", "."], "is a folder", "give --log"),
    case("images over a folder", INPUT, [*SYNTHESIZE, "--out", "."], "is a folder", "--out"),
    case("images over their log", USAGE, [*SYNTHESIZE, "--out", "a", "--log", "./a"], "--out and --log"),
    case("images over the weights", USAGE, replaced_weights, "--out and --weights"),
    case("images over the weights of another network", USAGE, replaced_weights_of_another, "--out and --weights"),
    case("quantized into a missing folder", INPUT, lambda p: p.quantize("--out", "no/q"), "no does not exist", "--out"),
    case("quantized over a file", INPUT, own_file("taken", "quantize", *DIGITS, "--out", "taken"),
         "is a file", "--out"),
    case("quantized over a folder of others", INPUT, foreign_output, "notes.txt", "--out"),
    case("quantized over this folder", INPUT, lambda p: p.quantize("--out", "."), "current folder", "--out"),
    case("metrics into a missing folder", INPUT, [*EVALUATE, "--out", "no/m.json"], "no does not exist", "--out"),
    case("metrics over a folder", INPUT, [*EVALUATE, "--out", ".."], "is a folder", "--out"),
    # --- a file to start from
    case("section to print that is not named", USAGE, ["config"], "Missing argument", "COMMAND"),
    case("section of an unknown command", USAGE, ["config", "quantise"],
         "Unknown command 'quantise'", "synthesize, quantize, sensitivity, evaluate", "Did you mean 'quantize'?"),
    case("values of an unknown preset", USAGE, ["config", "quantize", "--preset", "breq"],
         "Unknown quantization preset 'breq'", "Did you mean 'brecq'?"),
    case("values of the other stage's preset", USAGE, ["config", "synthesize", "--preset", "minmax"],
         f"Unknown synthesis preset 'minmax': {', '.join(SYNTHESIS_PRESETS)}."),
    case("values of a preset of evaluate", USAGE, ["config", "evaluate", "--preset", "genie"],
         "genie evaluate has no presets", "leave out --preset genie"),
    # --- devices
    pytest.param(Case("", [*SYNTHESIZE, "--device", "cuda"], DEVICE, ("'cuda'", "no CUDA device", "--device cpu")),
                 id="no-cuda", marks=NO_CUDA),
    pytest.param(Case("", [*EVALUATE, "--device", "cuda:7"], DEVICE, ("'cuda:7'", "no CUDA device")),
                 id="no-eighth-cuda", marks=NO_CUDA),
    case("unknown device", USAGE, [*SYNTHESIZE, "--device", "gpu"], "'gpu'", "auto, cpu, cuda or cuda:INDEX"),
    case("device without an index", USAGE, lambda p: p.quantize("--device", "cuda:"), "'cuda:'", "cuda:INDEX"),
    # --- what is left behind
    case("missing folder to clean", INPUT, ["clean", "no"], "Folder no does not exist"),
    case("file to clean", INPUT, own_file("taken", "clean", "taken"), "taken"),
    # --- reports
    case("seeds of other bits", INPUT, runs("--over-seeds", net_seed0=(2, 4), net_seed3=(3, 4)),
         "'net-seed0' and 'net-seed3'", "their weight_bits is 2 and 3"),
    case("runs of one method and bits", INPUT, runs("--by-bits", net=(2, 4), net_w2a4=(2, 4)),
         "are both 'net' at W2A4", "rename a metrics file"),
    case("missing metrics", INPUT, ["report", "no.json"], "no.json cannot be read", "No such file"),
    case("folder without metrics", INPUT, ["report", "."], "no metrics file"),
    case("foreign metrics", INPUT, lambda p: ["report", str(p.quantized / "metrics.json")],
         "it is figures of 'genie quantize'", "--html"),
    case("metrics that are no JSON", INPUT, own_file("m.json", "report", "m.json"), "m.json is not valid JSON"),
    case("metrics with words for figures", INPUT, outdated_metrics, "'drop'"),
    case("metrics given twice", USAGE, metrics_twice, "metrics.json is given twice"),
    case("report over a file", INPUT,
         lambda p: [*metrics_twice(p)[:2], "--out", str(p.write("taken", "mine"))], "taken"),
    case("report into a missing folder", INPUT, lambda p: [*metrics_twice(p)[:2], "--out", "no/r"],
         "no does not exist"),
]  # fmt: skip


def only_message(stderr: str) -> str:
    """The one message, on one line: a line of genie's, or the box that click puts under a usage line."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if not line.startswith(PROGRESS)]
    if lines[0].startswith("Error: "):
        assert len(lines) == 1
        return lines[0]
    if lines[0].startswith("Usage: genie"):
        assert lines[1].startswith("Try 'genie ")
        lines = lines[2:]
    top, *box, bottom = lines
    assert top.startswith("╭─ Error ─") and set(bottom) == set("╰─╯")
    assert all(line.startswith("│ ") and line.endswith(" │") for line in box)
    return " ".join(" ".join(line.strip("│ ") for line in box).split())


@pytest.mark.parametrize("case", CASES)
def test_bad_input(
    case: Case,
    genie: Any,
    tree: Any,
    images: Path,
    quantized: Path,
    networks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ExitStack() as held:
        place = Place(Path.cwd(), images, quantized, networks, monkeypatch, held)
        arguments = case.arguments(place) if callable(case.arguments) else case.arguments
        shared = (tmp_path, images.parent, quantized.parent, networks.parent)
        before = tree(*shared)
        result = genie(*arguments, code=None)
        after = tree(*shared)
    assert result.exit_code == case.exit_code, result.stderr
    message = only_message(result.stderr)
    for fragment in case.fragments:
        assert fragment in message
    assert result.stdout == ""
    assert after == before


def test_no_two_cases_share_a_name() -> None:
    names = [param.id for param in CASES]
    assert len(set(names)) == len(names)
