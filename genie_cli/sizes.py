"""Amounts of memory as people write and read them."""

from __future__ import annotations

import re
import reprlib
from decimal import Decimal

_BINARY = {prefix: 1024**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}
_DECIMAL = {prefix: 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})\s*(?:([KMGT]?)(B?)|([KMGT])(iB))", re.IGNORECASE)
_LARGEST = 2**63 - 1


def parse_size(text: str | int) -> int:
    """Bytes of ``"2GiB"``, ``"500 MB"``, ``"1.5G"`` or a plain number of bytes.

    KiB, MiB, GiB, TiB and the bare letters K, M, G, T are powers of 1024; kB, MB, GB, TB are powers of
    1000. Case does not matter. A fraction of a byte is dropped.

    Raises:
        ValueError: not a size, negative, or beyond 2**63 - 1, with the value and what to write instead.
    """
    # A params file gives any YAML value, and True is an int.
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise _no_size(text)
    if isinstance(text, int):
        size = text
    else:
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise _no_size(text)
        number, prefix, byte, binary_prefix, _ = match.groups()
        if not (prefix or binary_prefix) and "." in number:
            raise _no_size(text)
        unit = _DECIMAL[prefix.upper()] if byte else _BINARY[(binary_prefix or prefix).upper()]
        size = int(Decimal(number) * unit)
    if not 0 <= size <= _LARGEST:
        raise _no_size(text)
    return size


def _no_size(value: object) -> ValueError:
    return ValueError(
        f"{reprlib.repr(value)} is not a size: give a number of bytes, or a number with a unit such as 2GiB or 500MB"
    )


def parse_count(text: str | int | float) -> int:
    """The number of ``"2.1G"``, ``"600M"``, ``"3e9"`` or a plain number; k, M, G and T are powers of 1000.

    Raises:
        ValueError: not a number, negative, or beyond 2**63 - 1.
    """
    wrong = ValueError(f"{reprlib.repr(text)} is not a count: give a number, or one with a unit such as 2.1G or 600M")
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise wrong
    written = str(text).strip()
    power = _DECIMAL.get(written[-1:].upper(), 1) if written[-1:].isalpha() else 1
    try:
        number = Decimal(written[:-1] if written[-1:].isalpha() and power > 1 else written) * power
    except ArithmeticError:
        raise wrong from None
    if not (number.is_finite() and 0 <= number <= _LARGEST):
        raise wrong
    return int(number)


def format_size(num_bytes: int) -> str:
    """``"2.00 GiB"``: binary units, two decimals from KiB on."""
    if abs(num_bytes) < 1024:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if round(abs(size), 2) < 1024:
            return f"{size:.2f} {unit}"
    return f"{size / 1024:.2f} TiB"


def file_size(num_bytes: int) -> str:
    """Three digits and a unit, e.g. ``4.21 kB``."""
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{num_bytes} B" if unit == "B" else f"{size:.{digits}f} {unit}"
