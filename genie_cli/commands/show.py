"""``genie show``: the images of a set, as a picture and in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genie_cli.commands.options import AsJson
from genie_cli.commands.verbosity import is_quiet

if TYPE_CHECKING:
    from PIL.Image import Image

_SMALLEST = 4
"""Columns of the terminal that an image takes at least."""


def show(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="An image set of `genie synthesize`.")],
    num: Annotated[int, typer.Option("--num", min=1, help="Images to show, the first ones of the set.")] = 16,
    out: Annotated[Path | None, typer.Option("--out", help="Picture to write, as PNG.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show the images of a set: as half blocks in the terminal, and as a PNG file with --out."""
    from rich.console import Console

    from genie_cli.artifacts.images import load_images
    from genie_cli.artifacts.picture import as_png, num_columns, picture_of
    from genie_cli.commands.options import check_files
    from genie_cli.errors import UsageError
    from genie_cli.runtime.atomic import atomic_write_bytes

    console = Console()
    has_colors = console.is_terminal and console.color_system is not None
    if out is None and not has_colors and not as_json:
        raise UsageError("The output is not a terminal with colours: write a picture with --out grid.png.")
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} must end in .png: the picture is a PNG file.")
    check_files({"--out": out}, [("IMAGES", images)])
    found = load_images(images)
    num_shown = min(num, len(found))
    if has_colors and not as_json:
        side = max((console.width + 1) // num_columns(num_shown) - 1, _SMALLEST)
        _print(console.width, picture_of(found, num_shown, side))
    told = f"{num_shown} of {len(found)} images, {'x'.join(map(str, found.images.shape[1:]))}"
    if out is not None:
        atomic_write_bytes(out, as_png(picture_of(found, num_shown)))
        told = f"Written to {out}: {told}"
    if as_json:
        facts = {"images": str(images), "shape": list(found.images.shape), "shown": num_shown, "out": out and str(out)}
        typer.echo(json.dumps(facts, indent=2))
    elif not is_quiet():
        typer.echo(told, err=True)


def _print(width: int, picture: Image) -> None:
    """Two rows of pixels in each line: the upper one is the colour of a half block, the lower one its background."""
    from rich.color import Color
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    console = Console()
    pixels = picture.load()
    assert pixels is not None
    shown = range(min(picture.width, width))

    def color(column: int, row: int) -> Color | None:
        if row >= picture.height:
            return None
        value = pixels[column, row]
        assert isinstance(value, tuple)
        return Color.from_rgb(*value[:3])

    for row in range(0, picture.height, 2):
        line = Text()
        for column in shown:
            line.append("▀", Style(color=color(column, row), bgcolor=color(column, row + 1)))
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
