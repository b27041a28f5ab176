"""The device of a stage."""

from __future__ import annotations

import torch

from genie_cli.errors import DeviceError, UsageError


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
