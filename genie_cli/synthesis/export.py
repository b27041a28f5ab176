"""A synthesis as the artifact that `genie synthesize` writes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genie_cli.artifacts.images import ImagesMetadata, encode_images
from genie_cli.artifacts.metadata import Arithmetic, provenance
from genie_cli.config import SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.registered import Kind, code_hashes


def recipe_hashes(config: SynthesizeConfig) -> dict[str, str | None]:
    """Hashes of the files of those parts of a recipe that the user registered."""
    terms: list[tuple[Kind, str]] = [
        ("synthesis term", name) for name, weight in (config.terms or {}).items() if weight
    ]
    return code_hashes([("synthesis preset", config.preset), *terms])


def to_artifact(
    images: Tensor,
    teachers: Sequence[Teacher],
    config: SynthesizeConfig,
    arithmetic: Arithmetic,
    student_sha256: str | None = None,
) -> tuple[Tensor, ImagesMetadata]:
    """Encoded images and their metadata.

    Args:
        images: ``[n, C, H, W]``, float32, normalised.
        teachers: the networks they were made for; they are in the normalised space of the first.
        config: how they were made.
        arithmetic: that of the work.
        student_sha256: hash of the weights file of the student that they were made with.
    """
    teacher, *others = teachers
    metadata = ImagesMetadata(
        **provenance(config.determining(), config.seed, teacher.input, teacher.name, arithmetic),
        plugins=recipe_hashes(config),
        teacher_sha256=teacher.sha256,
        other_teachers={other.sha256: other.name for other in others},
        student_sha256=student_sha256,
        num_images=len(images),
        dtype=config.image_dtype,
    )
    return encode_images(images, config.image_dtype, teacher.input), metadata
