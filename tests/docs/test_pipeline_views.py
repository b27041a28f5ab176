"""What DVC shows of the pipelines: few metrics, and charts that need no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.browser import chromium

ROOT = Path(__file__).parents[2]


def test_the_root_pipeline_compares_one_figure_of_each_network() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    metrics = [entry for stage in stages.values() for entry in stage.get("metrics", ())]
    assert metrics == ["outputs/report/figures.json"]  # with `cache: false` no experiment would keep it


def test_charts_without_a_network(tmp_path: Path) -> None:
    """DVC's page, made with the template, draws a chart in a browser that reaches nothing."""
    pytest.importorskip("vl_convert")
    dvc = Path(sys.executable).with_name("dvc")
    (tmp_path / "loss.csv").write_text("step,loss\n1,3\n2,2\n3,1.5\n")
    (tmp_path / "dvc.yaml").write_text("plots:\n  - loss.csv: {x: step, y: loss}\n")

    def run(*arguments: object) -> None:
        subprocess.run(list(map(str, arguments)), cwd=tmp_path, capture_output=True, timeout=110, check=True)

    run(shutil.which("git"), "init", "-q")
    run(dvc, "init", "-q")
    run(sys.executable, ROOT / ".ci" / "offline_plots.py", "template.html")
    run(dvc, "plots", "show", "--html-template", "template.html", "--out", "plots")
    page_file = tmp_path / "plots" / "index.html"
    assert 'src="http' not in page_file.read_text(encoding="utf-8")
    with chromium() as browser:
        context = browser.new_context(offline=True)
        page, told = context.new_page(), []
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_selector(".vega-embed canvas, .vega-embed svg", timeout=60_000)
        assert told == []
