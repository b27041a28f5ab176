"""The metadata of an exported file."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, ValidationError

from genie_cli.config import Frozen, InputSpec

KEY = "genie"
"""Under this key a file holds the metadata, as JSON."""


class ExportMetadata(Frozen):
    """The metadata of an exported file: the same network gives the same, and there is no time, host or path in it."""

    kind: Literal["export"] = "export"
    format: Literal["onnx", "pt2"]
    storage: Literal["float", "int8", "packed"]
    """Of the weights; float: the network is not quantized."""
    input_form: Literal["normalized", "pixels"]
    input: InputSpec
    outputs: tuple[str, ...]
    """Names of the outputs, in their order."""
    logits: str | None = None
    """The one that holds the class scores."""
    teacher: str
    teacher_sha256: str
    protocol: str | None = None
    preset: str | None = None
    weight_bits: dict[str, int] = Field(default_factory=dict)
    """Layer or slopes -> bits."""
    activation_bits: dict[str, int] = Field(default_factory=dict)
    """Activation site -> bits."""
    content_sha256: str | None = None
    """Hash of the quantized folder's tensors."""
    tool_version: str
    torch_version: str

    def encoded(self) -> str:
        """Sorted, compact JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def decoded(text: str | bytes | None) -> ExportMetadata | None:
    """The metadata of a file; None where there are none, or none that this genie reads."""
    try:
        return ExportMetadata.model_validate_json(text) if text else None
    except ValidationError:
        return None
