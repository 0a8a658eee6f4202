"""Counting live storages on a CPU."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafront.trainables.memory_meter import CPU, LiveStorages, measure_peak


def test_peak_counts_what_is_alive_at_once() -> None:
    """Two blocks alive together count together, and one that was dropped before the next one came does not."""

    def together() -> None:
        first = torch.zeros(1000, 256)
        second = first + 1
        del first, second

    def apart() -> None:
        first = torch.zeros(1000, 256)
        del first
        second = torch.ones(1000, 256)
        del second

    size = 1000 * 256 * 4
    assert measure_peak(together, tuple, torch.device("cpu")).allocated == 2 * size
    assert measure_peak(apart, tuple, torch.device("cpu")).allocated == size


def test_views_and_resident_tensors_count_once() -> None:
    """A view costs nothing, in-place work costs nothing, and a resident tensor counts from the start."""
    weight = torch.zeros(512, 256)

    def work() -> None:
        view = weight.t()[:10]
        view.add_(1)

    memory = measure_peak(work, lambda: [weight, weight.t()], torch.device("cpu"))
    assert memory.allocated == weight.nbytes
    assert memory.source == CPU


def test_backward_is_seen() -> None:
    """What the backward pass allocates is counted too."""
    weight = torch.zeros(256, 256, requires_grad=True)
    x = torch.ones(64, 256)

    def step() -> None:
        (x @ weight).square().sum().backward()

    peak = measure_peak(step, lambda: [weight, x], torch.device("cpu")).allocated
    assert weight.grad is not None
    assert peak >= weight.nbytes + x.nbytes + weight.grad.nbytes


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_live_bytes_follow_the_rounding_rule(sizes: list[int]) -> None:
    """Live bytes are the sum of sizes rounded up to 512, and nothing is left once all are dropped."""
    with LiveStorages() as live:
        kept = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
        assert live.live == sum(-(-size // 512) * 512 for size in sizes)
        kept.clear()
        assert live.live == 0
