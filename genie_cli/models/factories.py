"""Users' own networks: a factory in a file or an importable module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from torch import nn

from genie_cli.errors import InputError, UsageError, nearest


def call_factory(spec: str) -> nn.Module:
    """The return value of the factory ``file.py:factory`` or ``package.module:factory``, its type unchecked.

    Raises:
        InputError: the file or module does not exist.
        UsageError: it has no such factory.
    """
    location, _, factory = spec.rpartition(":")
    with _importable(location):
        if location.endswith(".py"):
            path = Path(location)
            if not path.is_file():
                raise InputError(f"Model file {path} does not exist.")
            module_spec = importlib.util.spec_from_file_location(f"genie_user_{path.stem}", path)
            assert module_spec is not None and module_spec.loader is not None
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[module_spec.name] = module
            module_spec.loader.exec_module(module)
        else:
            try:
                module = importlib.import_module(location)
            except ModuleNotFoundError as error:
                raise InputError(f"Model module '{location}' cannot be imported: {error}.") from None
        function = getattr(module, factory, None)
        if not callable(function):
            public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise UsageError(f"'{location}' has no factory '{factory}'.{nearest(factory, public)}")
        network = function()
    return network  # type: ignore[no-any-return]


@contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Around users' code, which may print anything: standard output is for results."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def _importable(location: str) -> Iterator[None]:
    """Let imports beside the named file (or in the working folder) work, and leave no bytecode there."""
    folder = str(Path(location).resolve().parent if location.endswith(".py") else Path.cwd())
    bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = bytecode
