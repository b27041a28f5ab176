"""Synthesis presets: each is a set of options, nothing more."""

from __future__ import annotations

from typing import Any

from genie_cli.errors import look_up

_PIXELS = {"generator": False, "swing": False}
_SAMPLED = {"latents": "sampled", "swing": False}

PRESETS: dict[str, dict[str, Any]] = {
    # Table 2 of the paper: each factor of GENIE-D on its own
    "genie": {},  # M6, M7: generator, learned latents, swing convolution
    "zeroq": _PIXELS,  # M1, M2: Cai et al., CVPR 2020
    "swing": {"generator": False},  # M3
    "gba": _SAMPLED,  # M4: a generator alone, as in generative batch-norm alignment
    "latent": {"swing": False},  # M5
    # GENIE-D with rates that reach its loss in half the steps (docs/performance.md)
    "genie-fast": {"generator_lr": 0.002, "latent_lr": 0.3, "num_steps": 2000},
    # Li et al., "MixMix", ICCV 2021: pixels that fit several teachers; give --model more than once
    "mixmix": _PIXELS,
    # Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020: label-conditioned generator;
    # the authors weigh the statistics 0.1 against the cross-entropy
    "gdfq": {**_SAMPLED, "conditioning": "label", "class_weight": 1.0, "statistics_weight": 0.1},
    # Choi et al., "Qimera", NeurIPS 2021: the same between classes, by superposed class embeddings
    "qimera": {**_SAMPLED, "conditioning": "superposed", "class_weight": 1.0, "statistics_weight": 0.1},
    # Haroush et al., "The Knowledge Within", CVPR 2020: pixels with inception loss and image prior
    "kw": {**_PIXELS, "class_weight": 1.0, "smoothness_weight": 1.0},
    # Zhong et al., "IntraQ", CVPR 2022: local objects, marginal distance and soft inception loss
    "intraq": {**_PIXELS, "soft_class_weight": 1.0, "margin_weight": 1.0, "crop_prob": 0.5},
    # Liu et al., "Zero-shot Adversarial Quantization", CVPR 2021: needs --student
    "zaq": {**_SAMPLED, "discrepancy_weight": 1.0},
}


def preset_options(name: str) -> dict[str, Any]:
    """The options of the preset called `name`.

    Raises:
        UsageError: unknown name.
    """
    return look_up(PRESETS, "synthesis preset", name)
