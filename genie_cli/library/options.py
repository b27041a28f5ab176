"""Keyword options of the library: fields of the configurations, under their own names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from genie_cli.config import Frozen, ModelConfig
from genie_cli.errors import UsageError, unknown_name

FILES = ("out", "log", "performance", "tensorboard", "checkpoint_interval", "fresh")
"""Keys of the commands' own outputs and of unfinished runs, which the library does not write."""

_OF_SPEC = ("weights", "weights_key")
"""Fields of `ModelConfig` that say where the weights of a SPEC are."""


def split_options(
    options: Mapping[str, Any], config: type[Frozen], model_keys: Collection[str], without: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the network, and those of the stage.

    Args:
        options: as the user gave them.
        config: the stage's configuration.
        model_keys: fields of `ModelConfig` that can be given.
        without: fields of `config` that cannot, since the function takes them in another way.

    Raises:
        UsageError: an unknown option, with the nearest known one.
    """
    stage_keys = [key for key in config.model_fields if key not in (*without, *FILES)]
    for key in options:
        if key in FILES and key in config.model_fields:
            raise UsageError(
                f"Option '{key}' belongs to the commands, which write files and go on with unfinished runs: leave it "
                "out, and save the result."
            )
        if key in _OF_SPEC and key not in stage_keys and key not in model_keys:
            raise UsageError(
                f"Option '{key}' goes with a model SPEC, such as 'resnet18': a network that is given itself has its "
                "weights. Put others into it by its load_state_dict, and leave the option out."
            )
        if key not in stage_keys and key not in model_keys:
            raise unknown_name("option", key, [*stage_keys, *model_keys], "")
    return (
        {key: value for key, value in options.items() if key in model_keys},
        {key: value for key, value in options.items() if key not in model_keys},
    )


def model_keys(is_module: bool) -> tuple[str, ...]:
    """Fields of `ModelConfig` that can be given: a module brings name and weights with it."""
    own = ("name", *_OF_SPEC) if is_module else ("name",)
    return tuple(key for key in ModelConfig.model_fields if key not in own)
