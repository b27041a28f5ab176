"""What the tests share; the library's stage functions are called in `stages` alone, and patched here alone."""

import torch

from genie_cli.artifacts.metadata import Arithmetic

CPU = torch.device("cpu")
ARITHMETIC = Arithmetic(dtype="float32", kernels="a processor", deterministic=True)
"""What is recorded of the machine where a test writes an artifact itself."""
