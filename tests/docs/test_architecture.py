"""The architecture page tells of the folders and files that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def drawn_folders() -> set[str]:
    """Paths of the folders in the tree of the page."""
    tree = PAGE.split("```\ngenie_cli/\n")[1].split("```")[0]
    found: set[str] = set()
    path: list[str] = []
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        path = [*path[: indent // 2 - 1], line.split()[0].rstrip("/")]
        found.add("/".join(path))
    return found


def test_the_tree_is_that_of_the_folders():
    package = ROOT / "genie_cli"
    folders = {
        str(folder.relative_to(package))
        for folder in package.rglob("*")
        if folder.is_dir() and folder.name != "__pycache__" and any(folder.glob("*.*"))
    }
    assert drawn_folders() == folders


def test_each_file_that_is_named_exists():
    named = re.findall(r"`([a-z_]+/[a-z_/]*\.py|app\.py)`", PAGE)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / "genie_cli" / name).is_file()] == []
