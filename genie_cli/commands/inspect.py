"""``genie inspect``: what a model or an artifact is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.artifact_tables import by, plain, show_artifact, show_exported, show_json
from genie_cli.commands.flags import Fields, Used, takes

if TYPE_CHECKING:
    from genie_cli.quantization.plan import QuantizationPlan

_SHOWN_UNFOLDED = 5


@takes(
    Fields("model", without=("name",)),
    Fields(
        "quantize",
        only=("weight_bits", "activation_bits", "weight_grid", "protocol", "bits_override", "max_unit_layers"),
    ),
)
def inspect(
    used: Used,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SPEC-OR-ARTIFACT",
            help="A model SPEC, image set, quantized folder or file, exported file, or metrics file.",
        ),
    ],
    as_json: opt.AsJson = False,
) -> None:
    """Show a model's layers, batch norms, strided convolutions, units and bits, or what an artifact is."""
    path = Path(subject)
    if path.suffix == ".json":
        show_json(path, as_json)
        return
    if path.suffix in (".onnx", ".pt2") and path.is_file():
        show_exported(path, as_json)
        return
    if path.suffix == ".safetensors" or (_is_artifact(subject) and not _names_network(subject)):
        (show_json if _begins_as_json(path) else show_artifact)(path, as_json)
        return
    from genie_cli.commands.bits_override import override_keys
    from genie_cli.commands.describe import describe_model
    from genie_cli.commands.display import tell_of
    from genie_cli.commands.opening import step_told
    from genie_cli.config import Params, QuantizeConfig, stage_config
    from genie_cli.models.zoo import display_name, load_untrained
    from genie_cli.quantization.plan import make_plan
    from genie_cli.student.protocol import find_protocol

    config = opt.model_config(Params({}), {"name": subject, **used["model"]})
    overrides = override_keys(used["quantize"].pop("bits_override", None))
    bits = stage_config(QuantizeConfig, {}, opt.given({**used["quantize"], **overrides}))
    find_protocol(bits.protocol)
    with step_told(f"capturing {display_name(config.name)}"):
        teacher = load_untrained(config)
    tell_of(teacher)
    plan = make_plan(teacher, bits, None)
    description = describe_model(teacher, plan)
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        _show_model(description, plan)


def _is_artifact(subject: str) -> bool:
    """True for a folder, and for a file that is no code and no part of a SPEC: what it is, its content tells."""
    path = Path(subject)
    return path.is_dir() or (path.is_file() and ":" not in subject and path.suffix != ".py")


def _begins_as_json(path: Path) -> bool:
    """True if a file's first character is that of a JSON object; a tensor file begins with a length."""
    try:
        with path.open("rb") as file:
            return b"".join(file.read(64).split())[:2] in (b"{", b'{"', b"{}")
    except OSError:
        return False


def _names_network(place: str) -> bool:
    """True, with a note, if a folder or file is called as a network of ``genie models``."""
    from genie_cli.commands.display import note
    from genie_cli.models.zoo import known_names

    if place not in known_names():
        return False
    kind = "folder" if Path(place).is_dir() else "file"
    note(f"'{place}' is a network of 'genie models', which is shown, and a {kind}, which ./{place} names.")
    return True


def _show_model(description: dict[str, Any], plan: QuantizationPlan) -> None:
    from genie_cli.commands.display import rows_table, summary
    from genie_cli.config.image_size import height_and_width

    spec = description["input"]
    summary(
        description["model"],
        {
            "input": f"{by((spec['num_channels'], *height_and_width(spec['size'])))}, "
            f"mean {plain(spec['mean'])}, std {plain(spec['std'])}",
            "outputs": ", ".join(f"{output['name']} {output['shape']}" for output in description["outputs"]),
            "classes": _classes(description),
            "weights": f"{description['num_weights']:,} in {len(description['layers'])} layers",
            "protocol": description["protocol"],
        },
    )
    columns = {
        "layer": "name", "kind": "kind", "weight": "shape", "stride": "stride", "W bits": "weight_bits",
        "input site": "input_site", "A bits": "activation_bits", "batch norm": "batch_norm",
    }  # fmt: skip
    rows = [{**row, "weight_bits": _with_grid(row["weight_bits"], row["weight_grid"])} for row in description["layers"]]
    layers = [[row[key] for key in columns.values()] for row in rows]
    rows_table("Weight layers", list(columns), layers, {"W bits", "A bits"})
    others = [[site["name"], site["bits"]] for site in description["sites"] if not site["layers"]]
    if others:
        rows_table("Activations that no layer reads as they are", ["site", "A bits"], others, {"A bits"})
    tensors = ("num_inputs", "num_outputs", "num_passing")
    units = [
        [unit["name"], *(unit[key] for key in tensors), ", ".join(unit["layers"])] for unit in description["units"]
    ]
    rows_table("Reconstruction units", ["unit", "in", "out", "past", "layers"], units, {"in", "out", "past"})
    unfolded = [f"{name}: {reason}" for name, reason in list(description["unfolded"].items())[:_SHOWN_UNFOLDED]]
    moved = [f"{name} into {', '.join(into)}" for name, into in list(description["moved"].items())[:_SHOWN_UNFOLDED]]
    summary(
        "Structure",
        {
            "batch norms": len(description["batch_norms"]),
            "batch norms that moved forward": "; ".join(moved) or "none",
            "batch norms that stay, as affine maps": "; ".join(unfolded) or "none",
            "strided convolutions (swing)": ", ".join(description["strided"]) or "none",
            **({"slopes of leaky rectifiers": _slopes(description["slopes"])} if description["slopes"] else {}),
            "activation sites": len(description["sites"]),
            "quantized": plan.coverage.described(),
            "rewrites": _checks(description["checks"]),
        },
    )


def _with_grid(bits: int, grid: str) -> str:
    """The bits of a weight; the usual grid is not told."""
    return str(bits) if grid == "asymmetric" else f"{bits} {grid}"


def _slopes(slopes: list[dict[str, Any]]) -> str:
    """The number of slopes, their tensors, and their bits."""
    number = sum(math.prod(slope["shape"]) for slope in slopes)
    bits = sorted({slope["bits"] for slope in slopes})
    return f"{number:,} in {len(slopes)} tensors, {', '.join(map(str, bits))} bits each"


def _classes(description: dict[str, Any]) -> str:
    """The number of classes, and the output that holds their scores where there are several."""
    if description["logits"] is None:
        return "none: no output is taken for class scores (--logits names one)"
    where = f" in {description['logits']}" if len(description["outputs"]) > 1 else ""
    return f"{description['num_classes']}{where}"


def _checks(distances: dict[str, float]) -> str:
    """The distance of each rewrite from the network itself."""
    return ", ".join(f"{name} {distance:.1e}" for name, distance in distances.items()) + " from the network's output"
