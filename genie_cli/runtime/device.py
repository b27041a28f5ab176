"""The device and the arithmetic of a stage."""

from __future__ import annotations

from typing import Literal

import torch

from genie_cli.errors import DeviceError, UsageError

Precision = Literal["auto", "fp32", "bf16"]


def resolve_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda`` or ``cuda:INDEX``; auto prefers CUDA.

    Raises:
        UsageError: not one of these names.
        DeviceError: CUDA was asked for and is absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"Unknown device '{name}': use auto, cpu, cuda or cuda:INDEX.")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        found = f"{count} CUDA device(s)" if count else f"no CUDA device that PyTorch can use{_obstacle()}"
        raise DeviceError(f"Device '{name}' was asked for, and this machine has {found}: use --device cpu or auto.")
    return torch.device(name)


def _obstacle() -> str:
    """The reason in PyTorch's words, such as a driver that is too old, in brackets; or an empty text."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(". ")[0].rstrip(".").strip()
        return f" ({' '.join(reason.split())})" if reason else ""
    return ""


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The arithmetic of the networks' passes: float32 or bfloat16.

    ``auto`` takes bfloat16 where matrix units make it faster: CUDA from compute capability 8.0, CPUs
    with AMX tiles or AVX-512 BF16. Statistics, losses and optimizer state stay float32 either way.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = _cpu_supports("_is_amx_tile_supported") or _cpu_supports("_is_avx512_bf16_supported")
    return torch.bfloat16 if has_bf16 else torch.float32


def device_kind(device: torch.device) -> str:
    """The kind of device as artifacts record it: ``cpu``, or a GPU's name with what its kernels depend on."""
    if device.type == "cpu":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return f"cuda: {name} (sm_{major}{minor}), CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def kernel_kind(device: torch.device) -> str:
    """The kernels that compute on `device`, which decide about the last bits of results."""
    return device_kind(device) if device.type == "cuda" else f"cpu: {torch.backends.cpu.get_cpu_capability()}"


def _cpu_supports(probe: str) -> bool:
    """Ask torch.cpu for an instruction set; its probes are private and may be renamed."""
    function = getattr(torch.cpu, probe, None)
    return bool(function()) if function is not None else False
