"""``genie synthesize``: images from a teacher's batch-norm statistics."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from genie_cli.commands import options as opt
from genie_cli.commands.flags import Fields, Used, takes
from genie_cli.commands.plugins import plugins_loaded

if TYPE_CHECKING:
    from genie_cli.commands.running import CommandRun
    from genie_cli.config import ModelConfig, SynthesizeConfig
    from genie_cli.stages.synthesize import Synthesized


@takes(Fields("model", several_networks=True), Fields("synthesize", last=("deterministic",)))
def synthesize(
    used: Used,
    settings: opt.SynthesizeSettings = None,
    params: opt.ParamsFile = None,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Synthesize calibration images from the batch-norm statistics of a network (GENIE-D)."""
    from genie_cli.config import SynthesizeConfig, stage_config
    from genie_cli.synthesis.presets import find_preset

    file = opt.read(params)
    model, others = opt.split_networks(used["model"])
    model_config = opt.model_config(file, model)
    flags = opt.given({**used["synthesize"], "other_teachers": others}, settings)
    section = file.section("synthesize")
    with plugins_loaded(flags, section):
        config = stage_config(SynthesizeConfig, section, flags, find_preset, "synthesize")
        _run(model_config, config, file.path, dry_run, as_json)


def _run(
    model_config: ModelConfig, config: SynthesizeConfig, params: Path | None, dry_run: bool, as_json: bool
) -> None:
    from genie_cli.commands.files_read import files_read
    from genie_cli.commands.opening import open_network as opened
    from genie_cli.commands.plan import PlannedRun, planning
    from genie_cli.commands.running import CommandRun, running
    from genie_cli.models.network_input import RecordedInput
    from genie_cli.models.teacher import Teacher
    from genie_cli.stages.synthesize import synthesized

    def open_network(reparameterize: bool, recorded: RecordedInput | None) -> Teacher:
        return opened(model_config.model_copy(update={"reparameterize": reparameterize}), recorded)

    outputs = {"--out": config.out, "--log": config.log, "--performance": config.performance}
    with running(config, PlannedRun if dry_run else CommandRun) as run, planning(run, outputs, as_json):
        with run.checks():
            if run.workers.is_first:
                read = files_read(params, model_config, *config.other_teachers, config)
                opt.check_files(outputs, read, ["--student"])
        with synthesized(run, config, open_network, model_config.reparameterize, model_config.logits) as made:
            if run.workers.is_first:
                _finish(run, model_config, config, made, as_json)


def _finish(run: CommandRun, network: ModelConfig, config: SynthesizeConfig, made: Synthesized, as_json: bool) -> None:
    from genie_cli.commands.display import duration, file_size, summary
    from genie_cli.commands.next_step import next_command
    from genie_cli.runtime.atomic import atomic_write_text
    from genie_cli.synthesis.batches import batch_sizes

    images = made.image_set(run)
    if config.log is not None:
        lines = [f"{row.batch},{row.step},{row.loss:.6g},{row.latent_lr:.6g}" for row in made.log]
        atomic_write_text(config.log, "\n".join(["batch,step,loss,latent_lr", *lines]) + "\n")
    images.save(config.out)
    sizes = batch_sizes(config.num_images, config.batch_size)
    run.write_performance(config.performance, {"steps": config.num_steps * len(sizes), "loss": made.mean_loss})
    if as_json:
        facts = {
            "out": str(config.out),
            "sha256": images.sha256,
            "num_bytes": config.out.stat().st_size,
            "shape": list(images.images.shape),
            "dtype": config.image_dtype,
            "teachers": {teacher.name: teacher.sha256 for teacher in made.teachers},
            "preset": config.preset,
            "batches": sizes,
            "loss": made.mean_loss,
            **run.facts_of_work(),
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    summary(
        "Synthesized",
        {
            "images": f"{len(images)} of {'x'.join(str(side) for side in images.images.shape[1:])}, "
            f"{config.image_dtype}",
            "teachers" if made.teachers[1:] else "teacher": ", ".join(
                f"{teacher.name} ({teacher.sha256[:12]})" for teacher in made.teachers
            ),
            "batches": " + ".join(str(size) for size in sizes),
            "loss": f"{made.mean_loss:.4f}",
            "device": run.description(),
            "arithmetic": str(run.chosen_arithmetic),
            "time": duration(run.seconds),
            "memory": run.peak_memory(),
            "written": f"{config.out} ({file_size(config.out.stat().st_size)}, sha256 {images.sha256[:12]})",
            "look": shlex.join(["genie", "show", str(config.out)]),
            "next": next_command("quantize", network, {"--images": config.out}),
        },
    )
