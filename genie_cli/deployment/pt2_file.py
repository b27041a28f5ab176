"""A program as a file of torch.export, which `torch.export.load` reads without genie."""

from __future__ import annotations

import io
import logging

import torch

from genie_cli.deployment.metadata import KEY, ExportMetadata
from genie_cli.deployment.program import Program


def pt2_bytes(program: Program, metadata: ExportMetadata) -> bytes:
    """The ``.pt2`` file of a program; the same program gives the same bytes."""
    buffer = io.BytesIO()
    program.exported.example_inputs = None  # images, larger than the weights of a small network
    torch.export.save(program.exported, buffer, extra_files={KEY: metadata.encoded()})
    return buffer.getvalue()


def load_pt2(content: bytes) -> tuple[torch.nn.Module, str | None]:
    """The program in a file as a module, and the metadata beside it.

    Raises:
        Exception: of any kind, where this is no such file.
    """
    import torch.ao.quantization.fx._decomposed  # registers the operations

    extra = {KEY: ""}
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the exception says what is wrong
    try:
        exported = torch.export.load(io.BytesIO(content), extra_files=extra)
    finally:
        logger.setLevel(level)
    return exported.module(), extra[KEY]
