"""Synthesis presets: each is a set of options, nothing more."""

from __future__ import annotations

from typing import Any

from genie_cli.errors import UsageError, nearest

PRESETS: dict[str, dict[str, Any]] = {
    "genie": {},  # GENIE-D: generator, learned latents, swing convolution (M6/M7 of Table 2)
    # the same with rates that reach its loss in half the steps (docs/performance.md)
    "genie-fast": {"generator_lr": 0.002, "latent_lr": 0.3, "num_steps": 2000},
}


def preset_options(name: str) -> dict[str, Any]:
    """The options of the preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    if name not in PRESETS:
        raise UsageError(f"Unknown synthesis preset '{name}': {', '.join(PRESETS)}.{nearest(name, PRESETS)}")
    return PRESETS[name]
