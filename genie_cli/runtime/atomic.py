"""Files and folders that appear under their name wholly, or not at all.

Content goes to a temporary sibling first (same file system, so that a rename is atomic), is flushed
to the disk and renamed. Where the name is a link, the link is replaced and what it points at is left
alone: it may belong to a cache.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from genie_cli.errors import InputError
from genie_cli.runtime.full_disk import unwritable


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file wholly; on any error or interruption the old file stays and nothing else is left.

    The mode of the file follows the umask.

    Raises:
        InputError: the file cannot be written, with the system's reason.
    """
    atomic_write_files({path: content})


def atomic_write_files(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: each as `atomic_write_bytes`, and none before all are on the disk.

    Raises:
        InputError: one cannot be written, with the system's reason.
    """
    paths = [_absolute(path) for path in files]
    temporaries = [_temporary_sibling(path) for path in paths]
    try:
        for path, temporary, content in zip(paths, temporaries, files.values(), strict=True):
            _refuse_unreplaceable(path, folder=False)
            _write_new_file(temporary, content)
        for path, temporary in zip(paths, temporaries, strict=True):
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, newlines untranslated; otherwise as `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_folder(path: Path, files: Mapping[str, bytes], optional: Collection[str] = ()) -> None:
    """Write a folder of files wholly, in the place of a folder written before.

    The new folder is complete on the disk before it takes the name; an old folder is moved aside,
    then deleted. A process killed at that point leaves the old folder beside it as ``.genie-*.old``.
    Files of other names are carried over, never deleted.

    Args:
        path: the folder.
        files: name -> content.
        optional: names of files that an old folder may hold of its own run, which are not carried over.

    Raises:
        InputError: the folder cannot be written, with the system's reason.
        ValueError: a name in `files` is not a plain file name.
    """
    for name in files:
        if not name or name in (".", "..") or Path(name).name != name:
            raise ValueError(f"A folder's file needs a plain name, got {name!r}")
    path = _absolute(path)
    temporary = _temporary_sibling(path)
    aside = temporary.with_suffix(".old")
    try:
        _refuse_unreplaceable(path, folder=True)
        temporary.mkdir()
        for name, content in files.items():
            _write_new_file(temporary / name, content)
        _sync_folder(temporary)
        _swap(temporary, path, aside)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.lexists(aside) and os.path.lexists(path):
            _retire(aside, path, {*files, *optional})


def check_writable(path: Path, folder_files: Collection[str] = (), option: str = "--out") -> None:
    """Find out before the long work whether its result can be written at its end.

    Args:
        path: where the result will go.
        folder_files: the result is a folder of these files, written by `atomic_write_folder`; without them a file.
        option: names the path in messages.

    Raises:
        InputError: the parent is missing or cannot be written to, the name is taken by something of
            another kind, or by a folder that holds files which genie did not write.
    """
    try:
        target = _absolute(path)
        if not target.parent.is_dir():
            raise InputError(f"Output folder {path.parent} does not exist: create it or choose another {option}.")
        with suppress(FileNotFoundError):
            target.lstat()  # raises for a name that is too long or has a NUL byte
        _refuse_unreplaceable(target, bool(folder_files), path, option)
        if folder_files and target.is_dir():
            _refuse_foreign_files(target, folder_files, path)
        # Modes alone do not tell: root ignores them, and a file system may be read-only or full.
        probe = _temporary_sibling(target)
        try:
            _write_new_file(probe, b"genie")
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error


def _absolute(path: Path) -> Path:
    """Name the path from the root, links kept; its last part is a real name."""
    absolute = path.absolute()
    return absolute.resolve() if absolute.name == ".." else absolute


def _temporary_sibling(path: Path) -> Path:
    """A fresh hidden name beside `path`, short whatever the length of the name it stands for."""
    return path.parent / f".genie-{secrets.token_hex(8)}.tmp"


def _write_new_file(path: Path, content: bytes) -> None:
    # os.open, unlike tempfile.mkstemp (0600), gives the file the mode that the umask asks for.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    """Make renames in a folder last through a power failure, where the system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(new: Path, path: Path, aside: Path) -> None:
    try:
        # No old folder: nothing to move aside.
        with suppress(FileNotFoundError):
            path.rename(aside)
        new.rename(path)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(path):
            aside.rename(path)
        raise


def _retire(aside: Path, path: Path, owned: set[str]) -> None:
    """Delete the old folder; what came into it since `check_writable` moves to the new one."""
    # The new folder stands: a failure here may leave the old one beside it, and must not fail the run.
    with suppress(OSError):
        if aside.is_symlink():
            aside.unlink()
            return
        for entry in list(aside.iterdir()):
            if entry.name in owned:
                entry.unlink()
            else:
                entry.rename(path / entry.name)
        aside.rmdir()


def _refuse_unreplaceable(target: Path, folder: bool, shown: Path | None = None, option: str = "--out") -> None:
    shown = shown or target
    if folder:
        if os.path.lexists(target) and not target.is_dir():
            raise InputError(f"Output {shown} is a file, and a folder is to be written: choose another {option}.")
        if os.path.ismount(target) or (target.is_dir() and target.samefile(Path.cwd())):
            raise InputError(
                f"Output folder {shown} is the current folder or a mount point and cannot be replaced: "
                f"choose a folder inside it, such as --out {shown / 'quantized'}."
            )
    elif target.is_dir():
        raise InputError(f"Output {shown} is a folder, and a file is to be written: give {option} a file name in it.")
    elif target.exists() and not target.is_file():
        # Renaming over a device such as /dev/null would destroy it.
        raise InputError(f"Output {shown} is not a regular file: choose another {option}.")


def _refuse_foreign_files(target: Path, own: Collection[str], shown: Path) -> None:
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in own or entry.is_dir())
    if foreign:
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise InputError(
            f"Output folder {shown} holds files that genie did not write ({listed}): choose another --out, "
            "the folder would be replaced as a whole."
        )
