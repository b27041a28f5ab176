"""The README and the tutorial: what stands on their first screen, and that every command in them runs as typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genie_cli.config import params
from tests.docs.pages import ROOT, blocks_of, commands_of, prepare, run_page
from tests.support.short_budgets import shorten

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_screen_installs_activates_and_quantizes() -> None:
    screen = "\n".join(README.splitlines()[:40])
    for needed in ("activate", "pip install", "genie synthesize", "genie quantize", "genie evaluate"):
        assert needed in screen
    assert len(README.splitlines()) <= 200


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _ in blocks_of("README.md")} == {"bash", "python"}
    assert len(commands_of("README.md")) > 20


def test_every_command_has_its_row() -> None:
    from genie_cli.app import app

    rows = set(re.findall(r"^\| `genie (\w+)` \|", README, re.MULTILINE))
    assert rows == {command.name for command in app.registered_commands}
    assert README.split("## Commands\n\n")[1].split("\n\n")[0] in (ROOT / "docs" / "commands.md").read_text()


def test_every_extra_is_told() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.*?`) \|", README.split("| extra |")[1], re.MULTILINE)
    assert {name.strip("`") for row in rows for name in row.split(", ")} == set(extras) - {"dev", "docs"}


def test_links_and_pictures_lead_somewhere() -> None:
    places = re.findall(r'\]\(([^)#]+?)\)|src="([^"]+)"', README)
    local = [place for pair in places for place in pair if place and not place.startswith("https://")]
    assert len(local) > 20
    assert [place for place in local if not (ROOT / place).is_file()] == []
    assert all(path.stat().st_size < 150_000 for path in (ROOT / "docs" / "pictures").iterdir())


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages take for granted."""
    folder, caches = tmp_path / "work", tmp_path / "caches"
    folder.mkdir()
    prepare(folder, caches)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for variable in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(caches))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(params, "build", params.build)  # put back behind the test
    shorten()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/first-steps.md"])
def test_every_command_runs_as_typed(page: str, ready: Path) -> None:
    assert run_page(page, ready) == commands_of(page)
    written = {
        "README.md": ["model.onnx.export.json", "report.html", "timm_images.safetensors", "few_shot", "runs/qdrop.json"]
    }
    for name in written.get(page, ["images.png", "learned.json", "report/table.md"]):
        assert (ready / name).exists()
