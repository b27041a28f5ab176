"""Quantization presets: each is a set of options, nothing more."""

from __future__ import annotations

from typing import Any

from genie_cli.errors import look_up

_NETWISE = {"unit": "network", "rounding": "adaquant", "drop_prob": 0.0, "rounding_lr": 1e-3}

PRESETS: dict[str, dict[str, Any]] = {
    # joint step size and rounding, LSQ, QDrop (paper section 3.2)
    "genie-m": {},
    # no optimisation
    "minmax": {"reconstruct": False, "weight_range": "minmax", "activation_range": "minmax"},
    "mse": {"reconstruct": False},
    # Nagel et al., "Data-Free Quantization", ICCV 2019: no images at all
    "dfq": {"data_free": True, "reconstruct": False, "weight_range": "minmax"},
    # divide and conquer
    # Nagel et al., "Up or Down?", ICML 2020: layer by layer; activation ranges stay as they were found
    "adaround": {
        "unit": "layer", "rounding": "adaround", "drop_prob": 0.0, "activation_step_lr": 0.0,
        "rounding_lr": 1e-2, "round_weight": 0.01, "num_steps": 10000,
    },
    # Hubara et al., "Accurate Post Training Quantization with Small Calibration Sets", ICML 2021
    "adaquant": {"unit": "layer", "rounding": "adaquant", "drop_prob": 0.0, "rounding_lr": 1e-3},
    # Li et al., "BRECQ", ICLR 2021: blocks, AdaRound, LSQ activations
    "brecq": {"rounding": "adaround", "drop_prob": 0.0},
    # Wei et al., "QDrop", ICLR 2022: the same with dropped quantization
    "qdrop": {"rounding": "adaround"},
    # netwise: all weights and step sizes by distillation with straight-through gradients
    # Esser et al., "Learned Step Size Quantization", ICLR 2020
    "lsq": _NETWISE,
    # Choi et al., "It's All In the Teacher", CVPR 2022: KL divergence alone, min-max weight ranges
    "ait": {**_NETWISE, "loss": "kl", "weight_range": "minmax", "weight_step_lr": 0.0},
}  # fmt: skip


def preset_options(name: str) -> dict[str, Any]:
    """The options of the preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    return look_up(PRESETS, "quantization preset", name)
