"""Processes that work together: what one knows of the others, alone and with a second one in a real process."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.errors import DeviceError, GenieError, InputError, UsageError, WorkerError
from genie_cli.runtime import distribution
from genie_cli.runtime.distribution import SOLO, Workers, joined_workers, local_device, processes_here
from tests.support import CPU

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

SCRIPT = """
import sys
import torch
from genie_cli.errors import GenieError, InputError, UsageError, WorkerError
from genie_cli.runtime.distribution import joined_workers

seen = {}


def caught(error):
    try:
        workers.agree(error)
    except GenieError as raised:
        return type(raised).__name__, str(raised), raised.is_shared


with joined_workers(torch.device("cpu")) as workers:
    rank = workers.rank
    seen["workers"] = (rank, workers.size, workers.is_first, list(workers.share(5)))

    scalar, counts = torch.tensor(float(rank + 1)), torch.tensor([rank, 10], dtype=torch.int64)
    strided = torch.full((3, 2), float(rank + 1)).t()
    same = [workers.sum_(each) is each for each in (scalar, counts, strided)]
    seen["sum_"] = (same, scalar, counts, strided)

    for name in sys.argv[2].split(","):
        rows = torch.arange(1 + 2 * rank).view(-1, 1).expand(-1, 3).add(10 * rank).to(getattr(torch, name))
        seen[name] = workers.all_gather_rows(rows)
    for name, count in {"none of rank 0": 2 * rank, "none of rank 1": 2 - 2 * rank, "none": 0}.items():
        seen[name] = workers.all_gather_rows(torch.full((count, 2), float(rank)))
    seen["plain"] = workers.all_gather_rows(torch.arange(rank + 1))

    seen["nobody"] = caught(None)
    seen["only 0"] = caught(InputError("gone") if rank == 0 else None)
    seen["only 1"] = caught(UsageError("wrong") if rank == 1 else None)
    seen["both"] = caught(InputError(f"bad in {rank}"))
    try:
        with workers.agreeing():
            if rank == 1:
                raise InputError("gone")
    except InputError as error:
        seen["agreeing"] = str(error)
    seen["after all that"] = workers.sum_(torch.ones(1))
    if rank == 0:  # while the other one ends
        try:
            workers.sum_(torch.ones(1))
        except WorkerError as error:
            seen["left alone"] = str(error)
torch.save(seen, f"{sys.argv[1]}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has seen; the first one is this process."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    arguments = [str(folder / "script.py"), str(folder), ",".join(DTYPES)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"} for rank in "01"]
    # PyTorch numbers a process's groups, and two processes meet under equal numbers: parting starts anew, at 0
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.destroy_process_group()
    with pytest.MonkeyPatch.context() as patch:
        # should the second one not get as far as to join
        patch.setattr(distribution, "_TIMEOUT", timedelta(seconds=100))
        second = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environments[1]},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for name, value in environments[0].items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", arguments)
        try:
            runpy.run_path(arguments[0])
            stderr = second.communicate(timeout=100)[1]
        finally:
            second.kill()
            second.wait()
    assert second.returncode == 0, stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


# --- two processes


def test_places_of_two(seen: list[dict[str, Any]]):
    assert [each["workers"] for each in seen] == [(0, 2, True, [0, 2, 4]), (1, 2, False, [1, 3])]


def test_sums_of_two(seen: list[dict[str, Any]]):
    for each in seen:
        in_place, scalar, counts, strided = each["sum_"]
        assert in_place == [True, True, True]
        assert (scalar.shape, scalar.item()) == ((), 3.0)
        assert torch.equal(counts, torch.tensor([1, 20]))
        assert torch.equal(strided, torch.full((2, 3), 3.0))


@pytest.mark.parametrize("name", DTYPES)
def test_rows_of_two(seen: list[dict[str, Any]], name: str):
    expected = torch.tensor([0, 10, 11, 12]).view(-1, 1).expand(-1, 3).to(getattr(torch, name))
    for each in seen:
        assert each[name].dtype == expected.dtype
        assert torch.equal(each[name], expected)


def test_rows_of_processes_without_rows(seen: list[dict[str, Any]]):
    for each in seen:
        assert torch.equal(each["none of rank 0"], torch.ones(2, 2))
        assert torch.equal(each["none of rank 1"], torch.zeros(2, 2))
        assert each["none"].shape == (0, 2)
        assert torch.equal(each["plain"], torch.tensor([0, 0, 1]))


def test_two_agree_on_what_is_wrong(seen: list[dict[str, Any]]):
    for each in seen:
        assert each["nobody"] is None
        assert each["only 0"] == ("InputError", "gone", True)
        assert each["only 1"] == ("UsageError", "Process 1: wrong", True)
        assert each["both"] == ("InputError", "bad in 0", True)
        assert each["agreeing"] == "Process 1: gone"
        assert each["after all that"].item() == 2


def test_one_whose_peer_has_ended_says_so(seen: list[dict[str, Any]]):
    message = seen[0]["left alone"]
    assert message.startswith("Another process of this run has ended or cannot be reached; its own message says why (")
    assert message.endswith(").")
    assert ".cc:" not in message  # a place in gloo's source
    assert "left alone" not in seen[1]


# --- one process


@pytest.mark.parametrize("size", [None, "1"])
def test_alone(monkeypatch: pytest.MonkeyPatch, size: str | None):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", "0")
    with joined_workers(CPU) as workers:
        assert workers is SOLO
    assert (SOLO.is_first, list(SOLO.share(3)), processes_here()) == (True, [0, 1, 2], 1)
    rows = torch.ones(3, 2)
    assert SOLO.sum_(rows) is rows and SOLO.all_gather_rows(rows) is rows
    SOLO.agree(None)
    with pytest.raises(InputError, match="gone"):
        SOLO.agree(InputError("gone"))
    with pytest.raises(UsageError, match="wrong"), SOLO.agreeing():
        raise UsageError("wrong")


@given(size=st.integers(1, 9), count=st.integers(0, 30))
def test_shares_are_a_partition_as_even_as_can_be(size: int, count: int):
    shares = [Workers(rank, size).share(count) for rank in range(size)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_only_some_processes_know():
    assert (GenieError("x").is_shared, WorkerError("x").is_shared) == (None, False)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two, RANK=0, no LOCAL_WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "no MASTER_ADDR, no MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "first", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK=first"),
    ],
)
def test_an_environment_of_something_else(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: str):
    for name in (*VARIABLES, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"not torchrun's .*{found}.*start genie by torchrun, or unset WORLD_SIZE"):
        joined_workers(CPU).__enter__()
    assert not dist.is_initialized()


