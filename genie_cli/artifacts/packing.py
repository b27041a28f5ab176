"""Integer codes as a dense stream of bits: the codes of a 2-bit network take a quarter of those of an 8-bit one.

Code ``i`` takes the bits ``i*bits .. i*bits + bits - 1`` of the stream, least significant bit first;
bit ``k`` of the stream is bit ``k % 8`` of byte ``k // 8``. The last byte is padded with zeros.
Signed codes are stored in two's complement of `bits` bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genie_cli.config import MAX_BITS, MIN_BITS

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def packed_length(num_codes: int, bits: int) -> int:
    """The number of bytes of `num_codes` codes of `bits` bits: ``ceil(num_codes * bits / 8)``."""
    return -(-num_codes * bits // 8)


def pack(codes: Tensor, bits: int, signed: bool = False) -> Tensor:
    """Pack codes densely.

    Args:
        codes: integers 0..2^bits-1, or -2^(bits-1)..2^(bits-1)-1 if `signed`, of any shape, read in row-major order.
        bits: 2 to 8.
        signed: there are negative codes.

    Returns:
        uint8 [ceil(n * bits / 8)] on the CPU.

    Raises:
        ValueError: bits or a code out of range, or codes that are not integers.
    """
    _check_bits(bits)
    if codes.dtype not in _INTEGERS:
        raise ValueError(f"Codes must be integers, got {codes.dtype}")
    codes = codes.detach().cpu().reshape(-1)
    if codes.numel() == 0:
        return torch.empty(0, dtype=torch.uint8)
    low, high = int(codes.min()), int(codes.max())
    least = -(2 ** (bits - 1)) if signed else 0
    most = least + 2**bits - 1
    if low < least or high > most:
        raise ValueError(f"Codes of {bits} bits must be in {least}..{most}, got {low}..{high}")
    # Eight codes fill exactly `bits` bytes and fit one 64-bit word: no tensor of single bits is needed.
    groups = torch.nn.functional.pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    words = torch.zeros(len(groups), dtype=torch.int64)
    for i in range(8):
        words |= (groups[:, i].to(torch.int64) & (2**bits - 1)) << (bits * i)
    packed = torch.stack([(words >> (8 * j) & 0xFF).to(torch.uint8) for j in range(bits)], dim=1)
    return packed.view(-1)[: packed_length(len(codes), bits)].clone()


def unpack(packed: Tensor, bits: int, shape: Sequence[int], signed: bool = False) -> Tensor:
    """Undo `pack`.

    Args:
        packed: uint8 [ceil(n * bits / 8)] for the n codes of `shape`; checked before memory is allocated.
        bits: 2 to 8.
        shape: shape of the codes.
        signed: there are negative codes.

    Returns:
        uint8 codes of `shape` on the CPU, int8 if `signed`.

    Raises:
        ValueError: bits out of range, a wrong type or length, or padding bits that are not zero.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ValueError(f"Packed codes must be uint8 [bytes], got {packed.dtype} {list(packed.shape)}")
    if any(side < 0 for side in shape):
        raise ValueError(f"A shape has no negative sides, got {list(shape)}")
    num_codes = math.prod(shape)
    expected = packed_length(num_codes, bits)
    if len(packed) != expected:
        raise ValueError(
            f"Codes of shape {list(shape)} and {bits} bits take {expected} bytes, the packed tensor has {len(packed)}"
        )
    groups = torch.nn.functional.pad(packed.detach().cpu(), (0, -len(packed) % bits)).view(-1, bits)
    words = torch.zeros(len(groups), dtype=torch.int64)
    for j in range(bits):
        words |= groups[:, j].to(torch.int64) << (8 * j)
    codes = torch.stack([(words >> (bits * i) & (2**bits - 1)).to(torch.uint8) for i in range(8)], dim=1).view(-1)
    if bool(codes[num_codes:].any()):
        raise ValueError("Padding bits after the last code must be zero: the packed tensor is damaged")
    codes = codes[:num_codes].clone().view(tuple(shape))
    if not signed:
        return codes
    sign = 1 << (bits - 1)
    return ((codes.to(torch.int16) ^ sign) - sign).to(torch.int8)  # two's complement, extended to 8 bits


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be in {MIN_BITS}..{MAX_BITS}, got {bits}")
