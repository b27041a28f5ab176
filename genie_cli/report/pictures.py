"""The sections on images: a grid of each set, and the loss while they were made."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.picture import as_png, picture_of
from genie_cli.artifacts.pixels import pixel_statistics
from genie_cli.report import charts
from genie_cli.report.blocks import Part, Picture, Section
from genie_cli.report.collect import Found
from genie_cli.report.curves import num_drawn, thinned
from genie_cli.report.room import Room

NUM_IMAGES, _LONGEST_SIDE = 64, 96
"""Images of a set that are shown, and their pixels."""
_LARGEST_PNG = 300_000
"""Bytes; a larger picture becomes a JPEG, which noise suits better."""


def images_section(found: Found, room: Room) -> Iterator[Section]:
    """A grid of each image set."""
    pictures = []
    for name, images in found.images.items():
        picture = _picture(name, images)
        if room.take(picture.source):
            pictures.append(picture)
    left_out = len(found.images) - len(pictures)
    note = f"{left_out} more set(s) are not shown, so that the page stays small." if left_out else ""
    if found.images:
        yield Section("images", "Images", parts=[Part(note=note, images=pictures)])


def _picture(name: str, images: ImageSet) -> Picture:
    metadata = images.metadata
    num_shown = min(NUM_IMAGES, len(images))
    picture = picture_of(images, num_shown, _LONGEST_SIDE)
    content, kind = as_png(picture), "png"
    if len(content) > _LARGEST_PNG:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        content, kind = buffer.getvalue(), "jpeg"
    statistics = pixel_statistics(images)
    made = "real images" if metadata.teacher is None else f"synthesized for {metadata.teacher}"
    caption = (
        f"{name}: {num_shown} of {len(images)}, {'x'.join(map(str, images.images.shape[1:]))}, {made}; pixels from 0 "
        f"to 1: mean {', '.join(f'{value:.3f}' for value in statistics.mean)}, "
        f"std {', '.join(f'{value:.3f}' for value in statistics.std)}, {statistics.share_outside:.2%} outside"
    )
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(source, f"Grid of {num_shown} images of {name}", caption, picture.width, picture.height)


def synthesis_section(found: Found, room: Room) -> Iterator[Section]:
    """The loss of each batch, from each loss curve."""
    parts = []
    for name, batches in found.synthesis.items():
        caption = f"Loss of each batch, from {name}"
        if len(batches) > num_drawn(batches):
            caption += f" (the first {num_drawn(batches)} of {len(batches)})"
        drawing = charts.curves_chart({f"batch {n}": thinned(rows) for n, rows in batches.items()}, caption, "loss")
        if room.take(drawing):
            parts.append(Part(charts=[(drawing, caption)]))
    if parts:
        yield Section("synthesis", "Loss of the synthesis", parts=parts)
