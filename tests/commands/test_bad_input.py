"""Bad input: one message that names the thing and its mend, the right exit code, and nothing written."""

from __future__ import annotations

import json
import shutil
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genie_cli.artifacts.images import load_images
from genie_cli.artifacts.metadata import serialize
from genie_cli.quantization.presets import PRESETS as QUANTIZATION_PRESETS
from genie_cli.synthesis.presets import PRESETS as SYNTHESIS_PRESETS

USAGE, INPUT, DEVICE = 2, 3, 4
DIGITS = ["--model", "digits_resnet"]
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

    def quantize(self, *args: object, model: tuple[str, ...] = ("--model", "digits_resnet")) -> list[str]:
        return ["quantize", *model, "--preset", "minmax", "--images", str(self.images), *map(str, args)]

    def own(self, name: str) -> tuple[str, str]:
        return "--model", f"{self.networks}:{name}"

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


def with_params(text: str, *args: str) -> Callable[[Place], list[str]]:
    def arguments(place: Place) -> list[str]:
        place.write("p.yaml", text)
        return [*(args or SYNTHESIZE), "--params", "p.yaml"]

    return arguments


def without_network(place: Place) -> list[str]:
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


def foreign_student(place: Place) -> list[str]:
    return ["synthesize", *place.own("other"), *GRAY, "--preset", "zaq", "--student", str(place.quantized)]


LONG = "x" * 300
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
OTHER_STATE = {"stem.weight": torch.zeros(1), "conv1.weight": torch.zeros(1)}
GRAY = ["--num-channels", "1", "--input-size", "16", "--mean", "0.3", "--std", "0.3"]
MISSING = "missing/out.safetensors"

