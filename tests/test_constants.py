"""What is computed once and kept: it is bounded in number and in memory."""

import pytest
import torch

from attnflow_plugin import AttentionCoupling, constants
from attnflow_plugin.constants import cached_constant

CPU = torch.device("cpu")


@pytest.fixture
def cache(monkeypatch):
    empty = type(constants._cache)()
    monkeypatch.setattr(constants, "_cache", empty)
    return empty


def build(size, device):
    return torch.zeros(size, device=device), (torch.zeros(size, device=device), None)


def test_a_constant_is_built_once(cache):
    first = cached_constant(build, 3, device=CPU)
    assert cached_constant(build, 3, device=CPU) is first
    assert cached_constant(build, 4, device=CPU) is not first
    assert len(cache) == 2


def test_the_oldest_go_first_where_memory_or_number_are_too_large(cache, monkeypatch):
    monkeypatch.setattr(constants, "_MOST_BYTES", 3 * 2 * 4 * 100)
    sizes = [100, 101, 99, 98]
    kept = [cached_constant(build, size, device=CPU) for size in sizes]
    assert list(cache.values()) == kept[1:]
    large = cached_constant(build, 10_000, device=CPU)
    assert list(cache.values()) == [large]
    monkeypatch.setattr(constants, "_MOST_BYTES", 2**30)
    monkeypatch.setattr(constants, "_CAPACITY", 2)
    for size in sizes:
        cached_constant(build, size, device=CPU)
    assert len(cache) == 2


def test_long_sequences_of_many_lengths_fill_no_memory(cache):
    layer = AttentionCoupling(2, heads=1, width=4)
    lengths = range(300, 320)
    for length in lengths:
        layer.to_latent(torch.randn(1, 2, length))
    assert constants._bytes(tuple(cache.values())) < 1000 * sum(lengths)
