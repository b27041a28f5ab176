"""Checks of what ``genie report`` reads and writes, before it does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from genie_cli.errors import InputError, UsageError

TABLES = ("table.md", "table.json", "table.csv", "figures.json")
"""The files of ``--out``."""


def check_report_files(read: Sequence[Path], html: Path | None, out: Path | None) -> None:
    """Refuse outputs that cannot be written, or that would replace one another or a file that is read.

    Args:
        read: files and quantized folders of the RUNs.
        html: the page.
        out: folder of the tables.

    Raises:
        InputError: an output cannot be written, or the name of a file that is read cannot be.
        UsageError: an output is another one or a file that is read, or lies in a quantized folder.
    """
    from genie_cli.runtime.atomic import check_writable

    for path in read:
        _check_name(path)
    if html is not None:
        check_writable(html, option="--html")
        _check_against(read, html, "--html")
    if out is None:
        return
    _check_folder(out)
    for name in TABLES:
        if html is not None and os.path.realpath(out / name) == os.path.realpath(html):
            raise UsageError(f"--html and --out {out} would write the same file {html}: choose another --html.")
        _check_against(read, out / name, "--out")


def _check_name(path: Path) -> None:
    """Rows and runs are called after files and folders, so their names have to be text."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise InputError(f"The name of {str(path)!a} is no UTF-8 text: rename the file or folder.") from None


def _check_folder(out: Path) -> None:
    from genie_cli.runtime.atomic import check_writable

    if not out.resolve().parent.is_dir():
        raise InputError(f"Output folder {out.parent} does not exist: create it or choose another --out.")
    if out.is_dir():
        for name in TABLES:
            check_writable(out / name)
    elif os.path.lexists(out):
        raise InputError(f"Output {out} is a file, and a folder is to be written: choose another --out.")


def _check_against(read: Sequence[Path], written: Path, option: str) -> None:
    place = Path(os.path.realpath(written))
    for path in read:
        taken = Path(os.path.realpath(path))
        if place == taken:
            raise UsageError(f"{option} would replace {path}, which is one of the RUNs: choose another {option}.")
        if place.parent == taken:
            raise UsageError(
                f"{option} {written} is in the folder of RUN {path}, which holds a quantized network and nothing else: "
                f"choose another {option}."
            )
