"""ReLUs taken into what reads them: the same values and gradients as with a ReLU of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.capture import aten
from genie_cli.quantization.fused_relu import fuse_relus
from genie_cli.quantization.lsq import LearnedActivationQuantizer
from genie_cli.quantization.squared_error import squared_error


def values(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[:7] = 0
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop_prob", [0.0, 0.5])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizer_that_rectifies(bits: int, drop_prob: float, dtype: torch.dtype):
    def run(rectify: bool) -> tuple[Tensor, Tensor, Tensor]:
        quantizer = LearnedActivationQuantizer(1 / 2**bits, bits, False, drop_prob).train()
        quantizer.drop_with(torch.Generator().manual_seed(1))
        quantizer.rectify = rectify
        x = values(70, 16, 16, 16).to(dtype).requires_grad_()  # more than a chunk
        out = quantizer(x if rectify else x.relu())
        (out * values(70, 16, 16, 16, seed=2)).sum().backward()
        assert x.grad is not None and quantizer.step_size.grad is not None
        return out.detach(), x.grad, quantizer.step_size.grad

    for fused, plain in zip(run(True), run(False), strict=True):
        assert torch.equal(fused, plain)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_error(rectify: bool, dtype: torch.dtype):
    output = values(70, 16, 16, 16).to(dtype).requires_grad_()
    target = values(70, 16, 16, 16, seed=1)
    loss = squared_error(output, target, rectify)
    (3 * loss).backward()
    value = output.detach().double().numpy()
    difference = (np.maximum(value, 0) if rectify else value) - target.double().numpy()
    places = 70 * 16 * 16
    assert loss.item() == pytest.approx((difference**2).sum() / places, rel=1e-5)
    gradient = 6 * difference / places * ((value > 0) if rectify else 1)
    assert output.grad is not None and output.grad.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7  # rounded twice
    np.testing.assert_allclose(output.grad.double().numpy(), gradient, rtol=tolerance, atol=1e-9)


def test_squared_error_of_a_matrix_without_gradient():
    output, target = values(4, 3, 1, 1).flatten(1), values(4, 3, 1, 1, seed=1).flatten(1)
    assert squared_error(output, target, False).item() == pytest.approx(((output - target) ** 2).sum().item() / 4)


def graph_of(signed: bool, both_read: bool) -> fx.GraphModule:
    """relu -> quantizer -> convolution -> relu."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    rectified = graph.call_function(aten.relu.default, (x,))
    quantized = graph.call_module("quantizer", (rectified,))
    doubled = graph.call_function(aten.mul.Tensor, (quantized, 2.0))
    last = graph.call_function(aten.sub.Tensor, (doubled, rectified if both_read else 0.1))
    graph.output(graph.call_function(aten.relu.default, (last,)))
    return fx.GraphModule({"quantizer": LearnedActivationQuantizer(0.1, 4, signed, 0.0)}, graph)


def num_relus(module: fx.GraphModule) -> int:
    return sum(node.target is aten.relu.default for node in module.graph.nodes)


@pytest.mark.parametrize(("signed", "both_read", "left"), [(False, False, 0), (True, False, 1), (False, True, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_a_relu_goes_where_only_an_unsigned_quantizer_reads_it(
    signed: bool, both_read: bool, left: int, training: bool
):
    module, x = graph_of(signed, both_read).train(training), values(2, 3, 4, 4)
    wanted = module(x)
    assert fuse_relus(module)
    assert num_relus(module) == left
    assert torch.equal(module(x).relu(), wanted)


def test_an_output_that_is_no_relu_stays():
    graph = fx.Graph()
    graph.output(graph.call_function(aten.mul.Tensor, (graph.placeholder("x"), 2.0)))
    assert not fuse_relus(fx.GraphModule(nn.Module(), graph))
