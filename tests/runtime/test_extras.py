"""Optional packages are imported when they are needed, and a missing one is told with its extra."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from genie_cli.errors import UsageError
from genie_cli.runtime import extras

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BROUGHT_BY = {"onnx_ir": "onnxscript"}
"""Packages that an extra brings as the need of another one."""


@pytest.mark.parametrize("package", extras._EXTRAS)
def test_the_extra_brings_the_package(package: str) -> None:
    brought = PYPROJECT["optional-dependencies"][extras._EXTRAS[package]]
    name = BROUGHT_BY.get(package, extras._DISTRIBUTIONS.get(package, package))
    assert any(requirement.partition(">")[0] == name for requirement in brought)


@pytest.mark.parametrize("package", extras._EXTRAS)
def test_what_an_extra_brings_is_not_needed_without_it(package: str) -> None:
    needed = {requirement.partition(">")[0] for requirement in PYPROJECT["dependencies"]}
    assert extras._DISTRIBUTIONS.get(package, package) not in needed


def test_a_missing_package_is_told_with_its_reader_and_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx_ir"]:
        monkeypatch.delitem(sys.modules, name)  # an earlier test may have imported it
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(UsageError) as told:
        extras.required("onnx_ir.passes.common", "This export")
    message = "This export needs the package onnx-ir, which is not installed: pip install 'genie-cli[onnx]'."
    assert str(told.value) == message
    assert not extras.is_installed("onnx_ir")


def test_a_package_that_lacks_another_one_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        extras.required("sklearn.datasets")
