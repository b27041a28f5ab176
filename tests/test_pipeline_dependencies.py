"""Stages of the pipelines depend on the code that they run: all that their command imports, and nothing else."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
PIPELINES = [ROOT / "dvc.yaml", *sorted((ROOT / "pipelines").glob("*/dvc.yaml"))]
COMMAND = re.compile(r"python -m genie_cli (\w+)")
COMMANDS = "genie_cli/commands"
SHARED = {
    "genie_cli/__init__.py",
    "genie_cli/data/__init__.py",
    "genie_cli/errors.py",
    "genie_cli/evaluation/__init__.py",
    "genie_cli/sizes.py",
    "genie_cli/stages/__init__.py",
    "genie_cli/version.py",
}
"""Files that no stage needs to depend on; so are those that commands share: how options are read and progress shown."""
ENDS = {"genie_cli/__init__.py", f"{COMMANDS}/completion.py", f"{COMMANDS}/display.py"}
"""Files whose own imports do not count: the library's face, which imports late, completion, and the display."""


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _names(node: ast.AST) -> Iterator[str]:
    """Dotted names that a piece of code imports, in functions too."""
    children = node.orelse if _is_for_type_checkers(node) else ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module is not None, "relative imports are not looked through"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in children:
        yield from _names(child)


def _files(name: str) -> Iterator[Path]:
    """The module of a dotted name, whose last part may be something inside it, and the packages around it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        place = Path(*parts[:end])
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if (ROOT / file).is_file())


@cache
def _named(file: Path) -> tuple[str, ...]:
    """Dotted names of the package that one of its files imports."""
    names = _names(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    return tuple(name for name in names if name.partition(".")[0] == "genie_cli")


def _imported(file: Path) -> set[str]:
    """All files of the package that `file` imports, directly or by another one, and itself."""
    found: set[str] = set()
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if str(file) in found:
            continue
        found.add(str(file))
        if str(file) in ENDS:
            continue
        for name in _named(file):
            waiting.extend(_files(name))
    return found


def _stages() -> dict[str, tuple[str, list[str]]]:
    """Pipeline and stage -> its command of genie, and its dependencies on the code."""
    found = {}
    for pipeline in PIPELINES:
        stages: dict[str, Any] = YAML(typ="safe", pure=True).load(pipeline.read_text(encoding="utf-8"))["stages"]
        for name, stage in stages.items():
            lines = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
            commands = [command for line in lines for command in COMMAND.findall(line)]
            if not commands:
                continue
            assert len(commands) == 1
            folder = pipeline.parent / stage.get("wdir", ".")
            assert folder.resolve() == ROOT, "dependencies are read as paths from the root"
            code = [path for path in stage["deps"] if path.startswith("genie_cli")]
            found[f"{pipeline.parent.name if pipeline.parent != ROOT else 'root'}:{name}"] = commands[0], code
    return found


STAGES = _stages()


def _lies_in(file: str, place: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def test_all_pipelines_have_stages_that_run_genie() -> None:
    assert {name.partition(":")[0] for name in STAGES} == {
        "root", "images", "ablation", "zero-shot", "all-layers", "few-shot", "num-images", "mixed"
    }  # fmt: skip
    assert {command for command, _ in STAGES.values()} == {"synthesize", "quantize", "evaluate", "export", "report"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_that_it_runs(stage: str) -> None:
    command, code = STAGES[stage]
    own = Path(COMMANDS, f"{command}.py")
    run = {file for file in _imported(own) - SHARED if file == str(own) or not _lies_in(file, COMMANDS)}
    assert len(run) > 5
    assert {file for file in run if not any(_lies_in(file, place) for place in code)} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_it_does_not_run(stage: str) -> None:
    command, code = STAGES[stage]
    run = _imported(Path(COMMANDS, f"{command}.py"))
    assert {place for place in code if not any(_lies_in(file, place) for file in run)} == set()
    assert [place for place in code if not (ROOT / place).exists()] == []


def test_imports_are_found_in_functions_and_not_for_type_checkers() -> None:
    code = """
import a.b
if TYPE_CHECKING:
    import c
else:
    from d import e, f as g
def late():
    if True:
        from h.i import j
"""
    assert set(_names(ast.parse(code))) == {"a.b", "d.e", "d.f", "h.i.j"}


def test_git_ignores_what_the_root_pipeline_writes() -> None:
    """So that a clone in which it ran has nothing to commit but ``dvc.lock``."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository")
    stages = [stage.get("do", stage) for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()]
    entries = [entry for stage in stages for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, ())]
    written = {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}
    assert len(written) > 8
    paths = [path.replace("${item.preset}", "genie-m").replace("${item.scheme}", "w4a4") for path in written]
    found = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(set(paths) - set(found.stdout.split())) == []
