"""Quantization presets: each is a set of options, nothing more."""

from __future__ import annotations

from typing import Any

from genie_cli.config.presets import Preset
from genie_cli.errors import look_up
from genie_cli.runtime.registered import with_registered

_NETWISE = {"unit": "network", "rounding": "adaquant", "drop_prob": 0.0, "rounding_lr": 1e-3}

PRESETS = {
    "genie-m": Preset(
        summary="GENIE-M: block by block, joint step size and rounding, LSQ activations, QDrop",
        source="Jeon et al., GENIE, CVPR 2023, section 3.2",
    ),
    "genie-tuned": Preset(
        summary="GENIE-M, then all step sizes and biases together, against the network's outputs",
        source="GENIE-M, and the end-to-end phase of Chen et al., EfficientQAT, 2024",
        options={"bias_lr": 0.01, "finetune_share": 1.0},
    ),
    # no optimisation
    "minmax": Preset(
        summary="no optimisation, full range",
        source="baseline, no paper",
        options={"reconstruct": False, "weight_range": "minmax", "activation_range": "minmax"},
    ),
    "mse": Preset(
        summary="no optimisation, range of least error",
        source="baseline, no paper",
        options={"reconstruct": False},
    ),
    "closed-form": Preset(
        summary="no optimisation: weights by least squares, rounded so that errors make up for one another",
        source="Zhong et al., ERQ, ICML 2024, and Frantar et al., GPTQ, ICLR 2023",
        options={"reconstruct": False, "closed_form": True},
    ),
    "dfq": Preset(
        summary="no images: equalised weights, ranges and bias correction from the batch norms",
        source="Nagel et al., Data-Free Quantization, ICCV 2019",
        options={"data_free": True, "reconstruct": False, "weight_range": "minmax"},
    ),
    # layer by layer; AdaRound's activation ranges stay as they were found
    "adaround": Preset(
        summary="layer by layer, learned rounding",
        source="Nagel et al., Up or Down?, ICML 2020",
        options={
            "unit": "layer",
            "rounding": "adaround",
            "drop_prob": 0.0,
            "activation_step_lr": 0.0,
            "rounding_lr": 1e-2,
            "round_weight": 0.01,
            "num_steps": 10000,
        },
    ),
    "adaquant": Preset(
        summary="layer by layer, learned weights and step sizes",
        source="Hubara et al., Accurate Post Training Quantization with Small Calibration Sets, ICML 2021",
        options={"unit": "layer", "rounding": "adaquant", "drop_prob": 0.0, "rounding_lr": 1e-3},
    ),
    # block by block
    "brecq": Preset(
        summary="block by block, AdaRound, LSQ activations",
        source="Li et al., BRECQ, ICLR 2021",
        options={"rounding": "adaround", "drop_prob": 0.0},
    ),
    "qdrop": Preset(
        summary="block by block, AdaRound, LSQ activations, dropped quantization",
        source="Wei et al., QDrop, ICLR 2022",
        options={"rounding": "adaround"},
    ),
    # all weights and step sizes of the network at once, by distillation with straight-through gradients
    "lsq": Preset(
        summary="the whole network at once, by squared error of its output",
        source="Esser et al., Learned Step Size Quantization, ICLR 2020",
        options=_NETWISE,
    ),
    "ait": Preset(
        summary="the whole network at once, by KL divergence of its output alone, min-max weight ranges",
        source="Choi et al., It's All In the Teacher, CVPR 2022",
        options={**_NETWISE, "loss": "kl", "weight_range": "minmax", "weight_step_lr": 0.0},
    ),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    found: Preset = look_up(with_registered(PRESETS, "quantization preset"), "quantization preset", name)
    return found


def preset_options(name: str) -> dict[str, Any]:
    """The options of the preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    return dict(find_preset(name).options)