CASES = [
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
    case("mean without numbers", USAGE, [*SYNTHESIZE, "--mean", "half"], "mean = 'half'", "number"),
    case("mean that is not finite", USAGE, [*SYNTHESIZE, "--mean", "nan"], "mean = 'nan'", "finite"),
    case("std of zero", USAGE, [*SYNTHESIZE, "--std", "0"], "--std must be positive", "0"),
    case("tiny input", USAGE, [*SYNTHESIZE, "--input-size", "4"], "input_size = 4", "8"),
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
    case("weights that are code", INPUT, with_weights("w.pth", {"conv1.weight": Path("x")}), "more than plain tensors"),
    case("weights that are a list", INPUT, with_weights("w.pth", [1, 2]), "does not hold a state dict"),
    case("truncated weights", INPUT, with_weights("w.pth", b"PK\x03\x04 cut off"), "w.pth cannot be read"),
    case("truncated safetensors", INPUT, with_weights("w.safetensors", b"\x40\0\0\0\0\0\0\0{"),
         "w.safetensors cannot be read"),
    case("empty weights", INPUT, with_weights("w.safetensors", b""), "w.safetensors cannot be read"),
    # --- budgets and recipes
    case("one image", USAGE, ["synthesize", *DIGITS, "--n", "1"], "num_images = 1", "greater than or equal to 2"),
    case("memory limit in fruit", USAGE, lambda p: p.quantize("--memory-limit", "2 bananas"),
         "memory_limit = '2 bananas'", "2GiB"),
    case("no memory", USAGE, lambda p: p.quantize("--memory-limit", "0"), "memory_limit = '0'", "1"),
    case("memory limit that is a truth", USAGE, lambda p: p.quantize("--set", "memory_limit=true"), "True", "2GiB"),
    case("one weight bit", USAGE, lambda p: p.quantize("--weight-bits", 1), "weight_bits = 1", "2"),
    case("nine weight bits", USAGE, lambda p: p.quantize("--weight-bits", 9), "weight_bits = 9", "8"),
    case("nine activation bits", USAGE, lambda p: p.quantize("--activation-bits", 9), "activation_bits = 9", "8"),
    case("nine bits to inspect", USAGE, ["inspect", "digits_resnet", "--weight-bits", "9"], "weight_bits = 9", "8"),
    case("no steps", USAGE, ["synthesize", *DIGITS, "--num-steps", "0"], "num_steps = 0", "1"),
    case("no steps to quantize", USAGE, lambda p: p.quantize("--num-steps", 0), "num_steps = 0", "1"),
    case("batch of one", USAGE, [*SYNTHESIZE, "--batch-size", "1"], "batch_size = 1", "2"),
    case("negative seed", USAGE, [*SYNTHESIZE, "--seed", "-1"], "seed = -1", "0"),
    case("unknown precision", USAGE, [*SYNTHESIZE, "--precision", "fp16"], "precision = 'fp16'", "'bf16'"),
    case("unknown synthesis preset", USAGE, [*SYNTHESIZE, "--preset", "gene"], "'gene'", "Did you mean 'genie'?"),
    case("unknown preset", USAGE, lambda p: p.quantize("--preset", "min-max"), "'min-max'", "Did you mean 'minmax'?"),
    case("unknown protocol", USAGE, lambda p: p.quantize("--protocol", "qdop"), "'qdop'", "Did you mean 'qdrop'?"),
    case("unknown protocol to inspect", USAGE, ["inspect", "digits_resnet", "--protocol", "brecq"], "'brecq'", "ait"),
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
         "latents = 'learned'", "--no-generator"),
    case("sampled latents of zeroq", USAGE, [*SYNTHESIZE, "--preset", "zeroq", "--latents", "sampled"],
         "latents = 'sampled'", "generator"),
    case("classes without a generator", USAGE, [*SYNTHESIZE, "--preset", "gdfq", "--no-generator", "--set",
         "latents=null"],
         "conditioning = 'label'", "--no-generator"),
    case("unknown latents", USAGE, [*SYNTHESIZE, "--latents", "drawn"], "latents = 'drawn'", "'learned' or 'sampled'"),
    case("margins crossed", USAGE, [*SYNTHESIZE, "--set", "margin_low=0.9"], "margin_low = 0.9", "margin_high = 0.8"),
    case("mixmix of one network", USAGE, [*SYNTHESIZE, "--preset", "mixmix"], "'mixmix'", "--model"),
    case("zaq without a student", USAGE, [*SYNTHESIZE, "--preset", "zaq"], "discrepancy_weight", "--student"),
    case("student that is not used", USAGE, lambda p: [*SYNTHESIZE, "--student", str(p.quantized)],
         "student = ", "discrepancy_weight"),
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
         "'digits_resnet' takes 1 channel(s) of 16", "networks.py:color' 3 of 224", "--input-size"),
    case("second network without batch norm", INPUT,
         lambda p: ["synthesize", *p.own("color"), *p.own("squeeze"), "--input-size", "32"],
         "no batch-norm layers", "real ones"),
    case("unknown rounding", USAGE, lambda p: p.quantize("--rounding", "up"), "rounding = 'up'", "'adaquant'"),
    case("unknown unit", USAGE, lambda p: p.quantize("--unit", "channel"), "unit = 'channel'", "'network'"),
    case("unknown loss", USAGE, lambda p: p.quantize("--set", "loss=huber"), "loss = 'huber'", "'squared' or 'kl'"),
    case("kl of blocks", USAGE, lambda p: p.quantize("--set", "loss=kl"), "loss = 'kl'", "unit = 'network'", "'block'"),
    case("ait by layer", USAGE, lambda p: p.quantize("--preset", "ait", "--unit", "layer"), "'kl'", "'layer'"),
    case("nothing to learn", USAGE,
         ["quantize", *DIGITS, "--rounding", "nearest", "--set", "activation_step_lr=0"], "leaves nothing to learn"),
    case("drops above one", USAGE, lambda p: p.quantize("--drop-prob", 1.5), "drop_prob = 1.5", "1"),
    case("negative weight of rounding", USAGE, lambda p: p.quantize("--round-weight", -1), "round_weight = -1", "0"),
    case("holdout of everything", USAGE, lambda p: p.quantize("--holdout", 1), "holdout = 1", "less than 1"),
    case("negative holdout", USAGE, lambda p: p.quantize("--holdout", -0.1), "holdout = -0.1", "0"),
    # --- the params file
    case("unknown section", USAGE, with_params("synthesise: {}"),
         "'synthesise'", "p.yaml", "Did you mean 'synthesize'?"),
    case("unknown key", USAGE, with_params("synthesize: {steps: 5}"), "'steps'", "'synthesize'", "'num_steps'"),
    case("section without keys", USAGE, with_params("synthesize: 5"), "'synthesize' of p.yaml", "it holds 5"),
    case("wrong type", USAGE, with_params("synthesize: {latent_dim: many}"), "latent_dim = 'many'", "valid integer"),
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
    case("folder of another teacher", INPUT,
         lambda p: ["evaluate", *p.own("other"), *GRAY, "--data", "digits", "--quantized", str(p.quantized)],
         "made for 'digits_resnet'", "networks.py:other", "--weights"),
    case("teacher and student", USAGE, lambda p: [*EVALUATE, "--folded", "--quantized", str(p.quantized)],
         "--folded", "--quantized", "one of them"),
    case("damaged folder to inspect", INPUT, with_quantized(spoil_metadata, "inspect"), "bad", "metadata"),
    case("damaged folder to inspect as JSON", INPUT, with_quantized(spoil_metadata, "inspect", "--json"), "metadata"),
    case("folder of something else to inspect", INPUT, ["inspect", "."], "no quantized network"),
    case("missing artifact to inspect", INPUT, ["inspect", "no.safetensors"], "no.safetensors does not exist"),
    # --- labelled images
    case("no data", USAGE, ["evaluate", *DIGITS], "No data is named", "--data"),
    case("unknown data", USAGE, ["evaluate", *DIGITS, "--data", "digit"], "'digit'", "Did you mean 'digits'?"),
    case("missing data folder", INPUT, ["evaluate", *DIGITS, "--data", "imagefolder:no"],
         "no does not exist", "class_a"),
    case("flat data folder", INPUT, picture_folder("1.png"), "no class folders", "class_a"),
    case("two classes for ten", INPUT, picture_folder("a/1.png", "b/1.png"), "2 classes", "10"),
    case("broken picture", INPUT, broken_picture, "pictures/7/a.png", "not an image"),
    case("missing data file", INPUT, ["evaluate", *DIGITS, "--data", "no.safetensors"],
         "no.safetensors does not exist"),
    case("data file without labels", INPUT, no_labels, "'labels'"),
    case("digits for colour", INPUT, lambda p: ["evaluate", *p.own("color"), "--data", "digits"],
         "[1, 16, 16]", "[3, 224"),
    case("more data than there are", USAGE, [*EVALUATE, "--num-images", "538"], "--num-images 538", "537 images"),
    case("no data at all", USAGE, [*EVALUATE, "--num-images", "0"], "num_images = 0", "1"),
    case("resize to words", USAGE, [*EVALUATE, "--resize-size", "big"], "--resize-size 'big'", "pixels"),
    case("resize to nothing", USAGE, with_params("evaluate: {resize_size: 0}", *EVALUATE), "resize_size = 0", "1"),
    # --- outputs
    case("images into a missing folder", INPUT, [*SYNTHESIZE, "--out", MISSING], "missing does not exist", "--out"),
    case("log into a missing folder", INPUT, [*SYNTHESIZE, "--log", "no/l.csv"], "no does not exist"),
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
    # --- devices
    pytest.param(Case("", [*SYNTHESIZE, "--device", "cuda"], DEVICE, ("'cuda'", "no CUDA device", "--device cpu")),
                 id="no-cuda", marks=NO_CUDA),
    pytest.param(Case("", [*EVALUATE, "--device", "cuda:7"], DEVICE, ("'cuda:7'", "no CUDA device")),
                 id="no-eighth-cuda", marks=NO_CUDA),
    case("unknown device", USAGE, [*SYNTHESIZE, "--device", "gpu"], "'gpu'", "auto, cpu, cuda or cuda:INDEX"),
    case("device without an index", USAGE, lambda p: p.quantize("--device", "cuda:"), "'cuda:'", "cuda:INDEX"),
    # --- reports
    case("missing metrics", INPUT, ["report", "no.json"], "no.json cannot be read", "No such file"),
    case("folder without metrics", INPUT, ["report", "."], "no metrics file"),
    case("foreign metrics", INPUT, lambda p: ["report", str(p.quantized / "metrics.json")], "'top1' is missing"),
    case("metrics that are no JSON", INPUT, own_file("m.json", "report", "m.json"), "m.json is not JSON"),
    case("metrics with words for figures", INPUT, outdated_metrics, "'drop'"),
    case("metrics given twice", USAGE, metrics_twice, "metrics.json is given twice"),
    case("report over a file", INPUT,
         lambda p: [*metrics_twice(p)[:2], "--out", str(p.write("taken", "mine"))], "taken"),
    case("report into a missing folder", INPUT, lambda p: [*metrics_twice(p)[:2], "--out", "no/r"],
         "no does not exist"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input(
    case: Case,
    genie: Any,
    tree: Any,
    images: Path,
    quantized: Path,
    networks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place(Path.cwd(), images, quantized, networks, monkeypatch)
    arguments = case.arguments(place) if callable(case.arguments) else case.arguments
    shared = (place.folder, images.parent, quantized.parent, networks.parent)
    before = tree(*shared)
    result = genie(*arguments, code=None)
    assert result.exit_code == case.exit_code, result.stderr
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert [line.startswith("Error:") for line in lines].count(True) == 1
    assert "Traceback" not in result.stderr
    for fragment in case.fragments:
        assert fragment in lines[-1]
    assert result.stdout == ""
    assert tree(*shared) == before


def test_no_two_cases_share_a_name() -> None:
    names = [param.id for param in CASES]
    assert len(set(names)) == len(names)
