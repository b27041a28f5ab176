"""Load mutated artifacts, params files and options: each must be refused with one message, or give the right result.

    python benchmarks/fuzz.py --artifacts 10000 --texts 2000 --out fuzz.json

Each mutation of an image set or a quantized folder (bytes flipped, cut, repeated or swapped, lengths and
JSON of the header changed) is loaded. An accepted file must hold the tensors that were written. Params files
and `--set` options are mutated as text and read. Every refusal must be one of genie's own errors.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from genie_cli.artifacts.images import load_images, save_images
from genie_cli.artifacts.metadata import Arithmetic, sniff
from genie_cli.artifacts.quantized_folder import load_quantized, save_quantized
from genie_cli.commands.options import given
from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig, read_params, stage_config
from genie_cli.errors import GenieError
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.export import to_artifact as quantized_artifact
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import silent
from genie_cli.runtime.tensor_bytes import tensors_sha256
from genie_cli.synthesis.export import to_artifact as images_artifact
from genie_cli.synthesis.synthesize import synthesize_images

LONGEST = 10
"""Seconds after which reading one file counts as hanging."""
_WORDS = [
    *(b"null", b"-1", b"1e999", b"[]", b"{}", b"../../x", b"\xff\xfe", b"NaN", b"9" * 40),
    b'"' + b"a" * 300 + b'"',
]
"""Texts that are put into headers."""


class HangingError(Exception):
    """Reading took too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise where the body takes longer than `LONGEST`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangingError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)


