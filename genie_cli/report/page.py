"""The page of a report: what is known of each run as sections of tables and charts, in one file without a network."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from genie_cli.report import charts, room
from genie_cli.report.collect import Found
from genie_cli.report.figures import model_of
from genie_cli.report.overview import overview, speed_section
from genie_cli.report.pictures import images_section, synthesis_section
from genie_cli.report.room import Room
from genie_cli.report.run_section import run_section


def make_page(found: Found) -> str:
    """The page as HTML; the same files give the same text.

    Charts are left out where the page would become too large, those of the best layers first, and the page says so.

    Args:
        found: what was collected.

    Raises:
        UsageError: a package is not installed.
        InputError: figures that cannot be used.
    """
    charts.check_charts()
    num_sections = min(len(found.runs), room.MOST_RUNS)
    page = _rendered(found, num_sections)
    while len(page.encode()) > room.LIMIT and num_sections > 1:  # many runs of large networks: their tables alone
        num_sections //= 2
        page = _rendered(found, num_sections)
    return page


def _rendered(found: Found, num_sections: int) -> str:
    """The page on which so many runs have a section of their own."""
    left = Room(room.DRAWN)
    shown = found.runs[:num_sections]
    links = {id(run): f"run-{number}" for number, run in enumerate(shown, 1)}
    sections = [
        *overview(found, links),
        *images_section(found, left),
        *synthesis_section(found, left),
        *speed_section(found),
    ]
    for number, run in enumerate(shown):
        share = Room(left.left // (len(shown) - number))
        before = share.left
        sections.append(run_section(run, links[id(run)], share))
        left.left -= before - share.left
    assets = files("genie_cli.report") / "assets"
    style, script, template = ((assets / name).read_text("utf-8") for name in ("style.css", "script.js", "page.html"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return (
        environment.from_string(template)
        .render(
            title=_title(found),
            subtitle=_subtitle(found),
            sections=[section for section in sections if section.parts or section.facts],
            style=Markup(style),
            script=Markup(script),
        )
        .lstrip()
    )


def _title(found: Found) -> str:
    models = {model_of(run) for run in found.runs} - {""}
    model = models.pop() if len(models) == 1 else ""
    if len(found.runs) == 1:
        return ": ".join(filter(None, (model, found.runs[0].name)))
    of = f" of {model}" if model else ""
    return f"{len(found.runs)} runs{of}" if found.runs else "Calibration images"


def _subtitle(found: Found) -> str:
    count = len(found.images)
    told = [f"{len(found.runs)} run(s)", *([f"{count} image set(s)"] if count else [])]
    return f"What genie made: {', '.join(told)}. This page is complete in itself and needs no network."
