"""``--plugin FILE.py``: the page's examples, what is recorded, what a changed file does, and bad input."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

import genie_cli
from genie_cli.artifacts.images import load_images
from genie_cli.artifacts.metadata import sniff
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.runtime.registered import all_registered, registrations_restored
from tests.commands.conftest import Genie

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
DIGITS = ("--model", "digits_resnet")
SHORT = ("--n", 4, "--num-steps", 3)


@pytest.fixture
def examples() -> None:
    """The page's files, in the working folder."""
    found = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in found] == ["smooth.py", "bounded.py", "quick.py"]
    for name, text in found:
        Path(name).write_text(text)


def file_hash(name: str) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


@pytest.mark.usefixtures("examples")
def test_a_term_changes_the_images_as_far_as_its_weight_goes(genie: Genie) -> None:
    def variation(path: str) -> float:
        pixels = load_images(Path(path)).images.float()
        return float(pixels.diff(dim=2).abs().mean() + pixels.diff(dim=3).abs().mean())

    recipe = ("synthesize", *DIGITS, "--n", 4, "--num-steps", 20, "--preset", "zeroq")
    genie(*recipe, "--out", "plain.safetensors")
    with_term = (*recipe, "--plugin", "smooth.py", "--term")
    genie(*with_term, "total-variation=0", "--out", "off.safetensors")
    genie(*with_term, "total-variation=50", "--out", "on.safetensors")
    plain, off, on = (load_images(Path(f"{name}.safetensors")) for name in ("plain", "off", "on"))
    assert torch.equal(plain.images, off.images)
    assert variation("on.safetensors") < 0.8 * variation("plain.safetensors")
    assert on.metadata.plugins == {"synthesis term total-variation": file_hash("smooth.py")}
    assert on.metadata.config["terms"] == {"total-variation": 50.0}
    assert plain.metadata.plugins == off.metadata.plugins == {}
    assert "smooth.py" not in json.dumps(sniff(Path("on.safetensors")))
    assert all_registered() == ()


@pytest.mark.usefixtures("examples")
def test_a_rounding_and_a_network_that_needs_no_plugin(genie: Genie, images: Path) -> None:
    recipe = ("quantize", *DIGITS, "--images", images, "--num-steps", 30, "--weight-bits", 3)
    genie(*recipe, "--plugin", "bounded.py", "--rounding", "bounded", "--out", "bounded")
    genie(*recipe, "--rounding", "nearest", "--out", "nearest")
    metadata = sniff(Path("bounded"))
    assert metadata["plugins"] == {"rounding bounded": file_hash("bounded.py")}
    assert metadata["config"]["rounding"] == "bounded" and "plugins" not in metadata["config"]
    moved, start = load_quantized(Path("bounded")).weights, load_quantized(Path("nearest")).weights
    far = max(int((moved[name].codes.int() - start[name].codes.int()).abs().max()) for name in start)
    assert far == 1  # they learned, and no further than the class lets them
    Path("bounded.py").unlink()
    for command in (("verify", "bounded", *DIGITS), ("inspect", "bounded")):
        genie(*command)
    figures = genie("evaluate", *DIGITS, "--quantized", "bounded", "--data", "digits", "--num-images", 60, "--json")
    assert json.loads(figures.stdout)["top1"] > 50


@pytest.mark.usefixtures("examples")
def test_a_preset_is_options_under_flags_and_params(genie: Genie, images: Path) -> None:
    Path("p.yaml").write_text("quantize: {plugins: [quick.py], preset: quick, batch_size: 2}")
    genie("quantize", *DIGITS, "--images", images, "--params", "p.yaml", "--num-steps", 2, "--out", "q")
    metadata = sniff(Path("q"))
    assert metadata["preset"] == "quick"
    assert metadata["plugins"] == {"quantization preset quick": file_hash("quick.py")}
    chosen = {key: metadata["config"][key] for key in ("rounding", "num_steps", "batch_size", "drop_prob")}
    assert chosen == {"rounding": "adaround", "num_steps": 2, "batch_size": 2, "drop_prob": 0.0}


