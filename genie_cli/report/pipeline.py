"""Outputs of a DVC pipeline: DVC keeps files of stages that are gone, and a report shall not show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from genie_cli.errors import InputError, UsageError


def only_outputs(
    runs: Iterable[Path], expand: Callable[[Path], Iterable[Path]], pipeline: Path
) -> tuple[list[Path], list[Path]]:
    """The files of RUNs, and those that are left out: files of folders that no stage of the pipeline writes.

    Args:
        runs: files, which are always kept, and folders.
        expand: the files that a RUN stands for.
        pipeline: a ``dvc.yaml``.

    Raises:
        InputError: the pipeline cannot be read, or a folder holds none of its outputs.
        UsageError: DVC is not installed.
    """
    outputs = _outputs(pipeline)
    kept: list[Path] = []
    left_out: list[Path] = []
    for run in runs:
        found = list(expand(run))
        own = [path for path in found if path == run or not outputs.isdisjoint((_place(path), *_place(path).parents))]
        if not own:
            raise InputError(f"Folder {run} holds no output of {pipeline}: run the pipeline, or leave out --pipeline.")
        kept += own
        left_out += [path for path in found if path not in own]
    return kept, left_out


def _outputs(pipeline: Path) -> set[Path]:
    """The places of the outputs of all stages that a pipeline has now."""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        raise UsageError("--pipeline needs DVC: pip install 'genie-cli[pipelines]'.") from None
    if not pipeline.is_file():
        raise InputError(f"Pipeline {pipeline} does not exist: give --pipeline the dvc.yaml of the runs.")
    file = pipeline.absolute()
    try:
        with Repo(Repo.find_root(str(file.parent))) as repo:
            return {_place(Path(output.fs_path)) for stage in repo.stage.load_all(str(file)) for output in stage.outs}
    except DvcException as error:
        raise InputError(f"Pipeline {pipeline} cannot be read: {' '.join(str(error).split())}.") from error


def _place(path: Path) -> Path:
    """The absolute path, of which the last part may be a link into a cache."""
    return path.parent.resolve() / path.name
