"""Named budgets: what they set, and what ranks above and below them."""

from __future__ import annotations

from typing import Any

import pytest

from genie_cli.config import QuantizeConfig, SynthesizeConfig, read_params, stage_config
from genie_cli.config.budgets import BUDGETS
from genie_cli.config.params import Params
from genie_cli.errors import UsageError
from genie_cli.quantization import presets as quantization
from genie_cli.synthesis import presets as synthesis


def synthesize(section: dict[str, Any], **flags: Any) -> SynthesizeConfig:
    return stage_config(SynthesizeConfig, section, flags, synthesis.find_preset, "synthesize")


def quantize(section: dict[str, Any], **flags: Any) -> QuantizeConfig:
    return stage_config(QuantizeConfig, section, flags, quantization.find_preset, "quantize")


@pytest.mark.parametrize(
    ("budget", "images", "steps", "unit_steps"),
    [("quick", 256, 120, 200), ("balanced", 1024, 250, 1000), ("paper", 1024, 4000, 20000)],
)
def test_images_and_steps(budget: str, images: int, steps: int, unit_steps: int) -> None:
    config = synthesize({}, budget=budget)
    assert (config.num_images, config.num_steps) == (images, steps)
    assert quantize({}, budget=budget).num_steps == unit_steps
    assert quantize({}, budget=budget).num_images is None  # all that there are


def test_the_paper_is_the_default() -> None:
    assert synthesize({}, budget="paper").determining() == synthesize({}).determining()
    assert quantize({}, budget="paper").determining() == quantize({}).determining()


def test_rank() -> None:
    assert quantize({}, preset="adaround").num_steps == 10000
    assert quantize({}, preset="adaround", budget="quick").num_steps == 200
    assert quantize({"budget": "quick", "num_steps": 7}).num_steps == 7
    assert quantize({"budget": "quick"}, num_steps=8).num_steps == 8
    assert quantize({"budget": "quick"}, budget="balanced").num_steps == 1000


def test_the_common_section_gives_it_to_both_stages() -> None:
    file = Params({"common": {"budget": "quick"}})
    assert synthesize(file.section("synthesize")).num_images == 256
    assert quantize(file.section("quantize")).num_steps == 200
    assert read_params(None).section("quantize") == {}


@pytest.mark.parametrize("make", [synthesize, quantize])
def test_a_name_that_is_not_known_is_refused(make: Any) -> None:
    with pytest.raises(UsageError, match=r"budget = 'fast' cannot be used: .*'quick', 'balanced' or 'paper'"):
        make({}, budget="fast")


def test_the_docstring_tells_the_figures() -> None:
    for name, budget in BUDGETS.items():
        text = str(SynthesizeConfig.model_fields["budget"].description)
        told = text.partition(f"{name}: ")[2].partition(".")[0]
        figures = [*budget.synthesize.values(), *budget.quantize.values()]
        assert [int(word) for word in told.replace(",", " ").split() if word.isdigit()] == figures
