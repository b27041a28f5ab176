"""The page of a report in a real browser: charts, sorting, console and accessibility; wide and narrow, both themes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import run_here
from tests.support.browser import chromium

pytest.importorskip("matplotlib")

RUNS = [("minmax", 4), ("minmax", 3), ("mse", 4), ("genie-m", 4)]
SERIOUS = ("serious", "critical")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of four runs, of which some are nearly the same in size and figure."""
    folder = tmp_path_factory.mktemp("runs")
    images, log, digits = folder / "images.safetensors", folder / "loss.csv", ("--model", "digits_resnet")
    run_here("synthesize", *digits, "--n", 16, "--num-steps", 12, "--batch-size", 8, "--out", images, "--log", log)
    for preset, bits in RUNS:
        out = folder / f"{preset}-w{bits}a4"
        recipe = ("--preset", preset, "--weight-bits", bits, "--num-steps", 4)
        run_here("quantize", *digits, "--images", images, *recipe, "--out", out)
        measured = ("--quantized", out, "--data", "digits", "--num-images", 60)
        run_here("evaluate", *digits, *measured, "--out", folder / f"{out.name}.json")
    path = folder / "report.html"
    run_here("report", folder, "--html", path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (1280, "light"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1280, "dark"), (390, "light"), (390, "dark"))),
    ],
)
def test_the_page_in_a_browser(browser: Any, page_file: Path, width: int, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    _check_charts(page)
    _check_sorting(page)
    _check_choice(page)
    _check_first_column(page)
    assert page.evaluate("document.querySelector('img').naturalWidth") > 0
    assert told == []  # before axe, which may say things of its own
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}}).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in SERIOUS] == []
    context.close()


def _check_first_column(page: Any) -> None:
    """The names of a table that is wider than the window stay where they are when it is scrolled."""
    moved = page.evaluate(
        """() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 40)
        .filter(box => box.querySelector('td')).map(box => { const cell = box.querySelector('td');
        const before = cell.getBoundingClientRect().left; box.scrollLeft = 40;
        const after = cell.getBoundingClientRect().left; box.scrollLeft = 0; return Math.abs(after - before); })"""
    )
    assert all(distance < 1 for distance in moved)
    if page.viewport_size["width"] <= 600:
        assert moved
        widths = page.evaluate("[...document.querySelectorAll('tr > :first-child')].map(each => each.clientWidth)")
        assert min(width for width in widths if width) >= 60  # else names stand letter below letter


def _check_charts(page: Any) -> None:
    """Each chart has a size and ink; the names beside a scatter chart do not overlap."""
    charts = page.locator("figure svg.chart:visible")
    assert charts.count() >= 1 + len(RUNS)
    for place in range(charts.count()):
        chart = charts.nth(place)
        box = chart.bounding_box()
        assert box["width"] > 200 and box["height"] > 100
        assert chart.locator("path").count() > 4
    names = page.evaluate(
        """() => [...document.querySelectorAll('#runs svg.chart text')]
             .filter((one) => /-w[0-9]a/.test(one.textContent))
             .map((one) => one.getBoundingClientRect()).map((box) => [box.top, box.bottom])"""
    )
    assert len(names) == len(RUNS)
    for (_, bottom), (top, _) in pairwise(sorted(names)):
        assert top >= bottom - 2, names  # a box of text has room above its letters


def _check_sorting(page: Any) -> None:
    """A click on a heading sorts by its numbers, a second one turns the order round, and assistive tools are told."""
    table = page.locator("#runs table")
    headings = table.locator("th")
    place = [text.strip() for text in headings.all_inner_texts()].index("value")
    column = table.locator(f"tbody td:nth-child({place + 1})")
    before = column.all_inner_texts()
    headings.nth(place).locator("button").click()
    up = column.all_inner_texts()
    headings.nth(place).locator("button").click()
    down = column.all_inner_texts()
    assert up == sorted(before, key=float) and len(set(up)) > 1
    assert [float(value) for value in down] == sorted(map(float, before), reverse=True)
    assert headings.nth(place).get_attribute("aria-sort") == "descending"


def _check_choice(page: Any) -> None:
    """One histogram is shown at a time, the one that is chosen."""
    select = page.locator(".chooser select").first
    choices = page.locator(f"#{select.get_attribute('data-of')} > .choice")
    select.select_option(index=1)
    assert [choices.nth(i).is_visible() for i in range(choices.count())] == [i == 1 for i in range(choices.count())]
