"""The command line: registers the commands, and maps errors to one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from genie_cli import __version__
from genie_cli.commands import (
    benchmark,
    clean,
    config,
    evaluate,
    export,
    inspect,
    models,
    presets,
    quantize,
    report,
    sensitivity,
    show,
    synthesize,
    verify,
)
from genie_cli.commands.opening import tell_of_torch
from genie_cli.commands.verbosity import is_verbose, set_level, with_verbosity
from genie_cli.errors import GenieError, InputError, UsageError
from genie_cli.runtime.full_disk import is_full

EXIT_INTERRUPTED = 130
_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]
"""Click's UsageError, which typer brings along in some versions and not in others."""
_LONGEST_WAIT = 30.0
"""Seconds that a process with nothing to say leaves the one that speaks for all."""


class _Group(TyperGroup):
    """Turns the errors that users can fix into one message on stderr and the exit code of their class."""

    def get_params(self, ctx: Any) -> Any:
        """The options; a switch that is not given is False, as typer imports pydantic to convert a None."""
        options = super().get_params(ctx)
        for option in options:
            if getattr(option, "is_flag", False) and option.default is None:
                option.default = False
        return options

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        set_level("normal")
        try:
            return super().invoke(ctx)
        except GenieError as error:
            if is_verbose():
                _say("".join(traceback.format_exception(error)).rstrip())
            _fail(str(error), error.exit_code, shared=error.is_shared is not False)
        except _CommandLineError as error:
            if _number("LOCAL_RANK") > 0:
                _fail(str(error), UsageError.exit_code)
            raise  # the one message, in click's own form
        except KeyboardInterrupt as error:
            if _number("LOCAL_RANK") == 0:
                _say(f"Interrupted: {error}" if str(error) else "Interrupted; nothing was written.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except OSError as error:
            # Not a bug in genie: a name that is too long, a folder that may not be read, a full disk.
            if error.filename is None or error.errno == errno.EPIPE:
                raise
            _fail(f"{error.filename} cannot be used: {error.strerror}.", InputError.exit_code, shared=False)


def _fail(message: str, exit_code: int, shared: bool = True) -> NoReturn:
    """One message on stderr; what all processes of a run have (`shared`), the first one of a machine says."""
    # A name may hold anything, and users' code raise anything: still it is one line, and no terminal obeys it.
    message = "".join(char if char.isprintable() else " " for char in message)
    if not shared and _number("RANK") > 0:
        _say(f"Error in process {_number('RANK')}: {message}")
    elif not shared or _number("LOCAL_RANK") == 0:
        _say(f"Error: {message}")
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun ends all processes once one has ended: the one that speaks shall be the first.
        time.sleep(_LONGEST_WAIT)
    raise typer.Exit(exit_code)


def _say(line: str) -> None:
    with suppress(OSError):  # stderr may be a file on the full disk that the line tells of
        typer.echo(line, err=True)


def _number(variable: str) -> int:
    """A place that torchrun assigns, else 0; the library knows better, but importing it takes seconds."""
    try:
        return int(os.environ.get(variable, "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
    except ValueError:  # joining the others says what is wrong
        return 0


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize a pre-trained CNN to a few bits without any real data (GENIE, CVPR 2023).",
    epilog="Exit codes: 0 done, 1 a bug in genie, 2 wrong use, 3 bad input, "
    "4 no suitable device, 5 another process ended, 6 NaN or infinity in the work, 7 an exported file that answers "
    "otherwise, 130 interrupted.",
)
app.command("synthesize")(with_verbosity(synthesize.synthesize))
app.command("sensitivity")(with_verbosity(sensitivity.sensitivity))
app.command("quantize")(with_verbosity(quantize.quantize))
app.command("evaluate")(with_verbosity(evaluate.evaluate))
app.command("export")(with_verbosity(export.export))
app.command("benchmark")(with_verbosity(benchmark.benchmark))
app.command("inspect")(with_verbosity(inspect.inspect))
app.command("show")(with_verbosity(show.show))
app.command("models")(with_verbosity(models.models))
app.command("presets")(with_verbosity(presets.presets))
app.command("config")(with_verbosity(config.config))
app.command("report")(with_verbosity(report.report))
app.command("verify")(with_verbosity(verify.verify))
app.command("clean")(with_verbosity(clean.clean))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genie {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Quantize a pre-trained CNN to a few bits without any real data (GENIE, CVPR 2023)."""


def main() -> None:
    """The `genie` script."""
    tell_of_torch()
    try:
        sys.exit(app())
    except OSError as error:
        if not is_full(error):
            raise
        _say(f"Error: The standard output cannot be written: {error.strerror}.")  # all else is said by its name
        sys.exit(InputError.exit_code)
    finally:
        _drop_what_cannot_be_written()


def _drop_what_cannot_be_written() -> None:
    """Python would try once more at its end, and replace the exit code by one of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # none where it is closed
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
