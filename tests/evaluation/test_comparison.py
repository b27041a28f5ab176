"""The table that compares runs: names of rows, markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_cli.errors import InputError, UsageError
from genie_cli.evaluation.comparison import COLUMNS, as_csv, as_json, as_markdown, columns_of, read_rows

FIGURES = {
    "model": "resnet18", "metric": "classification", "preset": "genie-m", "protocol": "genie",
    "weight_bits": 4, "activation_bits": 4,
    "num_images": 50000, "top1": 69.6612, "top5": 89.0, "teacher_top1": 69.758, "drop": 0.0968, "agreement": 91.5,
    "per_class": {"tench": 80.0},
}  # fmt: skip


def saved(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**FIGURES, **changes}))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {**{key: FIGURES.get(key) for key in COLUMNS}, "scheme": "w4a4", **changes}


def schemes(paths: list[Path]) -> list[str]:
    return [row["scheme"] for row in read_rows(paths)]


def cells(line: str) -> list[str]:
    """The cells of a markdown row, as a reader of markdown splits and unescapes them."""
    inner = re.split(r"(?<!\\)(?:\\\\)*\|", line)
    assert (inner[0], inner[-1]) == ("", "")
    return [re.sub(r"\\(.)", r"\1", cell.strip()).replace("&lt;", "<").replace("&amp;", "&") for cell in inner[1:-1]]


# --- rows


def test_rows_hold_the_figures(tmp_path: Path) -> None:
    (read,) = read_rows([saved(tmp_path / "w4a4" / "metrics.json")])
    assert read == row()
    assert list(read) == list(COLUMNS)


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    for name in ("w4a4", "w2a4-minmax", "w2a4"):
        saved(tmp_path / f"{name}.json")
    assert schemes([tmp_path]) == ["w2a4", "w2a4-minmax", "w4a4"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no metrics file"):
        read_rows([empty])


def test_a_teacher_leaves_cells_empty(tmp_path: Path) -> None:
    path = tmp_path / "teacher.json"
    path.write_text(json.dumps({"top1": 70}))
    (read,) = read_rows([path])
    assert {key for key, value in read.items() if value is not None} == {"scheme", "metric", "top1"}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["w4a4/m.json", "w2a4/m.json"], ["w4a4", "w2a4"]),
        (["w4a4.json", "w2a4.json"], ["w4a4", "w2a4"]),
        (["x/a.json", "x/b.json", "y/c.json"], ["a", "b", "c"]),
        (["x/a.json", "x/b.json", "y/a.json"], ["x/a", "x/b", "y/a"]),
        (["one/w4a4/m.json", "two/w4a4/m.json"], ["one/w4a4", "two/w4a4"]),
    ],
)
def test_rows_are_called_after_what_tells_them_apart(tmp_path: Path, files: list[str], names: list[str]) -> None:
    assert schemes([saved(tmp_path / file) for file in files]) == names


def test_rows_that_only_their_whole_path_tells_apart(tmp_path: Path) -> None:
    paths = [saved(tmp_path / file) for file in ("a/x/w4/m.json", "b/x/w4/m.json")]
    assert schemes(paths) == [str(path) for path in paths]


def test_a_link_is_called_after_its_own_place(tmp_path: Path) -> None:
    """DVC links files into a cache, whose folders say nothing."""
    cached = saved(tmp_path / "cache" / "ab" / "cdef")
    paths = []
    for name in ("w4a4", "w2a4"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "metrics.json")
        paths[-1].symlink_to(cached)
    assert schemes(paths) == ["w4a4", "w2a4"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("rep/m1.json", "m1"), ("w4a4/metrics.json", "w4a4"), ("w4a4/Results.json", "w4a4"), ("w4a4/w2a2.json", "w2a2")],
)
def test_a_file_alone_is_called_after_itself_unless_that_says_nothing(tmp_path: Path, file: str, name: str) -> None:
    path = saved(tmp_path / file)
    assert schemes([path]) == [name]
    assert schemes([path.parent]) == [name]


def test_folders_that_only_a_page_shows(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "details.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match="is a quantized folder, which only a page shows: give --html FILE"):
        read_rows([tmp_path])
    (tmp_path / "runs" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="folders in it are read with --html alone"):
        read_rows([tmp_path / "runs"])


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "w4a4" / "m.json")
    saved(tmp_path / "w2a4" / "m.json")
    monkeypatch.chdir(tmp_path / "w4a4")
    assert schemes([Path("m.json"), Path("../w2a4/m.json")]) == ["w4a4", "w2a4"]


def test_a_file_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"m\.json is given twice"):
        read_rows([path, Path("./m.json")])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "'top1' is missing"),
        (b"{}", "'top1' is missing"),
        (b'{"top1": null}', "'top1' is missing"),
        (b'{"top1": "70"}', "'top1'"),
        (b'{"top1": true}', "'top1'"),
        (b'{"top1": NaN}', "'top1'"),
        (b'{"top1": 1e999}', "'top1'"),
        (b'{"top1": 1' + b"0" * 400 + b"}", "'top1'"),
        (b'{"top1": 70, "drop": []}', "'drop'"),
        (b'{"top1": 70, "model": 18}', "'model'"),
        (b'{"metric": 5, "x": 1}', "'metric'"),
        (b'{"metric": "segmentation", "num_images": 5, "curve": [1]}', "it has no figures"),
        (b'{"metric": "segmentation", "miou": "57"}', "'miou'"),
        (b'{"top1": 70, "weight_bits": "x"}', "'weight_bits'"),
        (b'{"top1": 70, "num_bytes": "x"}', "'num_bytes'"),
        (b'{"top1": 70, "data_sha256": 5}', "'data_sha256'"),
        (b'{"top1": 70, "share": NaN}', "'share'"),
        (b'{"top1": 70, "per_class": 5}', "'per_class'"),
        (b'{"top1": 70, "per_class": {"0": "x"}}', "'per_class'"),
        (b'{"metric": "fidelity", "sqnr_db": 3.0, "outputs": [1]}', "'outputs'"),
        (b'{"metric": "fidelity", "sqnr_db": 3.0, "outputs": {"out": 5}}', "'outputs'"),
        (b'{"top1": 70, "model": "\\ud800"}', "text that is no Unicode, '\\ud800'"),
        (b'{"top1": 70, "\\udc00": 1}', "text that is no Unicode, '\\udc00'"),
        (b'{"seconds": 5.0, "peak_memory": 3}', "it is seconds and memory of '--performance'"),
    ],
)
def test_files_that_are_no_metrics(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        read_rows([path])
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json cannot be read: No such file or directory"):
        read_rows([tmp_path / "no.json"])
    with pytest.raises(InputError, match="no metrics file"):
        read_rows([tmp_path])


# --- markdown


def test_markdown() -> None:
    rows = [row(), row(scheme="w2a4", weight_bits=2, top1=5, drop=-1.005, agreement=None)]
    assert as_markdown(rows) == (
        "Model: resnet18\n"
        "\n"
        "| scheme | preset | protocol | weight_bits | activation_bits | top1 | teacher_top1 | drop | agreement | top5 "
        "| num_images |\n"
        "| :-- | :-- | :-- | --: | --: | --: | --: | --: | --: | --: | --: |\n"
        "| w4a4 | genie-m | genie | 4 | 4 | 69.66 | 69.76 | 0.10 | 91.50 | 89.00 | 50000 |\n"
        "| w2a4 | genie-m | genie | 2 | 4 | 5.00 | 69.76 | -1.00 |  | 89.00 | 50000 |\n"
    )


def test_markdown_leaves_empty_columns_out() -> None:
    bare: dict[str, Any] = dict.fromkeys(COLUMNS)
    assert as_markdown([{**bare, "scheme": "a", "top1": 70.0}]) == "| scheme | top1 |\n| :-- | --: |\n| a | 70.00 |\n"


def test_markdown_of_several_models_names_them_in_their_rows() -> None:
    table = as_markdown([row(), row(scheme="b", model="resnet50")])
    assert table.startswith("| scheme | model | preset |")
    assert [cells(line)[1] for line in table.splitlines()[2:]] == ["resnet18", "resnet50"]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\\b", r"a\\b"),
        ("<b>x</b> & y", "&lt;b>x&lt;/b> &amp; y"),
        ("two\nlines\r\nand\ttabs", "two lines and tabs"),
        ("*bold* `code` [link] ~~x~~", r"\*bold\* \`code\` \[link\] \~\~x\~\~"),
        ("snake_case", "snake_case"),
    ],
)
def test_markdown_escapes(name: str, written: str) -> None:
    lines = as_markdown([row(scheme=name, model="m|n")]).splitlines()
    assert lines[0] == r"Model: m\|n"
    assert lines[-1].startswith(f"| {written} |")
    assert len(lines) == 5


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_name_is_one_cell(name: str) -> None:
    lines = as_markdown([row(scheme=name)]).split("\n")
    assert len(lines) == 6
    assert cells(lines[-2])[0] == " ".join(name.split())
    assert len(cells(lines[-2])) == len(COLUMNS) - 2


# --- other metrics


SEGMENTATION = {
    "model": "espnet", "metric": "segmentation", "num_images": 59, "miou": 57.4879, "pixel_accuracy": 86.3643,
    "teacher_miou": 57.5, "drop": 0.0121, "teacher_pixel_accuracy": 86.5, "drop_pixel_accuracy": 0.1357,
    "agreement": 99.5, "per_class": {"0": 90.0}, "data_sha256": "ab", "preset": "genie-m", "protocol": "genie",
    "weight_bits": 4, "activation_bits": 4,
}  # fmt: skip


def test_rows_hold_the_figures_of_any_metric(tmp_path: Path) -> None:
    path = tmp_path / "w4a4.json"
    path.write_text(json.dumps(SEGMENTATION))
    (read,) = read_rows([path])
    figures = list(SEGMENTATION)[3:10]
    assert list(read) == [*COLUMNS[:7], *figures, "num_images"]
    assert {key: read[key] for key in figures} == {key: SEGMENTATION[key] for key in figures}


def test_a_number_that_was_not_finite_is_an_empty_cell(tmp_path: Path) -> None:
    path = tmp_path / "same.json"
    path.write_text(json.dumps({"metric": "fidelity", "num_images": 2, "sqnr_db": None, "relative_error": 0.0}))
    table = as_markdown(read_rows([path]))
    assert table.splitlines()[-1] == "| same | 0 | 2 |"


def test_a_table_of_two_metrics(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SEGMENTATION))
    own = {"metric": "iou.py:make", "num_images": 3, "dice": 0.123456, "cosine": 1234.5}
    (tmp_path / "b.json").write_text(json.dumps(own))
    rows = read_rows([tmp_path / "a.json", tmp_path / "b.json"])
    assert columns_of(rows)[-3:] == ("dice", "cosine", "num_images")
    first, second = (cells(line) for line in as_markdown(rows).splitlines()[2:])
    assert first[:3] == ["a", "espnet", "segmentation"] and "57.49" in first
    assert second[:3] == ["b", "", "iou.py:make"] and second[-3:] == ["0.1235", "1234", "3"]


def test_a_shared_metric_is_written_above_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SEGMENTATION))
    lines = as_markdown(read_rows([tmp_path / "a.json"])).splitlines()
    assert lines[:4] == ["Model: espnet", "", "Metric: segmentation", ""]
    assert "metric" not in lines[4]


# --- CSV and JSON


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20))
def test_csv_holds_everything(name: str) -> None:
    text = as_csv([row(scheme=name), row(agreement=None)])
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(read[0]) == list(COLUMNS)
    assert read[0] == {key: str(value) for key, value in row(scheme=name).items()}
    assert read[1]["agreement"] == ""
    assert float(read[0]["top1"]) == FIGURES["top1"]


def test_json_is_by_scheme() -> None:
    text = as_json([row(), row(scheme="w2a4", top1=5.0)])
    loaded = json.loads(text)
    assert list(loaded) == ["w4a4", "w2a4"]
    assert (loaded["w2a4"]["top1"], loaded["w2a4"]["model"]) == (5.0, "resnet18")
    assert "scheme" not in loaded["w4a4"]
    assert text.endswith("}\n")
