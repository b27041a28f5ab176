"""``genie benchmark``: milliseconds of exported files in the runtimes that are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.errors import InputError


def benchmark(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of genie export, to compare.")],
    batch_size: Annotated[
        list[int] | None, typer.Option("--batch-size", help="Images at once; may be repeated. [default: 1 and 32]")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of a runtime.")] = 1,
    as_json: opt.AsJson = False,
) -> None:
    """Measure how long exported files take, one beside the other."""
    import torch

    from genie_cli.commands.display import file_size, rows_table
    from genie_cli.deployment.runtimes import format_of, installed_runtimes, open_runtime, read_exported
    from genie_cli.deployment.timing import milliseconds

    sizes = batch_size or [1, 32]
    if min(sizes) < 1:
        raise InputError(f"--batch-size {min(sizes)} cannot be used: give 1 or more.")
    opened = []
    for file in files:
        format, content = format_of(file), read_exported(file)
        metadata = open_runtime(content, format, str(file)).metadata
        if metadata is None:
            raise InputError(f"{file} does not say which images it takes: give a file that 'genie export' wrote.")
        opened.append((file, format, content, metadata))
    torch.set_num_threads(threads)
    figures: list[dict[str, Any]] = []
    for file, format, content, metadata in opened:
        for runtime_of in installed_runtimes(format):
            runtime = runtime_of(content, str(file), threads)
            runtime.metadata = metadata
            times = {size: milliseconds(runtime, size) for size in sizes}
            figures.append(
                {
                    "file": str(file),
                    "weights": metadata.storage,
                    "num_bytes": len(content),
                    "runtime": f"{runtime.name} {runtime.version}",
                    "threads": threads,
                    "milliseconds": {str(size): round(value, 4) for size, value in times.items()},
                }
            )
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    columns = ["file", "weights", "size", "runtime", *(f"ms, batch {size}" for size in sizes)]
    rows = [
        [
            each["file"],
            each["weights"],
            file_size(each["num_bytes"]),
            each["runtime"],
            *(f"{each['milliseconds'][str(size)]:.3f}" for size in sizes),
        ]
        for each in figures
    ]
    rows_table(f"Milliseconds, {threads} thread(s)", columns, rows, {"size", *columns[4:]})
