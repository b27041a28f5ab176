"""Users' own functions: ``FILE.py:NAME`` or ``package.module:NAME`` on the command line, which runs their code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from genie_cli.errors import GenieError, InputError, UsageError, nearest
from genie_cli.runtime.shortage import is_out_of_memory

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_MOST_FRAMES = 4
"""Calls inside the user's own files that a message repeats; the innermost ones."""
_LONGEST_LINE = 100
"""Characters of a line of code that a message repeats."""


def names_code(text: str) -> bool:
    """True if `text` is ``FILE.py:NAME``, or ``package.module:NAME`` with a dot in the module's name."""
    location, colon, _ = text.rpartition(":")
    return bool(colon) and (location.endswith(".py") or _MODULE.fullmatch(location) is not None)


def code_file(text: str | None) -> str | None:
    """The file that ``FILE.py:NAME`` names; None for anything else."""
    location = (text or "").rpartition(":")[0]
    return location if location.endswith(".py") else None


@dataclass(frozen=True)
class UserCode:
    """A function of the user's.

    Attributes:
        kind: word for it that messages begin with, such as ``Metric``.
        spec: the user's text.
        function: the function itself; `__call__` calls it as it has to be called.
        file: the file that it comes from, None where there is none.
        sha256: hash of that file.
    """

    kind: str
    spec: str
    function: Callable[..., Any]
    file: Path | None
    sha256: str | None

    @property
    def name(self) -> str:
        """The user's text without folders: files that genie writes hold no path."""
        location, _, function = self.spec.rpartition(":")
        return f"{Path(location).name if location.endswith('.py') else location}:{function}"

    def __call__(self, *args: Any) -> Any:
        """The function's value.

        Raises:
            InputError: the function fails; see `running`.
        """
        with self.running(f"in {self.spec.rpartition(':')[2]}()"):
            return self.function(*args)

    @contextmanager
    def running(self, where: str) -> Iterator[None]:
        """Around code of the user's: it prints to standard error, and imports what lies beside its file.

        Args:
            where: words for the place, such as ``in update()``.

        Raises:
            InputError: the code raises anything; the message holds the error and the lines of the user's files that
                led to it. Errors of genie, and a lack of memory, pass as they are.
        """
        with _failures_told(self.kind, self.spec, where, self.file), _importable(self.spec.rpartition(":")[0]):
            yield


def load_code(spec: str, kind: str, noun: str = "factory") -> UserCode:
    """The function that ``FILE.py:NAME`` or ``package.module:NAME`` names; its file is run.

    Args:
        spec: the user's text.
        kind: word that messages begin with, such as ``Metric``.
        noun: word for the function.

    Raises:
        InputError: the file or module does not exist, or fails.
        UsageError: it has no such function.
    """
    location, _, name = spec.rpartition(":")
    path = Path(location).expanduser()
    if location.endswith(".py") and not path.is_file():
        raise InputError(f"{kind} file {path} does not exist.")
    with _failures_told(kind, spec, "while it was imported", path), _importable(location):
        module = _run_file(path) if location.endswith(".py") else _imported(location, kind)
    function = getattr(module, name, None)
    if not callable(function):
        public = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UsageError(f"'{location}' has no {noun} '{name}'.{nearest(name, public)}")
    file = Path(module.__file__) if module.__file__ is not None else None
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None
    return UserCode(kind, spec, function, file, sha256)


def run_user_file(path: Path, kind: str) -> ModuleType:
    """The module that a file of the user's makes; the file is run.

    Args:
        path: the file.
        kind: word that messages begin with, such as ``Plug-in``.

    Raises:
        InputError: the file does not exist, or fails.
    """
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"{kind} file {path} does not exist.")
    with _failures_told(kind, str(path), "while it was imported", path), _importable(str(path.with_suffix(".py"))):
        return _run_file(path)


def _run_file(path: Path) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location(f"genie_user_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{path} is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    return module


def _imported(location: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(location)
    except ModuleNotFoundError as error:
        raise InputError(f"{kind} module '{location}' cannot be imported: {error}.") from None


@contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Around users' code, which may print anything: standard output is for results."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def _importable(location: str) -> Iterator[None]:
    """Let imports beside the named file (or in the working folder) work, and leave no bytecode there."""
    folder = str(Path(location).expanduser().resolve().parent if location.endswith(".py") else Path.cwd())
    bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    try:
        with prints_on_stderr():
            yield
    finally:
        if folder in sys.path:  # the user's code may have changed the list
            sys.path.remove(folder)
        sys.dont_write_bytecode = bytecode


@contextmanager
def _failures_told(kind: str, spec: str, where: str, file: Path | None) -> Iterator[None]:
    try:
        yield
    except GenieError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if is_out_of_memory(error):
            raise
        place = _place(error, file)
        raise InputError(
            f"{kind} '{spec}' failed {where}: {type(error).__name__}: {error}{f' ({place})' if place else ''}"
        ) from error


def _place(error: BaseException, file: Path | None) -> str:
    """The calls in the user's file and beside it that led to an error: ``metric.py, line 7, in update: x / 0``."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename).name}, line {error.lineno}" if error.filename and error.lineno else ""
    if file is None:
        return ""
    folder = file.resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")  # Python's own import machinery
        and Path(frame.filename).resolve().is_relative_to(folder)
        and "site-packages" not in frame.filename
        and not Path(frame.filename).resolve().is_relative_to(Path(__file__).parents[1])
    ][-_MOST_FRAMES:]
    places = [f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}" for frame in frames]
    if not places:
        return ""
    line = (frames[-1].line or "")[:_LONGEST_LINE]
    return f"{' > '.join(places)}{f': {line}' if line else ''}"
