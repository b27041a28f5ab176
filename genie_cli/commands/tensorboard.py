"""Scalars for TensorBoard: the figures of the progress, written while the work goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genie_cli.errors import InputError
from genie_cli.runtime.extras import is_installed, not_installed
from genie_cli.runtime.progress import Advanced, Event, Reporter


def check_tensorboard(folder: Path | None) -> None:
    """Find out, before the work, whether scalars can be written.

    Args:
        folder: the folder of ``--tensorboard``; None: none are wanted.

    Raises:
        UsageError: the package is not installed.
        InputError: no folder can be made there.
    """
    if folder is None:
        return
    if not is_installed("tensorboard"):
        raise not_installed("tensorboard", "--tensorboard")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Folder --tensorboard {folder} cannot be made: {reason}.") from None


@contextmanager
def scalars_written(report: Reporter, folder: Path | None) -> Iterator[Reporter]:
    """A reporter that hands all events on to `report`, and writes their figures.

    A figure is called after the stage, its own name and the place of the work (``quantize loss/unit 2 of 5 layer1``);
    its step counts the steps of the stage.

    Args:
        report: receives the events.
        folder: the folder to write into; None: nothing is written.
    """
    if folder is None:
        yield report
        return
    from torch.utils.tensorboard import SummaryWriter

    def writing(event: Event) -> None:
        report(event)
        if isinstance(event, Advanced):
            place = event.detail.replace("/", " of ")
            for name, value in event.values.items():
                writer.add_scalar(f"{event.stage} {name}/{place}", value, event.done)

    with SummaryWriter(str(folder)) as writer:
        yield writing
