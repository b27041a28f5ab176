"""The time that a runtime takes for an exported file."""

from __future__ import annotations

import time

from genie_cli.deployment.runtimes import Runtime, image_batch

_WARM_UP = 3
_LEAST_SECONDS, _LEAST_RUNS, _MOST_RUNS = 0.5, 5, 200


def milliseconds(runtime: Runtime, batch_size: int) -> float:
    """The median time of a batch of noise, after some runs that are not counted.

    Args:
        runtime: a file of genie, loaded.
        batch_size: images at once.
    """
    assert runtime.metadata is not None
    images = image_batch((batch_size, *runtime.metadata.input.shape), runtime.metadata.input_form)
    for _ in range(_WARM_UP):
        runtime.run(images)
    times: list[float] = []
    while len(times) < _LEAST_RUNS or (sum(times) < _LEAST_SECONDS and len(times) < _MOST_RUNS):
        started = time.perf_counter()
        runtime.run(images)
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[len(times) // 2]
