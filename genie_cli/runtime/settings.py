"""Settings of the whole process, made before a stage works: reproducible kernels, memory that is kept."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from genie_cli.errors import UsageError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""The largest threshold that older glibc versions accept."""


def configure_process(device: torch.device, deterministic: bool) -> None:
    """Prepare a command's process; called before CUDA starts.

    Args:
        device: where the stage will run.
        deterministic: on CUDA, use kernels that give the same bytes in every run, even if slower.
    """
    _keep_freed_memory()
    # full float32: without this, CUDA convolutions would round their inputs to TF32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic)
        # only for debugging: it would fill every new tensor first
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def settings_restored() -> Iterator[None]:
    """Bring PyTorch's settings of the whole process back to what they were; freed memory goes on being kept."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    mode = torch.get_deterministic_debug_mode()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@contextmanager
def nondeterminism_explained() -> Iterator[None]:
    """Turn PyTorch's refusal of an operation that cannot repeat bit for bit into an error that names the option.

    Raises:
        UsageError: such an operation is in the network.
    """
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UsageError(
            f"The network needs {operation}, which has no deterministic CUDA kernel: use --no-deterministic, "
            "and results will differ slightly from run to run."
        ) from None


@contextmanager
def settled_objects() -> Iterator[None]:
    """Keep Python's cycle collector off the objects that exist now, which every collection would go through."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_freed_memory() -> None:
    """Return the heap's free pages to the system (glibc); called between units, whose tensors differ in size."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc): each step makes and frees tensors, and a new page costs a fault."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