# --- devices


def launched(monkeypatch: pytest.MonkeyPatch, local_rank: int, size: int, num_gpus: int) -> list[torch.device]:
    """Act as a process under torchrun on a machine with GPUs; the devices that are set."""
    for name, number in zip(VARIABLES, (local_rank, local_rank, size, size), strict=True):
        monkeypatch.setenv(name, str(number))
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_gpu_a_process(monkeypatch: pytest.MonkeyPatch, local_rank: int):
    chosen = launched(monkeypatch, local_rank, size=2, num_gpus=2)
    assert local_device(torch.device("cuda")) == torch.device("cuda", local_rank)
    assert chosen == [torch.device("cuda", local_rank)]
    assert local_device(CPU) == CPU


@pytest.mark.parametrize("local_rank", [0, 1, 2])
def test_fewer_gpus_than_processes(monkeypatch: pytest.MonkeyPatch, local_rank: int):
    launched(monkeypatch, local_rank, size=3, num_gpus=2)
    with pytest.raises(DeviceError, match=r"2 GPU\(s\).*--nproc-per-node 2"):
        local_device(torch.device("cuda"))


@pytest.mark.parametrize("local_rank", [0, 1])
def test_one_named_gpu_for_two_processes(monkeypatch: pytest.MonkeyPatch, local_rank: int):
    launched(monkeypatch, local_rank, size=2, num_gpus=2)
    with pytest.raises(DeviceError, match=r"'cuda:0' is one GPU for 2 processes: use --device cuda"):
        local_device(torch.device("cuda:0"))


def test_a_named_gpu_for_the_one_process_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    chosen = launched(monkeypatch, 0, size=1, num_gpus=2)
    assert local_device(torch.device("cuda:1")) == torch.device("cuda", 1) == chosen[0]


def test_device_without_torchrun(monkeypatch: pytest.MonkeyPatch):
    chosen = launched(monkeypatch, 0, size=1, num_gpus=2)
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device(torch.device("cuda")) == torch.device("cuda")
    assert chosen == []


def test_processes_with_gpus_are_joined_by_nccl_and_gloo_and_part_after_an_error(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: calls.append((*args, options)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("parted"))
    launched(monkeypatch, 1, size=2, num_gpus=2)
    with pytest.raises(InputError, match="gone"), joined_workers(torch.device("cuda", 1)) as workers:
        assert (workers.rank, workers.size) == (1, 2)
        raise InputError("gone")
    (backend, options), parted = calls
    assert (backend, parted) == ("cpu:gloo,cuda:nccl", "parted")
    assert options["device_id"] == torch.device("cuda", 1)
    assert options["timeout"] >= timedelta(hours=1)  # another process may have an hour's work more