def test_from_python() -> None:
    with registrations_restored():

        @genie_cli.synthesis_term("darkness")
        def darkness(batch: genie_cli.ImageBatch) -> torch.Tensor:
            return batch.pixels.mean()

        @genie_cli.preset("dark", of="synthesize")
        def dark() -> dict[str, object]:
            """Dark images."""
            return {"generator": False, "swing": False, "terms": {"darkness": 30.0}}

        made = genie_cli.synthesize("digits_resnet", preset="dark", num_images=4, num_steps=10)
        plain = genie_cli.synthesize("digits_resnet", preset="zeroq", num_images=4, num_steps=10)
        sha256 = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        assert made.metadata.plugins == {"synthesis preset dark": sha256, "synthesis term darkness": sha256}
        assert made.images.float().mean() < plain.images.float().mean()
    with pytest.raises(genie_cli.errors.UsageError, match="Unknown synthesis preset 'dark'"):
        genie_cli.synthesize("digits_resnet", preset="dark")


@pytest.mark.usefixtures("examples")
def test_a_killed_run_goes_on_with_the_same_file_alone(genie: Genie) -> None:
    """A term that interrupts the run stands for the kill; the work that it leaves belongs to that file."""
    text = Path("smooth.py").read_text()
    stop = '\n\nimport signal\nfrom pathlib import Path\n\nif not Path("gone-on").exists():\n' + (
        "    count, inner = [0], total_variation\n\n"
        "    def stopping(batch):\n        count[0] += 1\n        if count[0] == 6:\n"
        "            signal.raise_signal(signal.SIGINT)\n        return inner(batch)\n\n"
        '    genie_cli.synthesis_term("total-variation")(stopping)\n'
    )
    Path("smooth.py").write_text(text + stop)
    recipe = ("synthesize", *DIGITS, "--n", 8, "--num-steps", 4, "--batch-size", 4, "--checkpoint-interval", 0)
    named = (*recipe, "--plugin", "smooth.py", "--term", "total-variation=1", "--out", "i.safetensors")
    genie(*named, code=130)
    Path("gone-on").touch()
    told = genie(*named).stderr
    assert "going on where an earlier run was" in told
    gone_on = Path("i.safetensors").read_bytes()
    genie(*named, "--fresh")
    assert Path("i.safetensors").read_bytes() == gone_on
    Path("gone-on").unlink()
    genie(*named, code=130)
    Path("gone-on").touch()
    Path("smooth.py").write_text(text + stop + "# another file\n")
    assert "going on where" not in genie(*named).stderr


