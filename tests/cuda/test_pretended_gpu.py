"""The pretended GPU itself: what it refuses, what it counts, and that nothing of it is left."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_gpu import CPU, GPU, PretendedGpu


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with PretendedGpu() as gpu:
        yield gpu


def record(gpu: PretendedGpu, step: Callable[[], object], *generators: torch.Generator) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(GPU)):
        step()
    return graph


# --- where tensors are


def test_tensors_go_where_they_are_sent(gpu: PretendedGpu):
    host, made = torch.ones(2, 3), torch.ones(2, 3, device="cuda")
    assert host.device == CPU and not host.is_cuda
    sent = host.to(GPU)
    for tensor in (made, sent, host.cuda(), host.to(made), made * 2, made[:1], made.float(), torch.empty_like(made)):
        assert tensor.device == GPU and tensor.is_cuda
    for tensor in (made.cpu(), sent.to("cpu"), torch.zeros(2), torch.empty_like(made, device=CPU)):
        assert tensor.device == CPU and not tensor.is_cuda
    sent.fill_(5)
    assert host.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_modules_and_their_copies_go_along(gpu: PretendedGpu):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(GPU)
    optimizer = torch.optim.Adam(network.parameters(), lr=torch.tensor(0.1, device=GPU), fused=True, capturable=True)
    network(torch.ones(2, 1, 4, 4, device=GPU)).square().sum().backward()
    optimizer.step()
    copied = copy.deepcopy(network)
    moments = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [parameter.grad for parameter in network.parameters()]
    everything = [*network.state_dict().values(), *copied.state_dict().values(), *moments, *gradients]
    assert {tensor.device for tensor in everything if tensor is not None} == {GPU}
    assert {tensor.device for tensor in network.cpu().state_dict().values()} == {CPU}


@pytest.mark.parametrize(
    "mix",
    [
        lambda gpu, cpu: gpu + cpu,
        lambda gpu, cpu: gpu @ cpu,
        lambda gpu, cpu: torch.cat([gpu, cpu]),
        lambda gpu, cpu: cpu.add_(gpu),
        lambda gpu, cpu: torch.add(gpu, gpu, out=cpu),
        lambda gpu, cpu: nn.functional.linear(gpu, cpu),
    ],
)
def test_tensors_of_two_devices_do_not_mix(gpu: PretendedGpu, mix: Callable[[Tensor, Tensor], Tensor]):
    with pytest.raises(RuntimeError, match="same device"):
        mix(torch.ones(2, 2, device=GPU), torch.ones(2, 2))


def test_single_values_of_the_host_are_plain_numbers(gpu: PretendedGpu):
    assert (torch.ones(2, device=GPU) * torch.tensor(3.0)).tolist() == [3, 3]


def test_random_numbers_are_of_their_device(gpu: PretendedGpu):
    drawn = [
        torch.empty(4, device=device).uniform_(generator=torch.Generator(device).manual_seed(3)).tolist()
        for device in (GPU, CPU)
    ]
    assert drawn[0] == drawn[1]
    assert (torch.Generator(GPU).device, torch.Generator().device) == (GPU, CPU)
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.empty(4, device=GPU).uniform_(generator=torch.Generator())


def test_numpy_does_not_see_the_gpu(gpu: PretendedGpu):
    with pytest.raises(TypeError, match="cuda:0"):
        torch.ones(2, device=GPU).numpy()


# --- the host waits

WAITS: dict[str, Callable[[Tensor], object]] = {
    "float": lambda x: float(x.sum()),
    "if": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "copy down": lambda x: torch.empty(3).copy_(x),
    "copy up": lambda x: x.copy_(torch.ones(3)),
    "copy up from pages": lambda x: x.copy_(torch.ones(3), non_blocking=True),
    "tensor": lambda x: torch.tensor(1.0, device=GPU),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "index of the host": lambda x: x[torch.tensor([0, 1])],
    "equal": lambda x: torch.equal(x, x),
    "stream": lambda x: torch.cuda.current_stream(GPU).synchronize(),
    "event": lambda x: torch.cuda.current_stream(GPU).record_event().synchronize(),
    "all": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_waits_are_counted_and_refused_in_a_recording(gpu: PretendedGpu, wait: Callable[[Tensor], object]):
    x = torch.tensor([1.0, -2.0, 3.0]).to(GPU)
    gpu.synchronisations.clear()
    wait(x)
    assert sum(gpu.synchronisations.values()) == 1
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        record(gpu, lambda: wait(x))
    assert not gpu.graphs


def test_what_does_not_wait_is_not_counted(gpu: PretendedGpu):
    x, pinned = torch.ones(3).to(GPU), torch.ones(3).pin_memory()
    gpu.synchronisations.clear()
    x.copy_(pinned, non_blocking=True)
    x.add_(1).mul_(x.sum()).fill_(2)
    x.index_select(0, torch.zeros(1, dtype=torch.int64, device=GPU))
    assert not gpu.synchronisations


# --- recordings


def test_recording_changes_nothing_and_each_replay_is_a_step(gpu: PretendedGpu):
    total, amount = torch.zeros(2, device=GPU), torch.ones(2, device=GPU)
    made: list[Tensor] = []

    def step() -> None:
        made.append(total + amount)
        total.copy_(made[0])
        total[:1].mul_(2)

    graph = record(gpu, step)
    assert total.tolist() == [0, 0] and made[0].isnan().all()
    graph.replay()
    assert total.tolist() == [2, 1] and made[0].tolist() == [1, 1]
    amount.fill_(10)
    graph.replay()
    assert total.tolist() == [24, 11]
    assert gpu.graphs[0].num_replays == 2


def test_statistics_of_a_batch_norm_are_put_back_too(gpu: PretendedGpu):
    norm, x = nn.BatchNorm2d(3).to(GPU), torch.randn(2, 3, 4, 4).to(GPU)
    graph = record(gpu, lambda: norm(x))
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    assert norm.running_mean.tolist() == [0, 0, 0] and int(norm.num_batches_tracked) == 0
    graph.replay()
    assert torch.allclose(norm.running_mean, 0.1 * x.mean((0, 2, 3))) and int(norm.num_batches_tracked) == 1


def test_gradients_and_an_optimizer_are_replayed(gpu: PretendedGpu):
    def learned(is_recorded: bool) -> list[float]:
        weight = nn.Parameter(torch.tensor([1.0, 2.0]).to(GPU))
        optimizer = torch.optim.Adam([weight], lr=torch.tensor(0.1, device=GPU), fused=True, capturable=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            weight.pow(3).sum().backward()
            optimizer.step()

        step()
        again = record(gpu, step).replay if is_recorded else step
        for _ in range(3):
            again()
        return weight.tolist()

    assert learned(is_recorded=True) == learned(is_recorded=False)


def test_random_numbers_of_a_recording_go_on(gpu: PretendedGpu):
    drawn = torch.zeros(4, device=GPU)
    generator, own = torch.Generator(GPU).manual_seed(0), torch.Generator().manual_seed(0)
    graph = record(gpu, lambda: drawn.uniform_(generator=generator), generator)
    for _ in range(3):
        graph.replay()
        assert drawn.tolist() == torch.empty(4).uniform_(generator=own).tolist()
    with pytest.raises(RuntimeError, match="not registered"):
        record(gpu, lambda: drawn.uniform_(generator=generator))


def test_the_hosts_own_work_is_done_once(gpu: PretendedGpu):
    counted, x = torch.zeros(1), torch.zeros(1, device=GPU)
    graph = record(gpu, lambda: (counted.add_(1), x.add_(1)))
    graph.replay()
    graph.replay()
    assert counted.tolist() == [1] and x.tolist() == [2]
    with pytest.raises(RuntimeError, match="keeps a value of the host"):
        record(gpu, lambda: x * counted[0])


def test_a_recording_keeps_its_memory_until_it_is_reset(gpu: PretendedGpu):
    x = torch.zeros(1000, device=GPU)
    before = gpu.allocated
    graph = record(gpu, lambda: x.add_(x * 2))
    assert gpu.allocated == before + 4000 and not gpu.graphs[0].was_reset
    graph.reset()
    assert gpu.allocated == before and gpu.graphs[0].was_reset
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()


def test_streams_and_pools_of_recordings_are_told(gpu: PretendedGpu):
    x, pool = torch.zeros(1, device=GPU), torch.cuda.graph_pool_handle()
    for _ in range(2):
        with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool):  # PyTorch takes one stream for all
            x.add_(1)
        record(gpu, lambda: x.add_(1))
    assert len({graph.stream for graph in gpu.graphs}) == 3
    assert [graph.pool == pool for graph in gpu.graphs] == [True, False, True, False]


# --- what else a GPU refuses


def test_gradients_that_do_not_repeat_are_refused_where_asked_for(gpu: PretendedGpu):
    def gradient(device: torch.device) -> None:
        x = torch.randn(1, 2, 6, 6).to(device).requires_grad_()
        nn.functional.max_pool2d(x, 2).sum().backward()

    gradient(GPU)
    torch.use_deterministic_algorithms(True)
    gradient(CPU)
    with pytest.raises(RuntimeError, match="max_pool2d_with_indices_backward_cuda does not have a deterministic"):
        gradient(GPU)


def test_memory_ends(gpu: PretendedGpu):
    gpu.total_memory = 10_000
    kept = torch.empty(2000, device=GPU)
    assert torch.cuda.mem_get_info(GPU) == (2000, 10_000)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2000, device=GPU)
    assert torch.cuda.memory_allocated(GPU) == 8000 == kept.nbytes
    del kept
    torch.empty(2000, device=GPU)
    assert torch.cuda.memory_allocated(GPU) == 0
    assert torch.cuda.max_memory_allocated(GPU) == 8000


def test_accesses_that_are_in_no_order_are_found(gpu: PretendedGpu):
    x = torch.zeros(4, device=GPU)
    own, other = torch.cuda.current_stream(GPU), torch.cuda.Stream(GPU)
    with torch.cuda.stream(other):
        x + 1
    assert [place.split(":")[0] for place in gpu.disorders] == ["add reads what may not be written yet"]
    gpu.disorders.clear()
    other.wait_stream(own)
    with torch.cuda.stream(other):
        y = x + 1
    assert not gpu.disorders
    x.add_(1)
    assert [place.split(":")[0] for place in gpu.disorders] == ["add_ writes what may still be read"]
    gpu.disorders.clear()
    own.wait_stream(other)
    y + 1
    assert not gpu.disorders


def test_memory_that_another_stream_may_still_use_is_not_taken_again(gpu: PretendedGpu):
    own, other = torch.cuda.current_stream(GPU), torch.cuda.Stream(GPU)
    for is_ordered in (True, False):
        x = torch.zeros(4, device=GPU)
        other.wait_stream(own)
        with torch.cuda.stream(other):
            x.add_(1)
        if is_ordered:
            own.wait_stream(other)
        del x
        torch.zeros(4, device=GPU)
        assert bool(gpu.disorders) != is_ordered


# --- it leaves nothing


def test_nothing_of_it_is_left():
    owners = (torch, torch.cuda, torch.accelerator, torch.optim.Optimizer)
    before = [dict(vars(owner)) for owner in owners]
    environment_of_modes = torch.overrides._get_current_function_mode_stack()
    with PretendedGpu() as gpu:
        assert torch.cuda.is_available() and torch.cuda.Stream is not before[1]["Stream"]
        torch.use_deterministic_algorithms(True)
        kept = torch.ones(3, device=GPU)
    assert [dict(vars(owner)) for owner in owners] == before
    assert torch.overrides._get_current_function_mode_stack() == environment_of_modes
    assert not torch.are_deterministic_algorithms_enabled()
    assert kept.device == CPU and (kept + torch.ones(3)).tolist() == [2, 2, 2]
    del kept
    gc.collect()
    assert gpu.allocated == 0


def test_it_is_taken_out_when_the_work_inside_fails():
    with pytest.raises(ValueError, match="inside"), PretendedGpu():
        raise ValueError("inside")
    assert torch.ones(1).to("cpu").device == CPU and not torch.overrides._get_current_function_mode_stack()
