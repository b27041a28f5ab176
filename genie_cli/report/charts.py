"""Drawings of a report as SVG that stands in a page: matplotlib draws, the page's style gives the colours.

matplotlib is drawn with stand-in colours. Each becomes a variable of the page's style sheet, so that one drawing
serves light, dark and paper. The same numbers give the same text.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

from markupsafe import Markup, escape

from genie_cli.artifacts.details import Histograms
from genie_cli.runtime.extras import required

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

_INK, _LINE = "#010101", "#020202"
_SERIES = ("#030303", "#040404", "#050505", "#060606")
_VARIABLES = {
    _INK: "var(--ink)",
    _LINE: "var(--line)",
    **{color: f"var(--series-{number})" for number, color in enumerate(_SERIES, 1)},
}
"""Stand-in colour -> the page's own."""
_DASHES = ("-", "--", ":")
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "genie",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_MOST_LABELS = 80
"""More bars are numbered, not named."""
MOST_CURVES = len(_SERIES) * len(_DASHES)
"""Curves of one chart."""
_LABEL_POINTS = 10
"""Height of a line of small text, in points."""
_BELOW_INCHES = 0.6
"""Height of what stands below the drawing: numbers and the title of the axis."""
_LONGEST = 36
"""Characters of a name beside a bar."""


def check_charts() -> None:
    """Find out whether charts can be drawn.

    Raises:
        UsageError: matplotlib is not installed.
    """
    required("matplotlib", "--html")


def _in_style(draw: Callable[P, Markup]) -> Callable[P, Markup]:
    """Draw with the settings of this module, which matplotlib reads whenever it makes a part of a drawing."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Markup:
        import matplotlib as mpl

        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of fonts, which the reader's browser chooses
        with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return draw(*args, **kwargs)

    return drawn


@_in_style
def bits_chart(weights: Mapping[str, int], activations: Mapping[str, int]) -> Markup:
    """Bits of each layer's weight, and of each activation, as bars in the order of the network."""
    names = list(weights)
    figure, axes = _figure(_wide(max(len(names), len(activations))), 5.2, rows=2)
    for place, (title, bits) in enumerate((("weights", weights), ("activations", activations))):
        _bars(axes[place], list(bits), [list(bits.values())], [title])
        axes[place].set_ylabel(f"bits of {title}")
        axes[place].set_ylim(0, max([8, *bits.values()]))
    return _svg(figure, "Bits of each layer's weights and of each activation")


@_in_style
def errors_chart(names: Sequence[str], trained: Sequence[float | None], held_out: Sequence[float | None]) -> Markup:
    """Relative error of each unit, on the images that were trained on, and on those that were held out."""
    kinds = [("trained", trained), ("held out", held_out)]
    known = [(label, values) for label, values in kinds if any(value is not None for value in values)]
    figure, axes = _figure(_wide(len(names) * len(known)), 3.2)
    _bars(axes[0], names, [[value or 0.0 for value in values] for _, values in known], [label for label, _ in known])
    axes[0].set_ylabel("relative error")
    return _svg(figure, "Relative error of each reconstruction unit")


@_in_style
def classes_chart(names: Sequence[str], values: Sequence[float], title: str) -> Markup:
    """A figure of each class as bars."""
    figure, axes = _figure(_wide(len(names)), 2.8)
    _bars(axes[0], names, [values], [title])
    axes[0].set_ylabel(title)
    return _svg(figure, f"{title} of each class")