TERM = "import genie_cli\n\n@genie_cli.synthesis_term('t')\ndef t(batch):\n    "
ROUNDING = "import genie_cli\n\n@genie_cli.rounding('r')\nclass R(genie_cli.LearnedWeight):\n    has_softbits = False\n"
STRAIGHT = """
from genie_cli.quantization.learned.straight_through_weight import StraightThroughWeight

@genie_cli.rounding('r')
class R(StraightThroughWeight):
    def parts(self, elements, step_size):
        parts = super().parts(elements, step_size)
        return {}
"""


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (None, 3, "Plug-in file p.py does not exist."),
        ("x = 1", 3, "Plug-in p.py registers nothing: decorate"),
        ("x = 1 / 0", 3,
         "failed while it was imported: ZeroDivisionError: division by zero (p.py, line 1, in <module>: x = 1"),
        ("def f(:", 3, "SyntaxError"),
        (TERM + "return batch.pixels", 3, "must return a scalar tensor of floats, it returned a tensor of shape [2,"),
        (TERM + "return 3.0", 3, "Term 'p.py:t' must return a scalar tensor of floats, it returned float"),
        (TERM + "return batch.labels.float().mean()", 3, "does not depend on the images"),
        (TERM + "return (batch.pixels - 2).log().mean()", 3, "Term 'p.py:t' is NaN or infinity on images of noise"),
        (TERM + "return batch.pixel", 3, "failed in t(): AttributeError: 'ImageBatch' object has no attribute 'pixel'"),
        (TERM + "return batch.pixel", 3, "(p.py, line 5, in t: return batch.pixel)"),
        (TERM + "return batch.logits.mean()", 3, "AttributeError: 'NoneType' object has no attribute 'mean'"),
        (TERM.replace("'t'", "'s'") + "return 0", 2, "Unknown synthesis term 't': those of the plug-ins are s."),
        (TERM.replace("'t'", "'a b'") + "return 0", 2, "a name has letters, digits, '-' and '_'"),
        (TERM + "return 0\n\n@genie_cli.preset('zeroq', of='synthesize')\ndef z():\n    return {}", 2,
         "p.py:z registers a synthesis preset as 'zeroq', as one of genie's own is called: rename it."),
        (TERM + "return 0\n\n@genie_cli.preset('z', of='evaluate')\ndef z():\n    return {}", 2, "have presets"),
        (TERM + "return 0\n\n@genie_cli.preset('z', of='synthesize')\ndef z():\n    return 3", 2, "it returned int"),
    ],
)  # fmt: skip
def test_bad_plugins_of_a_synthesis(genie: Genie, text: str | None, code: int, told: str) -> None:
    if text is not None:
        Path("p.py").write_text(text)
    error = genie("synthesize", *DIGITS, *SHORT, "--plugin", "p.py", "--term", "t=1", code=code).stderr
    assert told in error and error.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in error and not Path("images.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        (ROUNDING, 2, "Rounding 'r', class R, lacks codes, parts."),
        (ROUNDING.replace("genie_cli.LearnedWeight", "object"), 2, "must be a class made of genie_cli.LearnedWeight"),
        (ROUNDING.replace("'r'", "'genie'") + "    parts = codes = 3", 2, "as one of genie's own is called"),
        ("import genie_cli" + STRAIGHT, 3,
         "Rounding 'p.py:R' must return genie_cli.WeightParts from parts(), it returned dict."),
        ("import genie_cli" + STRAIGHT.replace("return {}", "return parts._replace(slope=parts.slope / 0)"), 3,
         "Rounding 'p.py:R' must give a slope of finite numbers in the weight's shape, 3x2x2x1; it gave a tensor of"),
        ("import genie_cli" + STRAIGHT.replace("return {}", "return wrong"), 3, "failed in parts(): NameError"),
    ],
)  # fmt: skip
def test_bad_roundings(genie: Genie, images: Path, text: str, code: int, told: str) -> None:
    Path("p.py").write_text(text)
    named = ("--images", images, "--plugin", "p.py", "--rounding", "r", "--out", "q")
    error = genie("quantize", *DIGITS, *named, code=code).stderr
    assert told in error and "Traceback" not in error and not Path("q").exists()


def test_two_plugins_of_one_name(genie: Genie) -> None:
    for name in ("one.py", "two.py"):
        Path(name).write_text(TERM + "return batch.pixels.mean()")
    error = genie("synthesize", *DIGITS, *SHORT, "--plugin", "one.py", "--plugin", "two.py", code=2).stderr
    assert "two.py:t registers a synthesis term as 't', as one.py:t does: rename one." in error
    assert all_registered() == ()


def test_a_weight_that_is_none(genie: Genie) -> None:
    assert "'t' must be NAME=WEIGHT" in genie("synthesize", *DIGITS, "--term", "t", code=2).stderr
    assert "none is registered; --plugin names a file" in genie("synthesize", *DIGITS, "--term", "t=1", code=2).stderr


def test_an_artifact_names_no_file(genie: Genie, images: Path) -> None:
    """Metadata that name a file do not make genie load it."""
    Path("evil.py").write_text("raise SystemExit('run')")
    genie("quantize", *DIGITS, "--preset", "minmax", "--images", images, "--out", "q")
    for name in ("weights.safetensors", "step_sizes.safetensors"):
        content = Path("q", name).read_bytes()
        old = b'\\"plugins\\":{}'
        new = old.replace(b"{}", b'{\\"rounding x\\":\\"evil.py\\"}')
        assert old in content
        size = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + size].replace(old, new)
        Path("q", name).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    genie("verify", "q", *DIGITS)
    assert json.loads(genie("inspect", "q", "--json").stdout)["plugins"] == {"rounding x": "evil.py"}
