"""``genie sensitivity``: the cost of each width of each layer and activation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes

if TYPE_CHECKING:
    from genie_cli.config import ModelConfig
    from genie_cli.config.sensitivity import SensitivityConfig
    from genie_cli.quantization.bits.sensitivity import Costs, Sensitivities

_BAR = 24
"""Characters of the longest bar."""
_BAR_BITS = 4
"""Bits whose costs the bars show."""


@takes(Fields("model"), Fields("sensitivity"))
def sensitivity(
    used: Used, params: opt.ParamsFile = None, dry_run: opt.DryRun = False, as_json: opt.AsJson = False
) -> None:
    """Measure what quantizing each layer and activation alone costs at the output, at 2 to 8 bits."""
    from genie_cli.config import stage_config
    from genie_cli.config.sensitivity import SensitivityConfig

    file = opt.read(params)
    model_config = opt.model_config(file, used["model"])
    config = stage_config(
        SensitivityConfig, file.section("sensitivity"), opt.given(used["sensitivity"]), where="sensitivity"
    )
    _run(model_config, config, file.path, dry_run, as_json)


def _run(
    model_config: ModelConfig, config: SensitivityConfig, params: Path | None, dry_run: bool, as_json: bool
) -> None:
    from genie_cli.commands.files_read import files_read
    from genie_cli.commands.opening import open_network
    from genie_cli.commands.plan import PlannedRun, planning
    from genie_cli.commands.running import CommandRun, running
    from genie_cli.quantization.images import open_image_set, recorded_input
    from genie_cli.runtime.atomic import atomic_write_bytes
    from genie_cli.stages import sensitivity as stage

    with running(config, PlannedRun if dry_run else CommandRun) as run, planning(run, {"--out": config.out}, as_json):
        with run.checks():
            if run.workers.is_first:
                opt.check_files({"--out": config.out}, files_read(params, model_config, config))
        found = stage.sensitivity(
            run,
            config,
            lambda: open_network(model_config, recorded_input(config.images)),
            lambda teacher: open_image_set(config.images, teacher, config.num_images, config.seed),
        )
        if run.workers.is_first:
            atomic_write_bytes(config.out, found.encoded())
            if as_json:
                typer.echo(found.encoded().decode().rstrip("\n"))
            else:
                _show(config, found, run.seconds)


def _show(config: SensitivityConfig, found: Sensitivities, seconds: float) -> None:
    from genie_cli.commands.display import duration, summary

    losses = {"kl": "KL divergence from the network's own probabilities", "squared": "relative squared error"}
    _costs_table("Weights", "layer", found.weights)
    _costs_table("Activations", "site", found.activations)
    summary(
        "Sensitivity",
        {
            "cost": f"{losses[found.loss]}, each tensor quantized alone",
            "method": "each tried" if found.method == "exact" else "second-order estimate",
            "images": f"{found.num_images} of {config.images}",
            "time": duration(seconds),
            "written": str(config.out),
        },
    )


def _costs_table(title: str, what: str, costs: Costs) -> None:
    """A row per layer or site: its costs, and a bar as long as its share of the largest."""
    from genie_cli.commands.display import rows_table

    if not costs:
        return
    widths = list(next(iter(costs.values())))
    largest = max(each[_BAR_BITS] for each in costs.values())
    rows: list[list[Any]] = [
        [name, *(f"{each[bits]:.2g}" for bits in widths), _bar(each[_BAR_BITS], largest)]
        for name, each in costs.items()
    ]
    columns = [what, *(f"{bits} bits" for bits in widths), f"at {_BAR_BITS} bits"]
    rows_table(title, columns, rows, set(columns[1:-1]))


def _bar(cost: float, largest: float) -> str:
    return "█" * round(_BAR * max(0.0, cost) / largest) if largest > 0 else ""
