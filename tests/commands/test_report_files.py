"""``genie report``: which files of folders it reads, and outputs that would replace one another or what is read."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import Genie

TABLES = ["figures.json", "table.csv", "table.json", "table.md"]
PIPELINE = """
vars:
  - presets: [minmax, mse]
stages:
  evaluate:
    matrix:
      preset: ${presets}
      scheme: ${quantize.schemes}
    cmd: none
    outs:
      - metrics/${item.preset}-${item.scheme}.json
"""


def save(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {"model": "net", "metric": "fidelity", "num_images": 4, "sqnr_db": 30.0}
    path.write_text(json.dumps({**figures, **changes}))
    return path


def listed(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


# --- a pipeline


@pytest.fixture
def pipeline() -> None:
    """A repository with the files of four runs, of which the pipeline has two."""
    pytest.importorskip("dvc")
    (Path(".dvc")).mkdir()
    Path(".dvc", "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    Path("dvc.yaml").write_text(PIPELINE)
    Path("params.yaml").write_text("quantize: {schemes: {w4a4: {weight_bits: 4}}}")
    for run in ("minmax-w4a4", "mse-w4a4", "mse-w2a2", "qdrop-w4a4"):
        save(Path("metrics", f"{run}.json"))


def test_runs_that_were_taken_out_of_a_pipeline_are_left_out(genie: Genie, pipeline: None) -> None:
    told = genie("report", "metrics", "--pipeline", "dvc.yaml")
    assert list(json.loads(Path("report/table.json").read_text())) == ["minmax-w4a4", "mse-w4a4"]
    note = "Left out, since no stage of dvc.yaml writes them: metrics/mse-w2a2.json, metrics/qdrop-w4a4.json."
    assert note in told.stderr
    Path("dvc.yaml").write_text(PIPELINE.replace("[minmax, mse]", "[minmax]"))
    genie("report", "metrics", "--pipeline", "dvc.yaml")
    assert list(json.loads(Path("report/table.json").read_text())) == ["minmax-w4a4"]
    genie("report", "metrics", "metrics/qdrop-w4a4.json", "--pipeline", "dvc.yaml", code=0)
    assert "qdrop-w4a4" in Path("report/table.json").read_text()  # named, so wanted


def test_a_page_of_a_pipeline(genie: Genie, pipeline: None) -> None:
    pytest.importorskip("matplotlib")
    genie("report", "metrics", "--pipeline", "dvc.yaml", "--html", "r.html")
    page = Path("r.html").read_text(encoding="utf-8")
    assert "minmax-w4a4" in page and "mse-w4a4" in page
    assert "mse-w2a2" not in page and "qdrop" not in page


def test_pipelines_that_cannot_be_read(genie: Genie, pipeline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(file: str, runs: str = "metrics", code: int = 3) -> str:
        return genie("report", runs, "--pipeline", file, code=code).stderr

    assert "Pipeline no.yaml does not exist" in told("no.yaml")
    save(Path("other", "a.json"))
    assert "Folder other holds no output of dvc.yaml" in told("dvc.yaml", "other")
    Path("dvc.yaml").write_text("stages: 5")
    assert "Pipeline dvc.yaml cannot be read: " in told("dvc.yaml")
    Path("dvc.yaml").write_text("stages: [")
    assert "Pipeline dvc.yaml cannot be read: " in told("dvc.yaml")
    Path("dvc.yaml").write_text(PIPELINE)
    shutil.rmtree(".dvc")
    assert "Pipeline dvc.yaml cannot be read: " in told("dvc.yaml")
    monkeypatch.setitem(sys.modules, "dvc.repo", None)
    assert "pip install 'genie-cli[pipelines]'" in told("dvc.yaml", code=2)
    assert not Path("report").exists()


# --- outputs


@pytest.mark.parametrize("name", TABLES)
def test_tables_do_not_replace_what_is_read(genie: Genie, name: str) -> None:
    before = save(Path("rr", name)).read_text()
    error = genie("report", f"rr/{name}", "--out", "rr", code=2).stderr
    assert f"--out would replace rr/{name}, which is one of the RUNs: choose another --out" in error
    assert (listed("rr"), Path("rr", name).read_text()) == ([name], before)


def test_tables_do_not_replace_the_files_of_a_folder_that_is_read(genie: Genie) -> None:
    save(Path("rr/figures.json"))
    save(Path("rr/table.json"))
    assert "--out would replace rr/table.json" in genie("report", "rr", "--out", "rr", code=2).stderr
    save(Path("runs/a.json"))
    genie("report", "runs", "--out", "runs")
    assert listed("runs") == ["a.json", *TABLES]


def test_a_page_is_no_table_and_no_run(genie: Genie) -> None:
    pytest.importorskip("matplotlib")
    save(Path("runs/a.json"))
    error = genie("report", "runs", "--html", "ro/../ro/table.md", "--out", "ro", code=3).stderr
    assert "Output folder ro/../ro does not exist: create it or choose another --html" in error
    Path("ro").mkdir()
    error = genie("report", "runs", "--html", "ro/../ro/table.md", "--out", "ro", code=2).stderr
    assert "--html and --out ro would write the same file ro/../ro/table.md: choose another --html" in error
    error = genie("report", "runs", "--html", "runs/a.json", code=2).stderr
    assert "--html would replace runs/a.json" in error
    assert (listed("ro"), listed("runs")) == ([], ["a.json"])


def test_messages_name_the_option_at_fault(genie: Genie) -> None:
    pytest.importorskip("matplotlib")
    save(Path("runs/a.json"))
    Path("folder").mkdir()
    for arguments, told in (
        (("--html", "folder"), "Output folder is a folder, and a file is to be written: give --html a file name in it"),
        (("--html", "no/a.html"), "Output folder no does not exist: create it or choose another --html"),
        (("--html", os.devnull), "is not a regular file: choose another --html"),
        (
            ("--html", "a.html", "--out", "no/folder"),
            "Output folder no does not exist: create it or choose another --out",
        ),
        (
            ("--html", "a.html", "--out", "runs/a.json"),
            "is a file, and a folder is to be written: choose another --out",
        ),
    ):
        assert told in genie("report", "runs", *arguments, code=3).stderr
    assert not Path("a.html").exists()


def test_nothing_goes_into_a_quantized_folder(genie: Genie, quantized: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copytree(quantized, "runs/q")
    before = listed("runs/q")
    for arguments in (("--html", "runs/q/r.html"), ("--html", "r.html", "--out", "runs/q")):
        error = genie("report", "runs", *arguments, code=2).stderr
        assert "is in the folder of RUN runs/q, which holds a quantized network and nothing else" in error
    assert listed("runs/q") == before and not Path("r.html").exists()
    assert "is a quantized folder, which only a page shows" in genie("report", "runs/q", code=2).stderr


def test_a_name_that_is_no_text(genie: Genie) -> None:
    pytest.importorskip("matplotlib")
    try:
        save(Path(os.fsdecode(b"a\xff.json")))
    except OSError:
        pytest.skip("the file system takes no such name")
    for arguments in ((), ("--html", "r.html")):
        error = genie("report", ".", *arguments, code=3).stderr
        assert r"The name of 'a\udcff.json' is no UTF-8 text: rename the file or folder" in error
    assert len(listed(".")) == 1
