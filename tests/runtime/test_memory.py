"""How much memory there is and was, and how people write it."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.config import QuantizeConfig, build
from genie_cli.errors import UsageError
from genie_cli.runtime import memory
from genie_cli.runtime.memory import format_size, free_memory, parse_size, peak_memory
from genie_cli.sizes import parse_count
from tests.support import CPU

UNITS = {
    "": 1, "B": 1, "k": 2**10, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KiB": 2**10, "MiB": 2**20,
    "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "gb": 10**9,
    "gib": 2**30,
}  # fmt: skip


# --- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500 MB", 500_000_000), ("1.5G", 3 * 2**29), (1048576, 2**20), ("1048576", 2**20),
     (" 1 kB ", 1000), (".5KiB", 512), ("2.k", 2048), ("0", 0), (0, 0), ("7b", 7), (2**63 - 1, 2**63 - 1)],
)  # fmt: skip
def test_sizes(text: str | int, size: int):
    assert parse_size(text) == size


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from([unit for unit in UNITS if len(unit.strip("B"))]))
def test_size_is_number_times_unit(whole: int, thousandths: int, unit: str):
    exact = (whole + Fraction(thousandths, 1000)) * UNITS[unit]
    assert parse_size(f"{whole}.{thousandths:03}{unit}") == math.floor(exact)


@pytest.mark.parametrize(
    "bad",
    ["", " ", "2 bananas", "G", "-1", -1, "-2GiB", "1.5", "1.5B", "1e9", "1_000", "0x10", "2 G iB", "2iB", "2GiBs",
     "nan", "inf", "1,5G", "٣G", 2**63, "9" * 400, "8388608TiB", "9" * 20 + "TB", True, 1.5, None, [1], {"a": 1}],
)  # fmt: skip
def test_what_is_no_size_is_named_with_the_mend(bad: Any):
    with pytest.raises(ValueError, match=r"is not a size: give .*2GiB or 500MB") as caught:
        parse_size(bad)
    assert repr(bad)[:8] in str(caught.value)
    assert len(str(caught.value)) < 160


@given(st.one_of(st.text(max_size=30), st.integers(), st.from_regex(r"\A\s?[0-9.]{0,9} ?[kmgtKMGTiB]{0,4}\Z")))
def test_any_text_is_a_size_or_a_value_error(text: str | int):
    try:
        assert 0 <= parse_size(text) < 2**63
    except ValueError as error:
        assert "is not a size" in str(error)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**31, "2.00 GiB"), (1536 * 2**20, "1.50 GiB"),
     (2**20 - 1, "1.00 MiB"), (2**40, "1.00 TiB"), (5000 * 2**40, "5000.00 TiB"), (-2048, "-2.00 KiB")],
)  # fmt: skip
def test_format(size: int, text: str):
    assert format_size(size) == text


@given(st.integers(0, 2**62))
def test_format_reads_back(size: int):
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006)


def test_memory_limit_of_a_configuration():
    assert QuantizeConfig().memory_limit is None
    assert build(QuantizeConfig, {"memory_limit": "2GiB"}).memory_limit == 2**31
    assert build(QuantizeConfig, {"memory_limit": 4096}).memory_limit == 4096
    for bad in ("2 bananas", "0", 0, -1, True, 1.5):
        with pytest.raises(UsageError, match=r"^memory_limit = .* cannot be used: "):
            build(QuantizeConfig, {"memory_limit": bad})


# --- free memory


def test_free_memory_is_what_the_system_can_give_at_most(monkeypatch: pytest.MonkeyPatch):
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_CGROUPS", Path("no-such-folder"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 12345}))
    assert free_memory(CPU) <= 12345


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not hold the limit")
def test_address_space_limit():
    code = """
import resource, torch
from genie_cli.runtime.memory import free_memory
device = torch.device("cpu")
import psutil
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
print(free_memory(device))
resource.setrlimit(resource.RLIMIT_AS, (used - (1 << 20), resource.RLIM_INFINITY))
print(free_memory(device))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    room, none = map(int, done.stdout.split())
    assert 32 << 20 < room <= 64 << 20
    assert none == 0


def write_group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def rooms(tmp_path: Path, membership: str) -> list[int]:
    (tmp_path / "cgroup").write_text(membership)
    return list(memory._cgroup_rooms(tmp_path / "cgroup", tmp_path / "fs"))


