"""Presets: options that their stage has, and words for people."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from genie_cli.config import Frozen, QuantizeConfig, SynthesizeConfig
from genie_cli.errors import UsageError
from genie_cli.quantization import presets as quantization
from genie_cli.synthesis import presets as synthesis

STAGES = {"synthesis": (synthesis, SynthesizeConfig), "quantization": (quantization, QuantizeConfig)}
EACH = pytest.mark.parametrize(
    ("module", "schema", "name"),
    [pytest.param(module, schema, name, id=name) for module, schema in STAGES.values() for name in module.PRESETS],
)


@EACH
def test_options_and_needs_are_keys_of_the_stage(module: ModuleType, schema: type[Frozen], name: str) -> None:
    preset = module.find_preset(name)
    assert {*preset.options, *preset.needs} <= set(schema.model_fields)
    assert not preset.options.keys() & preset.needs.keys()
    assert module.preset_options(name) == preset.options


@EACH
def test_summary_and_source_are_told(module: ModuleType, schema: type[Frozen], name: str) -> None:
    preset = module.find_preset(name)
    assert preset.summary and "\n" not in preset.summary
    assert re.search(r"\b20\d\d\b", preset.source) or name in ("minmax", "mse", "genie-fast", "genie-tuned")


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_name(stage: str) -> None:
    module, _ = STAGES[stage]
    first = next(iter(module.PRESETS))
    for find in (module.find_preset, module.preset_options):
        with pytest.raises(UsageError, match=rf"Unknown {stage} preset '{first}s': .*Did you mean '{first}'\?"):
            find(f"{first}s")
