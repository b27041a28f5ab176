"""Packing against an oracle that handles one bit at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.artifacts.packing import pack, packed_length, unpack


def oracle_pack(codes: list[int], bits: int) -> bytes:
    """The format as its docstring tells it."""
    stream = [code >> k & 1 for code in codes for k in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return bytes(sum(stream[8 * i + k] << k for k in range(8)) for i in range(len(stream) // 8))


@st.composite
def bits_and_codes(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(2, 8))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))


@given(bits_and_codes())
def test_pack_gives_the_bytes_of_the_oracle_and_unpack_undoes_it(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    packed = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert bytes(packed.tolist()) == oracle_pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert unpack(packed, bits, [len(codes)]).tolist() == codes


@given(bits_and_codes())
def test_signed_codes_are_packed_in_two_s_complement(case: tuple[int, list[int]]) -> None:
    bits, patterns = case
    codes = [pattern - 2**bits if pattern >= 2 ** (bits - 1) else pattern for pattern in patterns]
    packed = pack(torch.tensor(codes, dtype=torch.int8), bits, signed=True)
    assert bytes(packed.tolist()) == oracle_pack(patterns, bits)
    back = unpack(packed, bits, [len(codes)], signed=True)
    assert back.dtype == torch.int8
    assert back.tolist() == codes


def test_signed_codes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"-2\.\.1, got -3\.\.0"):
        pack(torch.tensor([-3, 0]), 2, signed=True)
    with pytest.raises(ValueError, match=r"-2\.\.1, got 0\.\.2"):
        pack(torch.tensor([2, 0]), 2, signed=True)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (1,), (8,), (2, 0, 4), ()], ids=str)
def test_any_shape_comes_back(bits: int, shape: tuple[int, ...]) -> None:
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert len(packed) == packed_length(codes.numel(), bits) == math.ceil(codes.numel() * bits / 8)
    back = unpack(packed, bits, shape)
    assert back.dtype == torch.uint8
    assert torch.equal(back, codes)


def test_codes_are_read_in_row_major_order_whatever_their_strides() -> None:
    codes = torch.arange(24, dtype=torch.uint8).view(4, 6)
    assert torch.equal(pack(codes.t(), 5), pack(codes.t().contiguous(), 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integer_types_pack_alike(dtype: torch.dtype) -> None:
    codes = torch.tensor([0, 3, 7, 1, 5])
    assert torch.equal(pack(codes.to(dtype), 3), pack(codes, 3))


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (torch.tensor([0, 4]), 2, r"0\.\.3, got 0\.\.4"),
        (torch.tensor([-1, 0]), 2, r"got -1\.\.0"),
        (torch.tensor([256]), 8, r"0\.\.255, got 256"),
        (torch.tensor([1.0]), 4, "must be integers"),
        (torch.tensor([True]), 4, "must be integers"),
        (torch.tensor([1]), 1, r"bits must be in 2\.\.8, got 1"),
        (torch.tensor([1]), 9, r"bits must be in 2\.\.8, got 9"),
    ],
)
def test_pack_refuses(codes: torch.Tensor, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(codes, bits)


@pytest.mark.parametrize(
    ("packed", "bits", "shape", "message"),
    [
        (torch.zeros(2, dtype=torch.uint8), 4, [5], "take 3 bytes, the packed tensor has 2"),
        (torch.zeros(4, dtype=torch.uint8), 4, [5], "take 3 bytes, the packed tensor has 4"),
        (torch.zeros(3, dtype=torch.uint8), 4, [10**12, 10**12], "the packed tensor has 3"),
        (torch.tensor([0, 0, 0x10], dtype=torch.uint8), 4, [5], "Padding bits"),
        (torch.zeros(3, dtype=torch.int32), 4, [5], "must be uint8"),
        (torch.zeros(3, 1, dtype=torch.uint8), 4, [5], "must be uint8"),
        (torch.zeros(3, dtype=torch.uint8), 4, [-5], "no negative sides"),
        (torch.zeros(3, dtype=torch.uint8), 9, [5], "bits must be in"),
    ],
)
def test_unpack_refuses(packed: torch.Tensor, bits: int, shape: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(packed, bits, shape)


@given(st.integers(2, 8), st.integers(1, 40), st.data())
def test_every_padding_bit_is_checked(bits: int, num_codes: int, data: st.DataObject) -> None:
    spare = packed_length(num_codes, bits) * 8 - num_codes * bits
    packed = pack(torch.zeros(num_codes, dtype=torch.uint8), bits)
    if spare:
        packed[-1] = 1 << data.draw(st.integers(8 - spare, 7))
        with pytest.raises(ValueError, match="Padding bits"):
            unpack(packed, bits, [num_codes])
