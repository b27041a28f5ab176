"""A network in float as an ONNX file, without the quantization that a command does before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from genie_cli.config import InputSpec
from genie_cli.deployment.metadata import ExportMetadata
from genie_cli.deployment.onnx_file import onnx_bytes
from genie_cli.deployment.program import InputForm, make_program
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.outputs import named_outputs, structured

SPEC = InputSpec(num_channels=3, size=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))


class Small(nn.Module):
    """A convolution to eight channels, and whatever stands behind it."""

    def __init__(self, behind: Callable[[Any, Tensor], Any], **tensors: Tensor) -> None:
        """Compute `behind` of the module and the convolution's output; `tensors` are buffers, or parameters."""
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self._behind = behind
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self._behind(self, self.conv(x))


def written(network: nn.Module, form: InputForm = "normalized", opset: int | None = None) -> bytes:
    """The ONNX file of a network that takes the images of `SPEC`, as genie captures it."""
    return file_of(structured(fold_batch_norms(capture(network.eval(), SPEC)).graph), form, opset)


def file_of(graph: fx.GraphModule, form: InputForm = "normalized", opset: int | None = None) -> bytes:
    """The ONNX file of a graph that takes the images of `SPEC`."""
    program = make_program(graph, SPEC, form)
    metadata = ExportMetadata(
        format="onnx", storage="float", input_form=form, input=SPEC, outputs=program.outputs, teacher="small",
        teacher_sha256="0" * 64, tool_version="0", torch_version="0",
    )  # fmt: skip
    return onnx_bytes(program, None, opset, metadata)


@torch.no_grad()
def check_answers(content: bytes, network: nn.Module, form: InputForm = "normalized") -> list[str]:
    """Compare a file's outputs with those of its network; returns their names in the file."""
    import onnxruntime as ort

    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, *SPEC.shape), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (SPEC.mean, SPEC.std))
    images = (pixels / 255 - mean) / std
    found = session.run(None, {"images": (pixels if form == "pixels" else images).numpy()})
    for value, (_, wanted) in zip(found, named_outputs(network(images)), strict=True):
        assert value.dtype == wanted.numpy().dtype
        np.testing.assert_allclose(value, wanted.numpy(), atol=1e-5)
    return [output.name for output in session.get_outputs()]