@_in_style
def curves_chart(curves: Mapping[str, Sequence[tuple[int, float | None]]], title: str, label: str) -> Markup:
    """Losses over steps, one line for each curve, on a logarithmic scale where all are positive."""
    figure, axes = _figure(6.4, 3.2)
    shown = list(curves.items())[:MOST_CURVES]
    for place, (name, rows) in enumerate(shown):
        points = [(step, value) for step, value in rows if value is not None]
        color, dashes = _SERIES[place % len(_SERIES)], _DASHES[place // len(_SERIES)]
        steps, losses = [step for step, _ in points], [value for _, value in points]
        axes[0].plot(steps, losses, lw=1.3, color=color, ls=dashes, label=_short(name))
    values = [value for _, rows in shown for _, value in rows if value is not None]
    if values and min(values) > 0:
        axes[0].set_yscale("log")
        _plain_ticks(axes[0])
    axes[0].set_xlabel("step")
    axes[0].set_ylabel(label)
    axes[0].legend(fontsize=7, ncols=2)
    return _svg(figure, title)


@_in_style
def histogram_chart(values: Histograms, title: str, names: tuple[str, str] = ("float", "quantized")) -> Markup:
    """Values before and after quantization as two outlines over one range; shares on a logarithmic scale."""
    figure, axes = _figure(5.2, 2.6)
    outlines = ((values.before, names[0], _SERIES[0], True), (values.after, names[1], _SERIES[1], False))
    for counts, name, color, filled in outlines:
        total = max(sum(counts), 1)
        width = (values.high - values.low) / len(counts)
        edges = [values.low + i * width for i in range(len(counts) + 1)]
        shares = [count / total for count in counts]
        axes[0].stairs(shares, edges, color=color, fill=filled, alpha=0.55 if filled else 1, lw=1.2, label=name)
    axes[0].set_yscale("symlog", linthresh=1e-3)
    _plain_ticks(axes[0])
    axes[0].set_xlabel("value")
    axes[0].set_ylabel("share")
    axes[0].legend(fontsize=8)
    return _svg(figure, f"Values of {title} before and after quantization")


@_in_style
def scatter_chart(points: Sequence[tuple[str, float, float]], label: str) -> Markup:
    """A figure against the size of the network: (name, megabytes, figure) for each run.

    The names stand in a column beside the drawing, each at the height of its point or as near as the others leave
    room for, and a thin line leads to it: runs of nearly the same size and figure can be told apart.
    """
    named = sorted(points, key=lambda point: -point[2])[:_MOST_LABELS]
    height = max(3.6, (len(named) + 4) * _LABEL_POINTS / 72)
    figure, axes = _figure(6.4, height)
    axes[0].scatter([x for _, x, _ in points], [y for _, _, y in points], color=_SERIES[0], s=22)
    axes[0].set_xlabel("size in MB")
    axes[0].set_ylabel(label)
    axes[0].margins(x=0.08, y=0.12)
    low, high = axes[0].get_ylim()
    wanted = [(y - low) / (high - low) for _, _, y in named]
    gap = _LABEL_POINTS / 72 / (height - _BELOW_INCHES)
    for (name, x, y), place in zip(named, spread(wanted, gap), strict=True):
        axes[0].annotate(
            _short(name),
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": _INK, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3},
        )
    return _svg(figure, f"{label} against the size of each run")


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places that are at least `gap` apart, as near to those wanted as can be; the largest comes first.

    Neighbours that are too near move as one, around the mean of what they want (pool adjacent violators).

    >>> spread([1.0, 0.5, 0.5], 0.25)
    [1.0, 0.625, 0.375]
    """
    groups: list[tuple[float, int]] = []  # mean of (wanted + place in the row times gap), number
    for row, place in enumerate(wanted):
        mean, number = place + row * gap, 1
        while groups and groups[-1][0] < mean:
            earlier, count = groups.pop()
            mean, number = (earlier * count + mean * number) / (count + number), count + number
        groups.append((mean, number))
    means = [mean for mean, number in groups for _ in range(number)]
    return [mean - row * gap for row, mean in enumerate(means)]


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for each in axes:
        each.grid(axis="y", lw=0.4)
        each.set_axisbelow(True)
    return figure, axes


def _wide(num_bars: int) -> float:
    """Inches for so many bars."""
    return min(max(6.4, 0.17 * num_bars), 22.0)


def _bars(axes: Axes, names: Sequence[str], series: Sequence[Sequence[float]], labels: Sequence[str]) -> None:
    """Groups of bars, one in each group for each of at most two series."""
    width = 0.8 / max(len(series), 1)
    for place, (values, label) in enumerate(zip(series, labels, strict=True)):
        shift = (place - (len(series) - 1) / 2) * width
        axes.bar([i + shift for i in range(len(names))], values, width, color=_SERIES[place], label=label)
    if len(names) <= _MOST_LABELS:
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=7)
    axes.set_xlim(-0.7, max(len(names), 1) - 0.3)
    if len(series) > 1:
        axes.legend(fontsize=8)


def _plain_ticks(axes: Axes) -> None:
    """Numbers beside a logarithmic scale as plain text: matplotlib's own are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    if low > 0 and high < 10 * low:  # else not one number may stand beside it
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _short(name: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in name)
    return printable if len(printable) <= _LONGEST else f"{printable[: _LONGEST - 1]}…"


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, which no eye tells apart."""
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", attribute[0])


def _svg(figure: Figure, title: str) -> Markup:
    """The drawing as an element of a page: no heading of its own, no size, no identifiers but those that it uses."""
    buffer = io.StringIO()
    none: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=none, transparent=True)
    text = buffer.getvalue()
    drawing = text[text.index("<svg") :]
    drawing = re.sub(r"<!--.*?-->\n?", "", drawing, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', drawing))
    drawing = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", drawing)
    own = hashlib.sha256(drawing.encode()).hexdigest()[:8]  # several drawings stand in one page
    drawing = re.sub(r'(id="|url\(#|href="#)(?=[^")]+)', rf"\g<1>{own}-", drawing)
    for color, variable in _VARIABLES.items():
        drawing = drawing.replace(color, variable)
    drawing = re.sub(r' (?:d|x|y|width|height|transform)="[^"]*"', _rounded, drawing)
    width, height = figure.get_size_inches()
    heading = re.match(r"<svg[^>]*>", drawing)
    assert heading is not None
    opening = (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {width * 72:g} {height * 72:g}" '
        f'style="min-width:{math.ceil(width * 80)}px;max-width:{math.ceil(width * 110)}px">'
    )
    return Markup(opening + drawing[heading.end() :].replace("xlink:href", "href"))