def test_cgroup_v2_and_its_parents(tmp_path: Path):
    stat = "anon 5\ninactive_file 100\nactive_file 7"
    write_group(tmp_path / "fs/a/b", max=1000, current=600, stat=stat)
    write_group(tmp_path / "fs/a", max=900, current=700, stat="inactive_file 0")
    write_group(tmp_path / "fs", max="max", current=5000)
    assert rooms(tmp_path, "0::/a/b\n") == [500, 200]


def test_cgroup_v1(tmp_path: Path):
    stat = "inactive_file 1\ntotal_inactive_file 50"
    write_group(tmp_path / "fs/memory/job", limit_in_bytes=1000, usage_in_bytes=800, stat=stat)
    write_group(tmp_path / "fs/cpu/job", limit_in_bytes=1, usage_in_bytes=1)
    assert rooms(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/job:with:colons\n0::/\n") == [250]


def test_cgroup_of_a_container_lies_at_the_root(tmp_path: Path):
    write_group(tmp_path / "fs", max=1000, current=1200, stat="inactive_file 10")
    assert rooms(tmp_path, "0::/docker/0123\n") == [-190]
    assert rooms(tmp_path, "0::/\n") == [-190]


def test_cgroup_without_a_limit_or_without_files(tmp_path: Path):
    write_group(tmp_path / "fs", max="max", current=1200)
    assert rooms(tmp_path, "0::/a\n") == []
    assert rooms(tmp_path, "") == []
    assert list(memory._cgroup_rooms(tmp_path / "none", tmp_path / "fs")) == []


def test_cgroup_limits_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_group(tmp_path / "fs", max=10_000, current=4_000, stat="inactive_file 1000")
    (tmp_path / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "fs")
    assert free_memory(CPU) == 7_000
    write_group(tmp_path / "fs", current=40_000)
    assert free_memory(CPU) == 0


def test_the_limit_on_the_address_space_counts_what_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=1000))
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (1500, memory.resource.RLIM_INFINITY))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert free_memory(CPU) == 500


def test_free_memory_of_a_gpu_is_what_its_driver_says(monkeypatch: pytest.MonkeyPatch):
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (123, 456))
    assert free_memory(torch.device("cuda", 1)) == 123
    assert asked == [torch.device("cuda", 1)]


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither /proc nor limits of a process, as on Windows."""
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.delattr(memory, "resource")
    monkeypatch.setattr(memory, "_PROC", tmp_path)


def test_free_memory_without_limits_of_a_process(windows: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345))
    assert free_memory(CPU) == 12345


# --- peak


def test_peak_follows_what_is_touched():
    code = """
import torch
from genie_cli.runtime.memory import peak_memory
before = peak_memory(torch.device("cpu"))
kept = torch.ones(64 << 20, dtype=torch.uint8)
del kept
after = peak_memory(torch.device("cpu"))
assert set(before) == {"host"}
print(after["host"] - before["host"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    assert 50 << 20 < int(done.stdout) < 90 << 20


def test_peak_without_proc_is_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from_proc = peak_memory(CPU)["host"]
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    from_system = peak_memory(CPU)["host"]
    resident = psutil.Process().memory_info().rss
    assert from_proc > 0.5 * resident and from_system > 0.5 * resident


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_units_of_the_systems_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, unit: int):
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7000))
    assert peak_memory(CPU) == {"host": 7000 * unit}


def test_peak_on_windows_is_that_of_the_working_set(windows: None, monkeypatch: pytest.MonkeyPatch):
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=6000))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert peak_memory(CPU) == {"host": 6000}


def test_peak_of_a_gpu_is_that_of_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 40 + device.index)
    peak = peak_memory(torch.device("cuda", 2))
    assert peak["device"] == 42 and peak["host"] > 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2.1G", 2_100_000_000),
        ("600M", 600_000_000),
        ("3e9", 3_000_000_000),
        (" 12k ", 12_000),
        (7, 7),
        (1e6, 1_000_000),
    ],
)
def test_counts(text: str | float, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "G", "many", "-1", "1 G B", "inf", "nan", True, None, [1], "1e40"])
def test_what_is_no_count(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a count: give a number, or one with a unit such as"):
        parse_count(text)
