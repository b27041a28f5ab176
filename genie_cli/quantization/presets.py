"""Quantization presets: each is a set of options, nothing more."""

from __future__ import annotations

from typing import Any

from genie_cli.errors import UsageError, nearest

PRESETS: dict[str, dict[str, Any]] = {
    "genie-m": {},  # joint step size and rounding, LSQ, QDrop (paper section 3.2)
    "minmax": {"reconstruct": False, "weight_range": "minmax", "activation_range": "minmax"},
}


def preset_options(name: str) -> dict[str, Any]:
    """The options of the preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    if name not in PRESETS:
        raise UsageError(f"Unknown quantization preset '{name}': {', '.join(PRESETS)}.{nearest(name, PRESETS)}")
    return PRESETS[name]
