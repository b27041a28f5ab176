"""``genie clean``: what killed runs have left to go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from genie_cli.commands.options import AsJson


def clean(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, folders inside included.")] = Path(),
    remove: Annotated[bool, typer.Option("--remove", help="Delete what is listed and not in use.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what killed runs left beside their outputs, and delete it with --remove."""
    from genie_cli.commands.display import file_size, rows_table
    from genie_cli.errors import InputError
    from genie_cli.work.folder import WorkFolder, find_work_folders
    from genie_cli.work.lock import is_locked

    if not folder.is_dir():
        raise InputError(f"Folder {folder} does not exist.")
    rows: list[dict[str, Any]] = []
    for path, about in find_work_folders(folder):
        if path.parent.is_symlink():  # what lies behind belongs to another place
            continue
        out = path.parent.parent / Path(str(about.get("out", ""))).name  # a name, never a path
        in_use = is_locked(out)
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        work = WorkFolder(path)
        state = "in use" if in_use else "removed" if remove else "left"
        rows.append(
            {
                "output": str(out),
                "command": str(about.get("command", "?")),
                "parts done": work.num_parts(),
                "num_bytes": size,
                "state": state,
            }
        )
        if remove and not in_use:
            work.remove()
    if as_json:
        typer.echo(json.dumps([{key.replace(" ", "_"): value for key, value in row.items()} for row in rows], indent=2))
    elif rows:
        cells = [[file_size(v) if key == "num_bytes" else v for key, v in row.items()] for row in rows]
        rows_table("Unfinished runs", ["output", "command", "parts done", "size", "state"], cells, {"parts done"})
    else:
        typer.echo(f"No unfinished runs in {folder}.")
