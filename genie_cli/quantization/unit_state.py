"""A learned unit as a part of a work folder, and back."""

from __future__ import annotations

import torch

from genie_cli.artifacts.work_folder import Saved
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

Weights = dict[str, IntegerWeight]
Activations = dict[str, ActivationQuantizer]


def pack_unit(weights: Weights, activations: Activations, num_steps: int) -> Saved:
    """Integers, scales and step sizes as tensors; layers and sites are numbered, their names are facts."""
    tensors = {}
    for i, weight in enumerate(weights.values()):
        tensors.update({f"weight{i}.{part}": getattr(weight, part) for part in ("codes", "scale", "zero_point")})
    tensors.update({f"activation{i}": activation.step_size for i, activation in enumerate(activations.values())})
    facts = {
        "weights": [[name, weight.bits] for name, weight in weights.items()],
        "activations": [[name, activation.bits, activation.signed] for name, activation in activations.items()],
        "num_steps": num_steps,
    }
    return Saved(tensors, facts)


def unpack_unit(saved: Saved, device: torch.device) -> tuple[Weights, Activations, int]:
    """Undo `pack_unit`, with the tensors on `device`."""
    weights, activations = {}, {}
    for i, (name, bits) in enumerate(saved.facts["weights"]):
        codes, scale, zero_point = (saved.tensors[f"weight{i}.{part}"] for part in ("codes", "scale", "zero_point"))
        weights[name] = IntegerWeight(codes, scale, zero_point, bits).to(device)
    for i, (name, bits, signed) in enumerate(saved.facts["activations"]):
        activations[name] = ActivationQuantizer(float(saved.tensors[f"activation{i}"]), bits, signed).to(device)
    return weights, activations, saved.facts["num_steps"]
