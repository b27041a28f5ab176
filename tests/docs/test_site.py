"""The documentation site: every configuration key with its sentences, and nothing that is loaded from elsewhere."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from genie_cli.config import SECTIONS

DOCS = Path(__file__).parents[2] / "docs"
KEYS = [(section, key) for section, config in SECTIONS.items() for key in config.model_fields]


def as_words(text: str) -> str:
    """Text without marks and line ends."""
    return " ".join(re.sub(r"[`\\]", "", text).split())


def sentences(section: str, key: str) -> str:
    """The key's docstring as pydantic has it, which reads classes otherwise than the page does.

    A key that is declared again, for another default, has that of the base class.
    """
    classes = [one for one in SECTIONS[section].__mro__ if key in getattr(one, "model_fields", {})]
    return as_words(next(filter(None, (one.model_fields[key].description for one in classes)), ""))


@pytest.fixture(scope="module")
def configuration() -> dict[str, str]:
    """Section -> its part of the configuration page, in Markdown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "site")
        from reference_pages import configuration_markdown
    parts = re.split(r"^## `(\w+)`$", configuration_markdown(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("section", "key"), KEYS, ids=[".".join(pair) for pair in KEYS])
def test_every_configuration_key_has_its_sentences(section: str, key: str, configuration: dict[str, str]) -> None:
    entry = re.search(rf"^`{key}`\n: (.*?)(?=^`\w+`$|\Z)", configuration[section], re.DOTALL | re.MULTILINE)
    assert entry is not None
    assert len(sentences(section, key)) > 10
    assert sentences(section, key) in as_words(entry[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning, such as a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_built_site_tells_every_configuration_key(site: Path) -> None:
    page = as_words(html.unescape(re.sub(r"<[^>]+>", "", (site / "configuration.html").read_text(encoding="utf-8"))))
    assert [pair for pair in KEYS if sentences(*pair) not in page] == []


@pytest.mark.slow
def test_the_built_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    loading = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//", re.IGNORECASE)
    assert [page.name for page in pages if loading.search(page.read_text(encoding="utf-8"))] == []
    sheets = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//\S+", sheets) == []
