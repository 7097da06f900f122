"""Where measurements go: into the JSON of pytest-benchmark, with what they were made on."""

import platform
from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch

from tests.benchmarks.tables import Row, line

PACKAGES = ("torch", "normflows", "nflows", "attnflow-plugin")


def pytest_addoption(parser):
    parser.addoption("--glow-steps", type=int, default=4, help="steps of the Glow of real size")


@pytest.fixture
def measured(benchmark):
    """Make a measurement once; its rows go into a table of the report, and to the screen."""

    def run(table: str, measure: Callable[[], list[Row]]) -> None:
        rows = benchmark.pedantic(measure, rounds=1)
        benchmark.extra_info.update(table=table, rows=rows)
        print(f"\n{table}", *map(line, rows), sep="\n")

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    """Only what a reader of the numbers wants to know."""
    cpu = machine_info["cpu"]
    machine_info.clear()
    machine_info.update(
        cpu=cpu["brand_raw"],
        cores=cpu["count"],
        instructions=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        versions={name: version(name) for name in PACKAGES},
    )
