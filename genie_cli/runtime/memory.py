"""The memory that is free, and the most that was used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

from genie_cli.sizes import format_size, parse_size

if sys.platform != "win32":
    import resource

__all__ = ["format_size", "free_memory", "parse_size", "peak_memory"]

_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on `device`.

    On a GPU it is the driver's figure, so memory that torch's allocator has cached does not count as free.
    On the host it is the least of three: the memory that the system can give without swapping, the room
    in the control groups of a container or job (v2 or v1), and the room below the limit on the address
    space (``ulimit -v``).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    rooms = [psutil.virtual_memory().available, *_cgroup_rooms(_PROC / "cgroup", _CGROUPS)]
    if sys.platform != "win32":
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            rooms.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(rooms))


_earlier_peaks: dict[torch.device, int] = {}
"""The most bytes by device before torch's own count was set back."""


class DevicePeak:
    """Measures the most bytes that the work inside takes on a CUDA device, over what was taken before it.

    Attributes:
        num_bytes: that figure, once the work is over.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure on `device`."""
        self._device, self._before, self.num_bytes = device, 0, 0

    def __enter__(self) -> DevicePeak:
        """Begin."""
        known = _earlier_peaks.get(self._device, 0)
        _earlier_peaks[self._device] = max(known, torch.cuda.max_memory_allocated(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *raised: object) -> None:
        """End."""
        self.num_bytes = torch.cuda.max_memory_allocated(self._device) - self._before


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes used at once so far: ``host`` resident in this process; ``device`` by torch, on CUDA only.

    The host's figure counts pages of mapped files while they are in memory, as the system does.
    """
    peak = {"host": _peak_resident()}
    if device.type == "cuda":
        peak["device"] = max(_earlier_peaks.get(device, 0), torch.cuda.max_memory_allocated(device))
    return peak


def _peak_resident() -> int:
    # Not ru_maxrss on Linux: a program that a process starts inherits its parent's peak.
    for line in _lines(_PROC / "status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cgroup_rooms(membership: Path, mount: Path) -> Iterator[int]:
    """Bytes that each control group with a limit leaves this process, from its own group up to the root.

    Inside a container the root of the mount may be the container's group while `membership` names it
    as the host does; folders that do not exist are skipped.
    """
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            room = _room(root / folder, *names)
            if room is not None:
                yield room


def _room(folder: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    limit, usage = _number(folder / limit_file), _number(folder / usage_file)
    if limit is None or usage is None:
        return None
    # Cached file contents count as usage, and the kernel drops the inactive ones before it refuses memory.
    cached = next(
        (int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(f"{reclaimable} ")), 0
    )
    return limit - max(0, usage - cached)


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file or no number, such as ``max``."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
