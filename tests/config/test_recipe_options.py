"""Each option of a recipe that the paper does not have is a part of a preset, or an experiment that says it is kept."""

from __future__ import annotations

import re
from pathlib import Path

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.presets import PRESETS

EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments.md"
WHAT_IS_WANTED = {
    *("weight_bits", "activation_bits", "weight_grid", "bits_override", "protocol", "preset"),
    *("target_size", "target_ratio", "target_bitops", "widths", "repair"),
}
HOW_IT_RUNS = {"num_images", "num_steps", "batch_size", "seed", "deterministic", "precision", "holdout", "patience"}
PUBLISHED = {
    *("reconstruct", "data_free", "equalize", "unit", "max_unit_layers", "rounding", "loss", "weight_range"),
    *("activation_range", "weight_step_lr", "weight_step_space", "activation_step_lr", "rounding_lr", "drop_prob"),
    *("round_weight", "warmup", "beta_start", "beta_end"),
}
"""Options that make the paper's method and those that it is compared with."""


def test_each_recipe_option_is_used_or_kept_by_an_experiment():
    own = {*QuantizeConfig().determining()} - WHAT_IS_WANTED - HOW_IT_RUNS - PUBLISHED
    in_presets = {option for preset in PRESETS.values() for option in preset.options}
    headings = [line for line in EXPERIMENTS.read_text().splitlines() if line.startswith("## ")]
    kept = {
        name.replace("-", "_")
        for line in headings
        if re.search(r": kept\b", line)
        for name in re.findall(r"`--([a-z-]+)`", line)
    }
    assert own, "the recipes of our own have options"
    assert own - in_presets - kept == set()
    assert kept <= {*QuantizeConfig.model_fields}
