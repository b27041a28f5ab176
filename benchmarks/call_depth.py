"""Depth of the calls between a whole network's quantization and one weight's soft rounding (Eq. 10).

    python benchmarks/call_depth.py

Quantizes the embedded digits network in a few steps. Prints the deepest chain of genie's own frames from
`quantize_network` to `parts`, both counted, as ``file:function``. That is what a reader passes on the way to the
equation. Frames of torch and of the standard library are left out. A comprehension belongs to the function around it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import genie_cli
from genie_cli.app import app

PACKAGE = str(Path(genie_cli.__file__).parent)
FIRST, LAST = "quantize_network", "parts"
"""The ends of the chain, found by their names in whatever file they are."""
QUANTIZE = (
    *("quantize", "--model", "digits_resnet", "--images", "digits", "--num-images", "8", "--batch-size", "4"),
    *("--num-steps", "4", "--device", "cpu", "--precision", "fp32"),
)


class DeepestChain:
    """A profile hook that keeps the longest chain of the package's frames between the ends."""

    def __init__(self) -> None:
        """Start without a chain."""
        self.codes: list[CodeType] = []
        """What was called, outermost first."""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Look at a call of the last function."""
        if event != "call" or frame.f_code.co_name != LAST or not _is_own(frame.f_code):
            return
        codes = []
        caller: FrameType | None = frame
        while caller is not None:
            code = caller.f_code
            if _is_own(code):
                codes.append(code)
                if code.co_name == FIRST:
                    break
            caller = caller.f_back
        if caller is not None and len(codes) > len(self.codes):
            self.codes = codes[::-1]


def _is_own(code: CodeType) -> bool:
    """True for a function of the package. Comprehensions are left out: Python 3.12 has no frames for most of them."""
    return code.co_filename.startswith(PACKAGE) and not code.co_name.endswith(("comp>", "genexpr>"))


def main() -> None:
    """Quantize, and print the chain."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    chain = DeepestChain()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        sys.setprofile(chain)
        try:
            app([*QUANTIZE, "--out", str(Path(folder) / "quantized")], standalone_mode=False)
        finally:
            sys.setprofile(None)
    if not chain.codes:
        sys.exit(f"No call of '{LAST}' came from '{FIRST}': the names of the ends in this file are to be changed.")
    names = [(str(Path(code.co_filename).relative_to(Path(PACKAGE).parent)), code.co_qualname) for code in chain.codes]
    for file, function in names:
        sys.stdout.write(f"{file}:{function}\n")
    sys.stdout.write(f"{len(names)} frames in {len({file for file, _ in names})} files\n")


if __name__ == "__main__":
    main()
