"""Clips as bounds of codes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.student.formats import activation_format
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.quantized_layers import _code_bounds

ENDS = st.one_of(st.none(), st.floats(-20, 20, width=32))


@given(clips=st.lists(st.tuples(ENDS, ENDS), max_size=3), bits=st.integers(2, 8), is_signed=st.booleans())
def test_clips_of_values_and_bounds_of_codes_give_the_same(
    clips: list[tuple[float | None, float | None]], bits: int, is_signed: bool
) -> None:
    clips = [clip for clip in clips if clip != (None, None)]
    quantizer = ActivationQuantizer(0.25, activation_format(bits, is_signed))  # a power of two: quotients are exact
    values = torch.linspace(-30, 30, 997)
    clipped = values
    for low, high in clips:
        clipped = clipped.clamp(low, high)
    low, high = _code_bounds(quantizer, clips)
    codes = (values / quantizer.step_size).round().clamp(low, high)
    assert torch.equal(quantizer(clipped), codes * quantizer.step_size)
