"""Metrics over temperatures, on a model whose metrics are known."""

import math

import pytest
import torch

from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.metrics import over_temperatures, psnr

METRICS = {"PSNR": lambda images, targets, contexts: psnr(images, targets)}


def batches(*sizes):
    """Black targets, contexts that say how many levels too bright a sample becomes at T = 1."""
    for number, size in enumerate(sizes):
        yield torch.zeros(size, 3, 8, 8), torch.full((size,), 50.0 * (number + 1))


def sample(contexts, temperature):
    return (temperature * contexts / 255).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def decibels(*errors):
    return sum(20 * math.log10(255 / error) for error in errors) / len(errors)


def test_means_over_images_and_then_over_temperatures():
    table = over_temperatures(sample, batches(2, 1), METRICS, (0.2, 0.6))
    # The first batch has twice the weight of the second.
    assert table.rows[0.2]["PSNR"] == pytest.approx(decibels(10, 10, 20), rel=1e-6)
    assert table.rows[0.6]["PSNR"] == pytest.approx(decibels(30, 30, 60), rel=1e-6)
    assert table.average == pytest.approx({"PSNR": decibels(10, 10, 20, 30, 30, 60)}, rel=1e-6)


def test_the_temperatures_of_the_paper():
    seen = []

    def remember(contexts, temperature):
        seen.append(temperature)
        return sample(contexts, temperature)

    table = over_temperatures(remember, batches(1), METRICS)
    assert seen == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] == list(table.rows)


def test_metrics_see_images_targets_and_contexts():
    def check(images, targets, contexts):
        assert torch.equal(images, sample(contexts, 0.5))
        assert not targets.any()
        assert not torch.is_grad_enabled()
        return contexts

    table = over_temperatures(sample, batches(1, 3), {"context": check}, [0.5])
    assert table.average == {"context": (50 + 3 * 100) / 4}


def test_table_in_markdown():
    metrics = {"one": lambda i, t, c: torch.ones(len(t)), **METRICS}
    lines = str(over_temperatures(sample, batches(1), metrics, (0.2, 0.4))).splitlines()
    assert lines == [
        "| temperature | one | PSNR |",
        "| --- | --- | --- |",
        "| 0.2 | 1 | 28.13 |",
        "| 0.4 | 1 | 22.11 |",
        "| average | 1 | 25.12 |",
    ]


@pytest.mark.parametrize(
    ("metrics", "temperatures"), [({}, [0.1]), (METRICS, []), (METRICS, [1, 1])]
)
def test_nothing_to_measure(metrics, temperatures):
    with pytest.raises(OptionError, match="at least one metric and different temperatures"):
        over_temperatures(sample, batches(1), metrics, temperatures)


def test_no_batch():
    with pytest.raises(ShapeError, match="at least one batch"):
        over_temperatures(sample, [], METRICS)


def test_a_mean_in_place_of_values():
    metrics = {"mean": lambda i, t, c: i.mean()}
    with pytest.raises(ShapeError, match=r"expected mean to give one value for each of 2 images"):
        over_temperatures(sample, batches(2), metrics)
    metrics = {"mean": lambda i, t, c: i.mean().item()}
    with pytest.raises(ShapeError, match=r"for each of 2 images, found float$"):
        over_temperatures(sample, batches(2), metrics)


def test_samples_with_their_log_densities():
    def with_log_densities(contexts, temperature):
        return sample(contexts, temperature), torch.zeros(len(contexts))

    with pytest.raises(ShapeError, match=r"sample to return images, found tuple; .*first result"):
        over_temperatures(with_log_densities, batches(2), METRICS)
