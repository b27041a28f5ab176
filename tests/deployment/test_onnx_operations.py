"""Operations in ONNX files: they answer as torch does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.deployment.integer_form import QuantizeDequantize
from genie_cli.student.formats import activation_format
from genie_cli.student.modules import ActivationQuantizer
from tests.support.onnx_files import SPEC, Small, check_answers, file_of, written

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def counted(x: Tensor) -> Tensor:
    return (x > 0.1).to(torch.int64)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp of an integer and a float": lambda x: x.clamp(0, 0.5).mean((2, 3)),
    "clip of a float and an integer": lambda x: torch.clip(x, -0.5, 1).mean((2, 3)),
    "clamp of integers by a float": lambda x: counted(x).clamp(0, 0.5).mean((2, 3)),
    "hardtanh": lambda x: F.hardtanh(x, 0, 0.5).mean((2, 3)),
    "squeeze of nothing": lambda x: x.mean((2, 3)).squeeze(),
    "squeeze of a side that is not 1": lambda x: x.squeeze(1).mean((2, 3)),
    "squeeze of a side from the end": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "squeeze of the images": lambda x: x.mean((2, 3)).squeeze(0),
    "mean of integers": lambda x: counted(x).mean((2, 3), dtype=torch.float32),
    "mean of integers over one side": lambda x: counted(x).mean(3, dtype=torch.float32).amax(2),
    "mean of truths": lambda x: (x > 0).mean((2, 3), dtype=torch.float32),
    "mean in float64": lambda x: x.double().mean((2, 3)).float(),
    "sum of integers": lambda x: counted(x).sum((2, 3), dtype=torch.float32),
    "product of integers": lambda x: (counted(x) + 1).prod(3, dtype=torch.float32).amax(2),
    "softmax of integers": lambda x: counted(x).softmax(1, dtype=torch.float32).mean((2, 3)),
    "log softmax of integers": lambda x: counted(x).log_softmax(1, dtype=torch.float32).mean((2, 3)),
    "cumulative sum of integers": lambda x: counted(x).cumsum(1, dtype=torch.float32).mean((2, 3)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str) -> None:
    network = Small(lambda self, x: self.fc(OPERATIONS[name](x)))
    check_answers(written(network), network)


class Sites(nn.Module):
    """A quantizer for the images."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x)


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("bits", [9, 12, 15, 16])
def test_activations_of_more_than_eight_bits_have_the_codes_of_genie(bits: int, is_signed: bool) -> None:
    format = activation_format(bits, is_signed)
    quantizer = ActivationQuantizer(0.0137, format)
    root = Sites(QuantizeDequantize(quantizer, None))
    content = file_of(fx.GraphModule(root, _Leaves().trace(root)))
    generator = torch.Generator().manual_seed(0)
    low, high = format.quant_min - 3, format.quant_max + 3
    codes = torch.randint(low, high + 1, (40, *SPEC.shape), generator=generator).float()
    codes[0] = torch.linspace(low, low + 6, codes[0].numel()).view(codes[0].shape)  # around both ends
    codes[1] = torch.linspace(high - 6, high, codes[1].numel()).view(codes[1].shape)
    codes[2:20] += torch.tensor([-0.5, 0.5, 0.49, -0.49, 0.51, 0.25]).repeat(3).view(-1, 1, 1, 1)
    images = codes * quantizer.step_size.detach()
    images[20, 0, 0, :4] = torch.tensor([3e38, -3e38, 0.0, -0.0])
    (found,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})
    np.testing.assert_array_equal(found, quantizer(images).detach().numpy())
