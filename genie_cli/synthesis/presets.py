"""Synthesis presets: each is a set of options, nothing more."""

from __future__ import annotations

from typing import Any

from genie_cli.config.presets import Preset
from genie_cli.errors import look_up
from genie_cli.runtime.registered import with_registered

_PIXELS = {"generator": False, "swing": False}
_SAMPLED = {"latents": "sampled", "swing": False}
_PAPER = "Jeon et al., GENIE, CVPR 2023"

PRESETS = {
    "genie": Preset(
        summary="GENIE-D: generator, learned latents, swing convolution",
        source=f"{_PAPER}, Table 2, M6 and M7",
    ),
    "zeroq": Preset(
        summary="pixels that learn directly",
        source=f"Cai et al., ZeroQ, CVPR 2020; {_PAPER}, Table 2, M1 and M2",
        options=_PIXELS,
    ),
    "swing": Preset(
        summary="pixels that learn directly, swing convolution",
        source=f"{_PAPER}, Table 2, M3",
        options={"generator": False},
    ),
    "gba": Preset(
        summary="generator on latents that are sampled in every step",
        source=f"{_PAPER}, Table 2, M4",
        options=_SAMPLED,
    ),
    "latent": Preset(
        summary="generator and learned latents, no swing convolution",
        source=f"{_PAPER}, Table 2, M5",
        options={"swing": False},
    ),
    "genie-fast": Preset(
        summary="GENIE-D with rates that reach its loss in half the steps",
        source="this project (docs/performance.md)",
        options={"generator_lr": 0.002, "latent_lr": 0.3, "num_steps": 2000},
    ),
    "genie-tuned": Preset(
        summary="genie-fast without the tanh, which few steps drive to its ends",
        source="this project (docs/experiments.md)",
        options={"generator_lr": 0.002, "latent_lr": 0.3, "num_steps": 2000, "tanh": False},
    ),
    "mixmix": Preset(
        summary="pixels that fit several networks",
        source="Li et al., MixMix, ICCV 2021",
        options=_PIXELS,
        needs={"other_teachers": "several networks: give --model more than once"},
    ),
    # the authors weigh the statistics 0.1 against the cross-entropy
    "gdfq": Preset(
        summary="generator on latents of a class, cross-entropy",
        source="Xu et al., Generative Low-bitwidth Data Free Quantization, ECCV 2020",
        options={**_SAMPLED, "conditioning": "label", "class_weight": 1.0, "statistics_weight": 0.1},
    ),
    "qimera": Preset(
        summary="generator on latents between classes (superposed class embeddings), cross-entropy",
        source="Choi et al., Qimera, NeurIPS 2021",
        options={**_SAMPLED, "conditioning": "superposed", "class_weight": 1.0, "statistics_weight": 0.1},
    ),
    "kw": Preset(
        summary="pixels with inception loss and image prior",
        source="Haroush et al., The Knowledge Within, CVPR 2020",
        options={**_PIXELS, "class_weight": 1.0, "smoothness_weight": 1.0},
    ),
    "intraq": Preset(
        summary="pixels with local objects, marginal distance and soft inception loss",
        source="Zhong et al., IntraQ, CVPR 2022",
        options={**_PIXELS, "soft_class_weight": 1.0, "margin_weight": 1.0, "crop_prob": 0.5},
    ),
    "zaq": Preset(
        summary="generator of images on which a quantized student differs from the network",
        source="Liu et al., Zero-shot Adversarial Quantization, CVPR 2021",
        options={**_SAMPLED, "discrepancy_weight": 1.0},
        needs={"student": "a quantized student for its discrepancy_weight: give --student DIR"},
    ),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    found: Preset = look_up(with_registered(PRESETS, "synthesis preset"), "synthesis preset", name)
    return found


def preset_options(name: str) -> dict[str, Any]:
    """The options of the preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    return dict(find_preset(name).options)
