"""Budgets that a test can afford, whatever a command line says: for commands that run as a page writes them."""

from __future__ import annotations

from typing import Any

from genie_cli.config import params

BUDGETS = {"num_steps": 1, "num_images": 4, "batch_size": 2, "check_images": 2}
"""Key -> the most of it that is done. All else is as the command says, and every option is read and checked."""


def shorten() -> None:
    """From now on, in this process, configurations are built with these budgets at most."""
    build = params.build

    def shortened(cls: Any, *layers: Any, **options: Any) -> Any:
        config = build(cls, *layers, **options)
        values = {key: getattr(config, key) for key in BUDGETS if key in cls.model_fields}
        least = {key: min(value, BUDGETS[key]) for key, value in values.items() if value is not None}
        return config.model_copy(update=least)

    params.build = shortened
