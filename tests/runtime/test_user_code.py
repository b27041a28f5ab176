"""Users' own functions: how they are found and called, and what is said where they fail."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch

from genie_cli.errors import DeviceError, InputError, UsageError
from genie_cli.runtime.user_code import load_code, names_code

CODE = """
import beside_user_code as beside


def fine(x):
    print("said")
    return beside.double(x)


def fails():
    return beside.divide(1, 0)


def late():
    import late_user_code
    return late_user_code.VALUE


def leaves():
    raise SystemExit(3)


def short():
    raise MemoryError


def objects():
    from genie_cli.errors import DeviceError
    raise DeviceError("no device")


number = 5
"""
BESIDE = "def double(x):\n    return 2 * x\n\n\ndef divide(a, b):\n    return a / b\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "beside_user_code.py").write_text(BESIDE)
    (tmp_path / "late_user_code.py").write_text("VALUE = 7\n")
    monkeypatch.delitem(sys.modules, "beside_user_code", raising=False)
    path = tmp_path / "code.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    ("text", "is_code"),
    [
        ("m.py:f", True),
        ("/a:b/m.py:f", True),
        ("package.module:f", True),
        ("m.py", False),
        ("module:f", False),
        ("images:folder", False),
        ("images.safetensors", False),
        ("/data.d/x:y", False),
        ("", False),
        (":f", False),
    ],
)
def test_texts_that_name_code(text: str, is_code: bool) -> None:
    assert names_code(text) == is_code


def test_a_function_prints_to_standard_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = load_code(f"{file}:fine", "Metric")
    assert code(4) == 8
    assert capsys.readouterr() == ("", "said\n")
    assert (code.name, code.sha256) == ("code.py:fine", hashlib.sha256(CODE.encode()).hexdigest())


def test_what_lies_beside_the_file_can_be_imported_late(file: Path) -> None:
    code = load_code(f"{file}:late", "Metric")
    assert str(file.parent) not in sys.path
    assert code() == 7
    assert str(file.parent) not in sys.path
    assert not list(file.parent.rglob("__pycache__"))


def test_a_failure_names_the_lines_of_the_users_files(file: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_code(f"{file}:fails", "Metric")()
    assert str(raised.value) == (
        f"Metric '{file}:fails' failed in fails(): ZeroDivisionError: division by zero (code.py, line 11, in fails > "
        "beside_user_code.py, line 6, in divide: return a / b)"
    )


def test_lines_of_libraries_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("import torch\n\n\ndef f():\n    return torch.zeros(2) @ torch.zeros(3)\n")
    with pytest.raises(InputError, match=r"\(c\.py, line 5, in f: return torch\.zeros\(2\) @ torch\.zeros\(3\)\)$"):
        load_code(f"{tmp_path / 'c.py'}:f", "Data")()


def test_a_file_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("def f():\n    return (\n")
    with pytest.raises(InputError, match=r"Data '.*' failed while it was imported: SyntaxError: .*\(c\.py, line 2\)"):
        load_code(f"{tmp_path / 'c.py'}:f", "Data")


def test_leaving_the_process_is_a_failure(file: Path) -> None:
    with pytest.raises(InputError, match=r"failed in leaves\(\): SystemExit: 3"):
        load_code(f"{file}:leaves", "Data")()


def test_a_lack_of_memory_and_errors_of_genie_pass(file: Path) -> None:
    with pytest.raises(MemoryError):
        load_code(f"{file}:short", "Data")()
    with pytest.raises(DeviceError, match="no device"):
        load_code(f"{file}:objects", "Data")()
    with pytest.raises(torch.OutOfMemoryError), load_code(f"{file}:fine", "Data").running("here"):
        raise torch.OutOfMemoryError


def test_names_that_are_not_there(file: Path) -> None:
    with pytest.raises(InputError, match=r"Decode file .*none\.py does not exist"):
        load_code(f"{file.parent}/none.py:f", "Decode")
    with pytest.raises(UsageError, match=r"has no function 'fien'\. Did you mean 'fine'"):
        load_code(f"{file}:fien", "Decode", "function")
    with pytest.raises(UsageError, match="has no factory 'number'"):
        load_code(f"{file}:number", "Data")
    with pytest.raises(InputError, match=r"Data module 'no_such\.module' cannot be imported"):
        load_code("no_such.module:f", "Data")
