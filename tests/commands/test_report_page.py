"""``genie report --html``: one self-contained page, whose figures are those of the files."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genie_cli.artifacts.metadata import sniff
from genie_cli.artifacts.network_size import network_size
from tests.commands.conftest import Genie, run_here

pytest.importorskip("matplotlib")

DIGITS = ("--model", "digits_resnet")
VOID = {"meta", "img"}
HOSTILE = "<script>alert(1)</script>&\"'$x_1$"


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """The elements of one kind inside of this one."""
        own = [self] if self.tag == tag else []
        return own + [found for child in self.children for found in child.all(tag)]

    @property
    def text(self) -> str:
        return " ".join(" ".join([*self.texts, *(child.text for child in self.children)]).split())

    def by_id(self, id: str) -> Element:
        return next(e for e in self.everything() if e.attributes.get("id") == id)

    def everything(self) -> list[Element]:
        return [self, *(found for child in self.children for found in child.everything())]


class Page(HTMLParser):
    """A page as a tree; an end tag that closes another element than the last one opened is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        assert len(self._open) == 1, [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, (self._open[-1].tag, tag)
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].texts.append(data)


def read_page(path: str) -> Element:
    return Page(Path(path).read_text(encoding="utf-8")).root


def rows_of(element: Element) -> list[dict[str, str]]:
    """The rows of the one table inside."""
    (table,) = element.all("table")
    titles = [heading.text for heading in table.all("th")]
    return [dict(zip(titles, [cell.text for cell in row.all("td")], strict=True)) for row in table.all("tr")[1:]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs with all that belongs to them, and files of others."""
    folder = tmp_path_factory.mktemp("runs") / "outputs"
    for name in ("metrics", "quantized", "exported"):
        (folder / name).mkdir(parents=True)
    images, log = folder / "images.safetensors", folder / "synthesis_loss.csv"
    run_here("synthesize", *DIGITS, "--n", 8, "--num-steps", 12, "--out", images, "--log", log)
    for preset, bits in (("minmax", 2), ("genie-m", 4)):
        name = f"{preset}-w{bits}a4"
        out = folder / "quantized" / name
        recipe = ("--preset", preset, "--weight-bits", bits, "--num-steps", 4, "--holdout", 0.25)
        run_here("quantize", *DIGITS, "--images", images, *recipe, "--out", out)
        measured = ("--quantized", out, "--data", "digits", "--num-images", 60)
        run_here("evaluate", *DIGITS, *measured, "--out", folder / "metrics" / f"{preset}.json")
    report = {
        "kind": "export", "num_bytes": 110700, "num_float_bytes": 320102, "agreement": 0.984375, "format": "onnx",
        "content_sha256": sniff(folder / "quantized" / "genie-m-w4a4")["content_sha256"], "runtime": "ONNX Runtime 1",
    }  # fmt: skip
    (folder / "exported" / "m.export.json").write_text(json.dumps(report))
    speeds = [
        {"file": f"/some/where/{name}.onnx", "weights": weights, "runtime": "ONNX Runtime 1", "threads": 1,
         "num_bytes": 1, "milliseconds": {"1": time}}
        for name, weights, time in (("f", "float", 3.0), ("i", "int8", 1.5))
    ]  # fmt: skip
    (folder / "speed.json").write_text(json.dumps(speeds))
    (folder / "notes.json").write_text('{"of": "someone else"}')
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    (folder / "weights.pth").write_bytes(b"no business of a report")
    return folder


@pytest.fixture(scope="module")
def page(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    told = run_here("report", outputs, "--html", path)
    assert re.search(r"report\.html: \d+ kB, 2 run\(s\)", told.stderr)
    assert "genie-m" in told.stdout  # the table of the metrics files
    return path.read_text(encoding="utf-8")


def test_page_is_complete_in_itself(page: str) -> None:
    assert len(page.encode()) < 5_000_000
    root = Page(page).root
    for element in root.everything():
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value.startswith(("#", "data:image/")), (element.tag, value)
            assert "http:" not in value.replace("http-equiv", "") and "https:" not in value, (element.tag, name)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", page)
    (policy,) = [e for e in root.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"].startswith("default-src 'none'")
    assert "/some/where" not in page
    ids = [element.attributes["id"] for element in root.everything() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    linked = {e.attributes["href"][1:] for e in root.all("a")}
    assert linked and linked <= set(ids)


def test_sections_and_their_charts(page: str) -> None:
    root = Page(page).root
    assert [section.all("h2")[0].text for section in root.all("section")] == [
        "Runs", "Images", "Loss of the synthesis", "Speed", "genie-m-w4a4", "minmax-w2a4",
    ]  # fmt: skip
    learned, _ = root.by_id("run-1"), root.by_id("run-2")
    titles = [heading.text for heading in learned.all("h3")]
    assert titles == [
        "Bits", "Error of each unit", "Loss of each unit", "Each class", "Exported files", "Weights before and after",
        "Outputs of units before and after",
    ]  # fmt: skip
    for chart in root.all("svg"):
        assert chart.attributes["role"] == "img" and chart.attributes["aria-label"]
        assert any(path.attributes.get("d") for path in chart.all("path"))
        drawn = {
            color for e in chart.everything() for color in re.findall(r"#[0-9a-f]{6}", e.attributes.get("style", ""))
        }
        assert drawn == set(), "all colours are those of the style sheet"
    layers = [option.text for option in learned.all("select")[0].all("option")]
    assert layers[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"] and layers[-1] == "fc"
    assert len(learned.by_id("run-1-layer").children) == len(layers) == 10


def test_figures_are_those_of_the_files(page: str, outputs: Path) -> None:
    root = Page(page).root
    rows = {row["run"]: row for row in rows_of(root.by_id("runs"))}
    for name, preset in (("genie-m-w4a4", "genie-m"), ("minmax-w2a4", "minmax")):
        folder = outputs / "quantized" / name
        figures = json.loads((outputs / "metrics" / f"{preset}.json").read_text())
        assert figures["quantized_sha256"] == sniff(folder)["content_sha256"]
        units = json.loads((folder / "metrics.json").read_text())["units"]
        errors = [unit["held_out_error"] for unit in units]
        size = network_size(folder)
        row = rows[name]
        assert row["network"] == "digits_resnet"
        assert (row["value"], row["drop"]) == (f"{figures['top1']:.2f}", f"{figures['drop']:.2f}")
        assert row["agreement %"] == f"{figures['agreement']:.2f}"
        assert row["mean unit error"] == f"{sum(errors) / len(errors):.4f}"
        assert row["worst unit error"] == f"{max(errors):.4f}"
        assert row["times smaller"] == f"{size.num_float_bytes / size.num_bytes:.1f}"
    assert rows["genie-m-w4a4"]["exported agrees %"] == "98.44" and rows["minmax-w2a4"]["exported agrees %"] == ""
    section = root.by_id("run-1")
    tables = {table.all("caption")[0].text: table for table in section.all("table")}
    units = json.loads((outputs / "quantized/genie-m-w4a4/metrics.json").read_text())["units"]
    shown = [[cell.text for cell in row.all("td")] for row in tables["Reconstruction units"].all("tr")[1:]]
    assert [(row[0], row[3], row[4]) for row in shown] == [
        (unit["name"], f"{unit['relative_error']:.6f}", f"{unit['held_out_error']:.6f}") for unit in units
    ]
    classes = json.loads((outputs / "metrics/genie-m.json").read_text())["per_class"]
    shown = [[cell.text for cell in row.all("td")] for row in tables["Classes"].all("tr")[1:]]
    assert dict(shown) == {name: f"{value:.2f}" for name, value in classes.items()}
    speed = {row["file"]: row for row in rows_of(root.by_id("speed"))}
    assert speed["i.onnx"]["times faster than float, batch 1"] == "2.00"


def test_images_are_in_the_page(page: str, outputs: Path) -> None:
    (image,) = Page(page).root.by_id("images").all("img")
    kind, _, content = image.attributes["src"].partition(";base64,")
    assert kind == "data:image/png" and image.attributes["alt"]
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.size == (3 * 16 + 2, 3 * 16 + 2)


def test_real_images_stand_beside_them(genie: Genie, outputs: Path) -> None:
    genie("report", outputs / "images.safetensors", "--real", "digits", "--html", "r.html")
    made, real = read_page("r.html").by_id("images").all("figure")
    assert "synthesized for digits_resnet" in made.text
    assert "real images: 64 of 64, 1x16x16" in real.text
    content = real.all("img")[0].attributes["src"].partition(";base64,")[2]
    pixels = set(Image.open(io.BytesIO(base64.b64decode(content))).convert("L").getdata())
    assert {0, 255} <= pixels
    assert "--html" in genie("report", "m.json", "--real", "digits", code=2).stderr
    Path("m.json").write_text('{"model": "net", "metric": "classification", "top1": 3.0, "num_images": 4}')
    assert (
        "--real needs an image set" in genie("report", "m.json", "--real", "digits", "--html", "r.html", code=2).stderr
    )


def test_the_same_files_give_the_same_page(genie: Genie, page: str, outputs: Path) -> None:
    genie("report", outputs, "--html", "again.html")
    assert Path("again.html").read_text(encoding="utf-8") == page


def test_hostile_names_are_text(genie: Genie, outputs: Path) -> None:
    folder = Path("quantized") / HOSTILE.replace("/", "_")
    shutil.copytree(outputs / "quantized" / "genie-m-w4a4", folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["units"][0]["name"] = HOSTILE
    (folder / "metrics.json").write_text(json.dumps(metrics))
    figures = json.loads((outputs / "metrics" / "genie-m.json").read_text())
    figures["per_class"] = {HOSTILE: 50.0, "]]>": 1.0}
    Path("m.json").write_text(json.dumps(figures))
    genie("report", folder, "m.json", "--html", "r.html")
    text = Path("r.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    root = Page(text).root
    assert len(root.all("script")) == 1
    assert HOSTILE in root.all("table")[0].text or HOSTILE in root.text
    assert HOSTILE in " ".join(chart.text for chart in root.all("svg"))


def test_figures_alone(genie: Genie) -> None:
    Path("m").mkdir()
    for name, value in (("a", 12.345), ("b", 7.0)):
        fields = {"model": "net", "metric": "fidelity", "sqnr_db": value, "num_images": 4, "outputs": {}}
        Path(f"m/{name}.json").write_text(json.dumps(fields))
    genie("report", "m", "--html", "r.html")
    rows = rows_of(read_page("r.html").by_id("runs"))
    assert [(row["run"], row["figure"], row["value"]) for row in rows] == [
        ("a", "sqnr_db", "12.35"),
        ("b", "sqnr_db", "7"),
    ]
    assert not Path("report").exists()


def test_figures_without_a_hash_belong_to_the_run_of_their_name(genie: Genie, outputs: Path) -> None:
    for name, top1 in (("genie-m-w4a4", 81.0), ("minmax-w2a4", 18.0), ("third", 55.0)):
        fields = {"model": "digits_resnet", "metric": "classification", "top1": top1, "num_images": 9}
        Path(f"{name}.json").write_text(json.dumps(fields))
    files = [f"{name}.json" for name in ("genie-m-w4a4", "minmax-w2a4", "third")]
    genie("report", outputs / "quantized", *files, "--html", "r.html")
    rows = {row["run"]: row["value"] for row in rows_of(read_page("r.html").by_id("runs"))}
    assert rows == {"genie-m-w4a4": "81.00", "minmax-w2a4": "18.00", "third": "55.00"}


def test_the_same_weights_beside_other_step_sizes_are_told_apart(genie: Genie, outputs: Path) -> None:
    """Weights that are not learned are the same at every width of the activations, and so is their hash."""
    Path("q").mkdir()
    recipe = ("--preset", "minmax", "--weight-bits", 2, "--images", outputs / "images.safetensors")
    for bits in (2, 4):
        genie("quantize", *DIGITS, *recipe, "--activation-bits", bits, "--out", f"q/minmax-w2a{bits}")
    one, two = (sniff(Path(f"q/minmax-w2a{bits}"))["content_sha256"] for bits in (2, 4))
    assert one == two
    for bits in (4, 2):
        report = {"kind": "export", "num_bytes": 1000 * bits, "agreement": bits / 4, "content_sha256": one}
        Path(f"q/minmax-w2a{bits}.export.json").write_text(json.dumps(report))
        measured = ("--quantized", f"q/minmax-w2a{bits}", "--data", "digits", "--num-images", 60)
        genie("evaluate", *DIGITS, *measured, "--out", f"q/measured-{4 - bits}.json")
    genie("report", "q", "--html", "r.html")
    rows = {row["run"]: row for row in rows_of(read_page("r.html").by_id("runs"))}
    assert rows.keys() == {"minmax-w2a2", "minmax-w2a4"}
    for bits in (2, 4):
        figures = json.loads(Path(f"q/measured-{4 - bits}.json").read_text())
        row = rows[f"minmax-w2a{bits}"]
        assert row["value"] == f"{figures['top1']:.2f}" and row["exported agrees %"] == f"{25 * bits}.00"
    Path("q/elsewhere.export.json").write_text(Path("q/minmax-w2a2.export.json").read_text())
    genie("report", "q", "--html", "r.html")  # of either: it stands for itself
    assert "elsewhere" in {row["run"] for row in rows_of(read_page("r.html").by_id("runs"))}


def test_a_folder_of_an_earlier_genie(genie: Genie) -> None:
    folder = Path(__file__).parents[1] / "golden" / "format1" / "genie-m-w4a4"
    genie("report", folder, "--html", "r.html")
    assert "no details.json" in read_page("r.html").by_id("run-1").text


def test_charts_are_left_out_without_room(genie: Genie, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genie_cli.report import room

    monkeypatch.setattr(room, "DRAWN", 150_000)
    genie("report", outputs, "--html", "r.html")
    text = Path("r.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 250_000
    assert "more are not drawn, so that the page stays under 5.00 MB" in text


@pytest.mark.parametrize(
    ("runs", "code", "told"),
    [
        (["no"], 3, "no does not exist"),
        (["empty"], 3, "Folder empty holds nothing that genie wrote"),
        (["other.json"], 3, "other.json is none of the files that genie's commands write"),
        (["broken.json"], 3, "broken.json is not valid JSON"),
        (["other.csv"], 3, "other.csv is no loss curve"),
        (["damaged.csv"], 3, "damaged.csv is a damaged loss curve"),
        (["weights.pth"], 3, "weights.pth is no file that a report reads"),
        (["good.json", "./good.json"], 2, "given twice"),
        (["much.json"], 3, "its 'top1' is not a valid value"),
    ],
)  # fmt: skip
def test_bad_input(genie: Genie, runs: list[str], code: int, told: str) -> None:
    Path("empty").mkdir()
    good: dict[str, Any] = {"model": "net", "metric": "classification", "top1": 3.0, "num_images": 4}
    files = {
        "other.json": "{}", "broken.json": "{", "other.csv": "a,b\n", "weights.pth": "",
        "damaged.csv": "batch,step,loss,latent_lr\n1,x,1,1\n", "good.json": json.dumps(good),
        "much.json": json.dumps({**good, "top1": "much"}),
    }  # fmt: skip
    for name, text in files.items():
        Path(name).write_text(text)
    error = genie("report", *runs, "--html", "r.html", code=code).stderr
    assert told in error and error.count("\n") == 1
    assert not Path("r.html").exists()


def test_a_page_does_not_go_into_a_quantized_folder(genie: Genie, quantized: Path) -> None:
    error = genie("report", quantized, "--html", quantized / "report.html", code=2).stderr
    assert "holds a quantized network and nothing else" in error


def test_runs_without_a_section_of_their_own(genie: Genie, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genie_cli.report import room

    monkeypatch.setattr(room, "DRAWN", 0)
    monkeypatch.setattr(room, "LIMIT", 18_000)
    genie("report", outputs / "quantized", "--html", "r.html")
    root = read_page("r.html")
    assert [section.attributes["id"] for section in root.all("section")] == ["runs", "run-1"]
    assert "The last 1 runs stand in this table alone" in root.by_id("runs").text


def test_without_the_extra(genie: Genie, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'genie-cli[report]'" in genie("report", quantized, "--html", "r.html", code=2).stderr


def test_names_beside_a_chart_keep_their_distance() -> None:
    from genie_cli.report.charts import spread

    assert spread([0.9, 0.5, 0.1], 0.2) == pytest.approx([0.9, 0.5, 0.1])
    assert spread([0.5, 0.5, 0.5], 0.25) == [0.75, 0.5, 0.25]
    places = spread([0.9, 0.62, 0.6, 0.1, 0.1], 0.2)
    assert all(above - below > 0.2 - 1e-9 for above, below in pairwise(places))
    assert abs(sum(places) - sum([0.9, 0.62, 0.6, 0.1, 0.1])) < 1e-9  # as much up as down
