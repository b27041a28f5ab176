"""What the tests share; the library's stage functions are called in `stages` alone, and patched here alone."""

import torch

CPU = torch.device("cpu")
