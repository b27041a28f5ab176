"""Stores of activations: what is written is read back, from every place, within the budgets."""

from __future__ import annotations

import errno
import gc
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.errors import InputError
from genie_cli.quantization.activations import file_store, staging
from genie_cli.quantization.activations import store as store_module
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.activations.store import ActivationStore, MemoryStore
from genie_cli.runtime.progress import Event, Note, silent
from tests.support import CPU

PLENTY = 1 << 40
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pool_for(place: str, device: torch.device = CPU, folder: Path | None = None) -> ActivationPool:
    """A pool whose stores all lie in one place."""
    return ActivationPool(device, PLENTY * (place == "device"), PLENTY * (place == "host"), silent, folder)


@contextmanager
def setting(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """A module constant changed for one example; hypothesis runs many in one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, value)
        yield


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid_out(rows: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels-last" and rows.dim() > 2:
        return rows.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "reversed":
        return rows.permute(*reversed(range(rows.dim()))).contiguous().permute(*reversed(range(rows.dim())))
    if layout == "gaps":
        return torch.stack([rows, rows], dim=-1)[..., 0]
    return rows


def check_layout(tensor: Tensor) -> None:
    """Rows one after the other, dim 1 fastest."""
    assert (tensor.movedim(1, -1) if tensor.dim() > 2 else tensor).is_contiguous()
    if tensor.dim() == 4:
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        assert tensor.is_contiguous(memory_format=torch.channels_last_3d)


shapes = st.integers(2, 5).flatmap(lambda rank: st.tuples(*[st.integers(1, 5)] * rank))


# --- what is written is read


@settings(deadline=None, max_examples=120)
@given(data=st.data(), shape=shapes, dtype=st.sampled_from(DTYPES), place=st.sampled_from(["host", "disk"]))
def test_store_is_a_tensor(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype, place: str):
    """Any sequence of writes, reads and gathers gives what a plain tensor gives."""
    chunk = data.draw(st.sampled_from([1, 100, 1 << 24]), label="chunk")
    positioned = data.draw(st.booleans(), label="positioned")
    n = shape[0]
    oracle = values(shape, dtype)
    with (
        setting(store_module, "_CHUNK_BYTES", chunk),
        setting(file_store, "_HAS_POSITIONED", positioned),
        pool_for(place) as pool,
    ):
        store = pool.allocate(shape, dtype)
        assert (store.place, store.shape, len(store), store.num_bytes) == (place, shape, n, oracle.nbytes)
        store.write(0, oracle)
        for seed in range(data.draw(st.integers(0, 3), label="writes")):
            first, last = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)), label="rows"))
            layout = data.draw(st.sampled_from(["contiguous", "channels-last", "reversed", "gaps"]), label="layout")
            rows = values((last - first, *shape[1:]), dtype, seed + 1)
            oracle[first:last] = rows
            store.write(first, laid_out(rows, layout))
        first, last = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)), label="read"))
        indices = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), max_size=9), label="indices")).long()
        for got, wanted in ((store.read(first, last), oracle[first:last]), (store.gather(indices), oracle[indices])):
            assert got.dtype == dtype and got.device == CPU
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
            check_layout(got)


@pytest.mark.parametrize("place", ["host", "disk"])
def test_rows_are_converted_and_leave_no_graph(place: str):
    with pool_for(place) as pool:
        store = pool.allocate((4, 3), torch.bfloat16)
        rows = values((4, 3), torch.float32).requires_grad_()
        store.write(0, rows)
        assert torch.equal(store.read(0, 4), rows.detach().bfloat16())
        assert not store.gather(torch.tensor([1])).requires_grad


@pytest.mark.parametrize("place", ["host", "disk"])
def test_what_was_read_stays_as_it_was(place: str):
    with pool_for(place) as pool:
        store = pool.allocate((4, 2, 3, 3))
        store.write(0, torch.ones(4, 2, 3, 3))
        read, gathered = store.read(1, 3), store.gather(torch.tensor([2, 1]))
        store.write(0, torch.zeros(4, 2, 3, 3))
        store.release()
        assert read.eq(1).all() and gathered.eq(1).all()


@pytest.mark.parametrize("place", ["host", "disk"])
def test_rows_that_do_not_fit_are_refused(place: str):
    with pool_for(place) as pool:
        store = pool.allocate((4, 2, 3))
        store.write(0, torch.zeros(4, 2, 3))
        for first, shape in ((3, (2, 2, 3)), (-1, (1, 2, 3)), (5, (0, 2, 3))):
            with pytest.raises(IndexError, match="4 rows"):
                store.write(first, torch.ones(shape))
        for shape in ((1, 3, 2), (1, 2), (1, 2, 3, 1)):
            with pytest.raises(ValueError, match="do not fit"):
                store.write(0, torch.ones(shape))
        for first, last in ((0, 5), (-1, 2), (3, 2)):
            with pytest.raises(IndexError, match="4 rows"):
                store.read(first, last)
        for indices in ([4], [0, -1]):
            with pytest.raises(IndexError, match="4 rows"):
                store.gather(torch.tensor(indices))
        for wrong in (torch.tensor([[0]]), torch.tensor([0], dtype=torch.int32), torch.tensor([True])):
            with pytest.raises(ValueError, match="int64"):
                store.gather(wrong)
        assert store.read(0, 4).eq(0).all()


def test_short_reads_and_writes_are_continued(monkeypatch: pytest.MonkeyPatch):
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, view, offset: pwrite(file, view[:7], offset))
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: preadv(file, [views[0][:5]], offset))
    with pool_for("disk") as pool:
        store = pool.allocate((6, 2, 3))
        rows = values((6, 2, 3), torch.float32)
        store.write(0, rows)
        assert torch.equal(store.read(1, 6), rows[1:])
        assert torch.equal(store.gather(torch.tensor([5, 0, 5])), rows[[5, 0, 5]])


# --- places and budgets


def test_spill_order_and_accounting(tmp_path: Path):
    """On a device that holds nothing: device, then host, then disk, and back when there is room again."""
    device = torch.device("meta")
    with ActivationPool(device, 1000, 500, silent, tmp_path) as pool:
        assert pool.in_use == pool.peak == {"device": 0, "host": 0, "disk": 0}
        stores = [pool.allocate((size // 4, 1)) for size in (600, 500, 400, 4)]
        assert [store.place for store in stores] == ["device", "host", "device", "disk"]
        assert pool.in_use == {"device": 1000, "host": 500, "disk": 4}
        stores[0].release()
        stores[0].release()
        assert pool.in_use == {"device": 400, "host": 500, "disk": 4}
        assert pool.allocate((150, 1)).place == "device"
        assert pool.allocate((1, 1)).place == "disk"
        assert pool.peak == {"device": 1000, "host": 500, "disk": 8}
    assert pool.in_use == {"device": 0, "host": 0, "disk": 0}
    assert pool.peak == {"device": 1000, "host": 500, "disk": 8}


def test_cpu_has_no_place_of_a_device():
    with ActivationPool(CPU, PLENTY, 100, silent) as pool:
        assert [pool.allocate((25, 1)).place, pool.allocate((1, 1)).place] == ["host", "disk"]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 400), st.lists(st.one_of(st.integers(1, 40), st.just(None)), max_size=20), st.randoms())
def test_budget_is_never_exceeded(budget: int, actions: list[int | None], random: Any):
    """Allocate (a number of rows) or release a random store (None)."""
    with ActivationPool(CPU, 0, budget, silent) as pool:
        held: list[ActivationStore] = []
        peak = 0
        for rows in actions:
            if rows is not None:
                room = budget - pool.in_use["host"]
                held.append(pool.allocate((rows, 2)))
                assert held[-1].place == ("host" if rows * 8 <= room else "disk")
            elif held:
                held.pop(random.randrange(len(held))).release()
            used = {place: sum(s.num_bytes for s in held if s.place == place) for place in ("device", "host", "disk")}
            peak = max(peak, used["host"])
            assert pool.in_use == used and pool.peak["host"] == peak <= max(budget, 0)


def test_memory_that_is_refused_moves_the_store_to_the_disk(monkeypatch: pytest.MonkeyPatch):
    """The budget may be larger than what the system gives, e.g. under a limit of the address space."""

    def refuse(num_bytes: int) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pool_for("host") as pool:
        monkeypatch.setattr(store_module, "_anonymous_memory", refuse)
        store = pool.allocate((8, 2))
        monkeypatch.undo()
        assert store.place == "disk" and pool.in_use["host"] == 0


def test_memory_that_is_refused_moves_the_store_down_level_by_level(monkeypatch: pytest.MonkeyPatch):
    """A level that had no room is not asked again before something is given back, and each move is told once."""
    make, full = MemoryStore.__init__, {"device"}

    def init(store: Any, shape: tuple[int, ...], dtype: torch.dtype, staging: Any, place: Any) -> None:
        if place in full:
            raise torch.OutOfMemoryError("CUDA out of memory") if place == "device" else MemoryError
        make(store, shape, dtype, staging, place)

    monkeypatch.setattr(MemoryStore, "__init__", init)
    events: list[Event] = []
    with ActivationPool(torch.device("meta"), PLENTY, PLENTY, events.append) as pool:
        assert [pool.allocate((8, 2)).place for _ in range(2)] == ["host", "host"]
        full.add("host")
        assert [pool.allocate((8, 2)).place for _ in range(2)] == ["disk", "disk"]
    assert [event.message for event in events if isinstance(event, Note) and event.warning] == [
        "no room for 64 B of activations in device memory: they go to host memory.",
        "no room for 64 B of activations in host memory: they go to a temporary file.",
    ]


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (2, -1)])
def test_shapes_without_elements_are_refused(shape: tuple[int, ...]):
    with pool_for("host") as pool, pytest.raises(ValueError, match="shape"):
        pool.allocate(shape)


# --- giving back


@pytest.mark.parametrize("place", ["host", "disk"])
def test_released_store_refuses(place: str):
    with pool_for(place) as pool:
        store = pool.allocate((2, 3))
        store.write(0, torch.zeros(2, 3))
        store.release()
        store.release()
        for use in (lambda: store.read(0, 1), lambda: store.gather(torch.tensor([0])),
                    lambda: store.write(0, torch.zeros(1, 3))):  # fmt: skip
            with pytest.raises(RuntimeError, match="released"):
                use()
        assert pool.in_use[place] == 0


def test_closing_releases_everything_and_ends_the_pool():
    pool = ActivationPool(CPU, 0, 100, silent)
    stores = [pool.allocate((20, 1)), pool.allocate((20, 1))]
    pool.close()
    pool.close()
    for store in stores:
        store.release()
        with pytest.raises(RuntimeError, match="released"):
            store.read(0, 1)
    assert pool.in_use == {"device": 0, "host": 0, "disk": 0}
    with pytest.raises(RuntimeError, match="closed"):
        pool.allocate((1, 1))


def test_released_host_memory_has_no_owner_left():
    with pool_for("host") as pool:
        store = pool.allocate((10, 10))
        store.write(0, torch.zeros(10, 10))
        read = store.read(0, 5)
        rows = weakref.ref(store._rows)  # type: ignore[attr-defined]
        store.release()
        gc.collect()
        assert rows() is None and read.shape == (5, 10)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_small_stores_give_their_memory_back_too():
    """glibc's heap would keep all of the 200 MB."""
    code = """
import psutil, torch
from genie_cli.quantization.activations.pool import ActivationPool

def resident():
    return psutil.Process().memory_info().rss

pool = ActivationPool(torch.device("cpu"), 0, 1 << 40, print)
row = torch.ones(1, 20 << 17)  # what the first operations load is not counted
pool.allocate((2, 8)).write(0, row[:, :8].expand(2, -1))
for size in (20 << 20, 20 << 20, 2 << 20):
    before = resident()
    stores = [pool.allocate((2, size // 8)) for _ in range((200 << 20) // size)]
    for store in stores:
        store.write(0, row[:, : size // 8].expand(2, -1))
    held = resident()
    for store in stores:
        store.release()
    print(held - before, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    for line in done.stdout.splitlines():
        held, left = map(int, line.split())
        assert held > 190_000_000 and left < 40_000_000


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_file_has_no_name_while_it_is_used_and_is_closed_after(tmp_path: Path):
    before = open_files()
    with pool_for("disk", folder=tmp_path) as pool:
        assert list(tmp_path.iterdir()) == []
        stores = [pool.allocate((5, 3)) for _ in range(3)]
        assert list(tmp_path.iterdir()) == [] and open_files() == before + 3
        stores[0].release()
        assert open_files() == before + 2
    assert list(tmp_path.iterdir()) == [] and open_files() == before


def test_file_that_keeps_its_name_goes_on_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on systems that do not remove open files."""
    cleanup = file_store.tempfile.TemporaryDirectory.cleanup
    monkeypatch.setattr(file_store.tempfile.TemporaryDirectory, "cleanup", lambda self: None)
    with pool_for("disk", folder=tmp_path) as pool:
        pool.allocate((5, 3))
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith("genie-") and [file.stat().st_size for file in folder.iterdir()] == [60]
        assert folder.stat().st_mode & 0o077 == 0
        monkeypatch.setattr(file_store.tempfile.TemporaryDirectory, "cleanup", cleanup)
    assert list(tmp_path.iterdir()) == []


# --- disks that cannot


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int):
    def full(file: int, offset: int, length: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pool_for("disk", folder=tmp_path) as pool:
        with pytest.raises(InputError) as caught:
            pool.allocate((1024, 3 * 1024))
        for fragment in (str(tmp_path), "12.00 MiB", "free", os.strerror(reason), "--memory-limit", "TMPDIR"):
            assert fragment in str(caught.value)
        assert pool.in_use == pool.peak == {"device": 0, "host": 0, "disk": 0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["absent", "unsupported"])
def test_free_space_counts_where_the_system_cannot_set_it_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
):
    def unsupported(file: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if way == "absent":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    with pool_for("disk", folder=tmp_path) as pool:
        store = pool.allocate((4, 5))
        store.write(0, torch.ones(4, 5))
        assert store.read(0, 4).eq(1).all()
        monkeypatch.setattr(file_store.shutil, "disk_usage", lambda path: type("U", (), {"free": 79}))
        with pytest.raises(InputError, match="80 B of activations, 79 B are free"):
            pool.allocate((4, 5))


def test_folder_that_is_not_there(tmp_path: Path):
    with pool_for("disk", folder=tmp_path / "no") as pool, pytest.raises(InputError, match=r"no cannot hold.*TMPDIR"):
        pool.allocate((1, 1))


def test_disk_that_fails_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pool_for("disk", folder=tmp_path) as pool:
        store = pool.allocate((2, 2))
        monkeypatch.setattr(os, "preadv", lambda *args: 0)
        with pytest.raises(InputError, match="ended early"):
            store.read(0, 1)
        monkeypatch.setattr(os, "preadv", fail)
        monkeypatch.setattr(os, "pwrite", fail)
        for use in (lambda: store.gather(torch.tensor([1])), lambda: store.write(0, torch.zeros(1, 2))):
            with pytest.raises(InputError, match="Input/output error"):
                use()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_stays_flat_on_disk():
    code = """
import torch
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.runtime.memory import peak_memory
device = torch.device("cpu")
torch.manual_seed(0)
row = (64, 28, 28)  # 200 kB
batch = torch.rand(20, *row)

def use(n):
    store = pool.allocate((n, *row))
    for first in range(0, n, 20):
        store.write(first, batch + first)
    for _ in range(20):
        indices = torch.randint(0, n, (32,))
        for index, got in zip(indices.tolist(), store.gather(indices)):
            assert torch.equal(got, batch[index % 20] + index // 20 * 20)
    for first in range(0, n, 20):
        store.read(first, first + 20)
    assert store.place == "disk"
    return store.num_bytes

with ActivationPool(device, 0, 0, print) as pool:
    use(20)
    before = peak_memory(device)["host"]
    size = use(1000)
    print(size, peak_memory(device)["host"] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    size, growth = map(int, done.stdout.split())
    assert size > 200_000_000 and growth < 60_000_000


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_run_leaves_nothing(tmp_path: Path):
    code = f"""
import os, signal, torch
from pathlib import Path
from genie_cli.quantization.activations.pool import ActivationPool
pool = ActivationPool(torch.device("cpu"), 0, 0, print, Path({str(tmp_path)!r}))
pool.allocate((100, 100)).write(0, torch.zeros(100, 100))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert list(tmp_path.iterdir()) == []


# --- the way to a GPU


class FakeEvent:
    """Stands for a CUDA event; `log` is what happened to all of them."""

    log: list[tuple[str, int]]

    def record(self, stream: object) -> None:
        self.log.append(("record", id(self)))

    def synchronize(self) -> None:
        self.log.append(("wait", id(self)))


@pytest.mark.parametrize("place", ["host", "disk"])
def test_staging_waits_before_it_fills_a_buffer_again(place: str, monkeypatch: pytest.MonkeyPatch):
    """Chunks of two rows through two buffers, on the CPU; a buffer's copy is waited for before its next filling."""
    FakeEvent.log = log = []
    pinned: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)

    def page_locked(num_bytes: int) -> Tensor:
        pinned.append(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8)

    monkeypatch.setattr(staging, "_page_locked", page_locked)
    monkeypatch.setattr(store_module, "_CHUNK_BYTES", 2 * 3 * 4)
    rows = values((9, 3), torch.float32)
    indices = torch.tensor([8, 0, 3, 3, 1, 7, 2])
    with pool_for(place) as pool:
        store = pool.allocate((9, 3))
        store.write(0, rows)
        for selection, wanted in ((indices, rows[indices]), (range(2, 9), rows[2:9])):
            out = torch.empty(7, 3)

            def fill(buffer: Tensor, part: slice, selection: Any = selection) -> None:
                log.append(("fill", buffer.data_ptr()))
                store._fill(buffer, selection[part])

            pool._staging.upload(out, store._rows_per_chunk, fill)
            assert torch.equal(out, wanted)
    kinds = [kind for kind, _ in log]
    assert kinds == ["fill", "record"] * 2 + ["wait", "fill", "record"] * 6
    assert pinned == [24, 24]
    filled = [address for kind, address in log if kind == "fill"]
    assert filled == filled[:2] * 4 and filled[0] != filled[1]
    recorded = [event for kind, event in log if kind == "record"]
    assert [event for kind, event in log if kind == "wait"] == recorded[:6]
