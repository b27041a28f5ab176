"""A template for `dvc plots show --html-template` whose charts need no network: Vega stands in the page itself.

DVC's own page loads Vega from a server. ``python .ci/offline_plots.py TEMPLATE.html`` writes one with the copy of
it that the package vl-convert-python holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import vl_convert

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Plots</title>
<script>{vega}</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    """Write the template."""
    (out,) = sys.argv[1:]
    Path(out).write_text(_PAGE.replace("{vega}", vl_convert.javascript_bundle()), encoding="utf-8")


if __name__ == "__main__":
    main()
