"""A folder that holds the four statistics of two batch norms (batch_norms_that_stay/README.md) runs as it did."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.artifacts.quantized_folder import load_quantized

GOLDEN = Path(__file__).parent / "batch_norms_that_stay"


def test_the_network_answers_as_it_did() -> None:
    artifact = load_quantized(GOLDEN / "quantized")
    assert artifact.metadata.unfolded == ("first", "second")
    assert {"first.running_var", "second.running_var"} <= set(artifact.parameters)
    arguments = ["verify", GOLDEN / "quantized", "--model", f"{GOLDEN / 'network.py'}:pre_activation"]
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="genie")
    assert outcome.exit_code == 0, outcome.output
    assert "those that were recorded" in outcome.stdout
