"""``genie verify``: whether an artifact is whole, and is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes

if TYPE_CHECKING:
    from genie_cli.artifacts.metadata import ArtifactMetadata
    from genie_cli.artifacts.quantized import QuantizedArtifact


@takes(Fields("model"))
def verify(
    used: Used,
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An image set, or a quantized folder.")],
    as_json: opt.AsJson = False,
) -> None:
    """Check an artifact: schema, hashes, ranges and codes; with --model also that the network computes what it did."""
    from genie_cli.artifacts.images import load_images
    from genie_cli.artifacts.metadata import sniff
    from genie_cli.artifacts.quantized_folder import load_quantized
    from genie_cli.commands.display import summary, tell_of
    from genie_cli.commands.opening import open_network

    found = {"artifact": str(artifact)}
    if sniff(artifact)["kind"] == "images":
        images = load_images(artifact)
        found["images"] = f"{len(images)}, finite, of the recorded shape"
        found["hash"] = _hash(images.metadata.content_sha256)
        metadata: ArtifactMetadata = images.metadata
        network_sha256 = images.metadata.teacher_sha256
        made_for = {images.metadata.teacher_sha256, *images.metadata.other_teachers}
        logits = None
    else:
        quantized = load_quantized(artifact if artifact.is_dir() else artifact.parent)
        found["weights"] = f"{_counted(quantized)}, codes within their bits, scales positive"
        found["activations"] = f"{len(quantized.activations)} step sizes, positive"
        found["hash"] = _hash(quantized.metadata.content_sha256)
        metadata = quantized.metadata
        network_sha256 = quantized.metadata.network_sha256
        logits = quantized.metadata.logits
    if "name" in used["model"]:
        from genie_cli.config import Params
        from genie_cli.models.network_input import RecordedInput
        from genie_cli.student.probe import compare_with_record

        config = opt.model_config(Params({}), used["model"])
        recorded = RecordedInput(str(artifact), network_sha256, metadata.input, logits)
        teacher = open_network(config, recorded)
        tell_of(teacher)
        if "images" in found:
            matches = bool(teacher.known_sha256 & made_for)
            found["teacher"] = f"{teacher.name}: " + ("the images were made for it" if matches else "another one")
        else:
            found["outputs"] = compare_with_record(teacher, quantized)
    if as_json:
        typer.echo(json.dumps({"whole": True, **found}, indent=2))
    else:
        summary("Whole", found)


def _counted(quantized: QuantizedArtifact) -> str:
    """The numbers of layers, and of tensors of slopes where there are any."""
    num_slopes = sum(weight.axis is None for weight in quantized.weights.values())
    layers = f"{len(quantized.weights) - num_slopes} layers"
    return f"{layers} and the slopes of {num_slopes} rectifiers" if num_slopes else layers


def _hash(content_sha256: str | None) -> str:
    return "tensors are those that were written" if content_sha256 else "none recorded (an older genie wrote this)"