def make_originals(folder: Path) -> tuple[Path, Path]:
    """A small image set and a small quantized folder of the embedded network."""
    cpu, teacher = torch.device("cpu"), load_teacher(ModelConfig(name="digits_resnet"))
    synthesis = SynthesizeConfig(num_images=4, num_steps=2)
    context = RunContext.alone(cpu, torch.float32, silent)
    arithmetic = Arithmetic(dtype="float32", kernels="a processor", deterministic=True)
    images = synthesize_images(teacher, synthesis, context).images
    save_images(folder / "images.safetensors", *images_artifact(images, [teacher], synthesis, arithmetic))
    config = QuantizeConfig(reconstruct=False, weight_bits=3)
    network = quantize_network(make_plan(teacher, config, cpu), images, context)
    image_set = load_images(folder / "images.safetensors")
    save_quantized(folder / "quantized", quantized_artifact(network, teacher, image_set, arithmetic))
    return folder / "images.safetensors", folder / "quantized"


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One mutation of a safetensors or JSON file."""
    data = bytearray(content)
    kind = draw.choice(["flip", "flip", "cut", "repeat", "swap", "length", "header", "header", "zero", "insert"])
    place = draw.randrange(len(data))
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 4, 64])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "repeat":
        data[place:place] = data[place : place + draw.randrange(1, 256)]
    elif kind == "swap":
        other = draw.randrange(len(data))
        data[place], data[other] = data[other], data[place]
    elif kind == "length":
        data[:8] = draw.choice([0, 1, len(data), 2**31, 2**63, 2**64 - 1, draw.randrange(2**20)]).to_bytes(8, "little")
    elif kind == "header":
        end = min(len(data), 8 + int.from_bytes(data[:8], "little")) if len(data) > 8 else len(data)
        start = draw.randrange(8, max(9, end))
        data[start : start + draw.randrange(1, 12)] = draw.choice(_WORDS)
        if draw.random() < 0.8:  # keep the length right, so that only the JSON is wrong
            data[:8] = max(0, end - 8 + len(data) - len(content)).to_bytes(8, "little")
    elif kind == "zero":
        data[place : place + draw.randrange(1, 512)] = bytes(min(512, len(data) - place))
    else:
        data[place:place] = draw.randbytes(draw.randrange(1, 64))
    return bytes(data)


def tried(action: Callable[[], str]) -> str:
    """The outcome of an attempt: its own result, or the way it failed."""
    try:
        with limited():
            return action()
    except GenieError as error:
        return "refused" if str(error) and "\n" not in str(error) else "refused in several lines"
    except HangingError:
        return "hung"
    except Exception as error:  # the failures that are counted
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return "traceback"


def fuzz_artifacts(folder: Path, count: int, draw: random.Random) -> Counter[str]:
    """Outcomes of `count` mutated artifacts."""
    images, quantized = make_originals(folder)
    image_content = images.read_bytes()
    files = {file.name: file.read_bytes() for file in quantized.iterdir()}
    wanted_images = tensors_sha256({"images": load_images(images).images})
    wanted_network = _network_hash(quantized)
    target, outcomes = folder / "mutated.safetensors", Counter[str]()
    for i in range(count):
        if i % 2:
            target.write_bytes(mutated(image_content, draw))

            def action() -> str:
                sniff(target)
                same = tensors_sha256({"images": load_images(target).images}) == wanted_images
                return "accepted, as written" if same else "wrong result"
        else:
            name = draw.choice(sorted(files))
            (quantized / name).write_bytes(mutated(files[name], draw))

            def action() -> str:
                sniff(quantized)
                return "accepted, as written" if _network_hash(quantized) == wanted_network else "wrong result"

        outcomes[tried(action)] += 1
        if not i % 2:
            (quantized / name).write_bytes(files[name])
    return outcomes


def _network_hash(folder: Path) -> str:
    artifact = load_quantized(folder)
    tensors = {f"parameter {name}": value for name, value in artifact.parameters.items()}
    for name, weight in artifact.weights.items():
        parts = {"codes": weight.codes, "scale": weight.scale, "zero_point": weight.zero_point}
        tensors.update({f"{name} {part}": value for part, value in parts.items()})
    steps = {name: torch.tensor(step.step_size) for name, step in artifact.activations.items()}
    return tensors_sha256({**tensors, **{f"step {name}": value for name, value in steps.items()}})


def fuzz_texts(folder: Path, count: int, draw: random.Random) -> Counter[str]:
    """Outcomes of `count` mutated params files and `--set` options."""
    original = Path(__file__).parent.parent / "params.yaml"
    content, target, outcomes = original.read_bytes(), folder / "params.yaml", Counter[str]()
    keys = [*QuantizeConfig.model_fields, "schemes", "unknown", "", "a.b"]
    python = "!!python/object:os.system x"
    values = ["1", "-1", "1e400", ".nan", "true", "[1, 2]", "{a: 1}", "'", "&a *a", python, "\0", "9" * 99]
    for i in range(count):
        if i % 2:
            target.write_bytes(mutated(content, draw))

            def action() -> str:
                read_params(target)
                return "accepted"
        else:
            setting = f"{draw.choice(keys)}{draw.choice(['=', '=', '=', '', '=='])}{draw.choice(values)}"

            def action(setting: str = setting) -> str:
                stage_config(QuantizeConfig, {}, given({}, [setting]))
                return "accepted"

        outcomes[tried(action)] += 1
    return outcomes


def main() -> int:
    """Load everything, print and write the outcomes; returns 1 if one of them is wrong."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--artifacts", type=int, default=10000)
    options.add_argument("--texts", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="JSON file to write")
    args = options.parse_args()
    draw = random.Random(args.seed)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "inside"
        folder.mkdir()
        for what, fuzz, count in (("artifacts", fuzz_artifacts, args.artifacts), ("texts", fuzz_texts, args.texts)):
            started = time.monotonic()
            rows[what] = {**fuzz(folder, count, draw), "seconds": round(time.monotonic() - started, 1)}
        outside = [path.name for path in Path(name).iterdir() if path.name != "inside"]
    for what, row in rows.items():
        sys.stdout.write(f"{what}: {', '.join(f'{outcome} {number}' for outcome, number in sorted(row.items()))}\n")
    sys.stdout.write(f"files written outside: {len(outside)}\n")
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    bad = {"wrong result", "traceback", "hung", "refused in several lines"}
    return 1 if outside or any(bad & set(row) for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
