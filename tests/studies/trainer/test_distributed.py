"""Two processes train one model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train
from trainer.folder import CHECKPOINT, METRICS, read
from trainer.processes import World

from tests.studies.trainer.support import STUDIES, assert_same, stored, write_images

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of two_processes.py under torchrun, on this machine alone."""
    out = tmp_path_factory.mktemp("two")
    images = write_images(out / "images", 12 * 16 * 10 // 9 + 20)  # A tenth is to test on.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without the address torchrun asks for the name of the machine, which need not resolve.
    command += ["--local-addr=127.0.0.1", "--nproc-per-node=2"]
    path = os.pathsep.join([str(STUDIES), str(HERE.parents[2])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    finished = subprocess.run(
        [*command, HERE / "two_processes.py", out, images],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # One process dies in the end, and so must the other.
    assert finished.returncode != 0
    assert (out / "death" / CHECKPOINT).exists(), finished.stderr
    return out


@pytest.fixture(scope="module")
def processes(run):
    return [torch.load(run / f"process{rank}.pt", weights_only=True) for rank in range(2)]


def test_both_have_the_same_parameters(processes):
    first, second = processes
    assert_same(first["model"], second["model"])
    assert_same(first["average"], second["average"])


def test_a_step_that_one_refuses_is_skipped_by_both(processes):
    assert [process["skipped"] for process in processes] == [2, 2]


def test_a_signal_to_one_stops_both_after_the_same_step(run, processes):
    assert [process["stopped"] for process in processes] == [True, True]
    assert [process["step"] for process in processes] == [10, 10]
    assert stored(run)["step"] == 10


def test_they_see_different_images(processes):
    first, second = (torch.cat(process["seen"]).flatten(1) for process in processes)
    assert len(first) == len(second) == 10 * 8
    assert len(torch.cat([first, second]).unique(dim=0)) == 2 * 10 * 8
    # Not the noise alone: no image comes twice.
    assert len(torch.cat([first, second]).mul(256).floor().unique(dim=0)) == 2 * 10 * 8


def test_one_process_can_go_on(run, processes):
    flow = {
        key.removeprefix("flow."): value
        for key, value in stored(run)["state_dict"].items()
        if key.startswith("flow.")
    }
    assert_same(flow, processes[0]["model"])
    assert train.main(["--out", str(run), "--resume"]) == 0
    assert stored(run)["step"] == 12
    tests = [line for line in read(run / METRICS) if "test" in line]
    assert [line["step"] for line in tests] == [12]


def test_one_that_dies_ends_all_and_the_steps_before_are_saved(run):
    # Not the last checkpoint, which is of step 8.
    assert stored(run / "death")["step"] == 10


def test_alone():
    world = World()
    assert world.leads
    assert world.ask_leader(lambda: 3) == 3
    with pytest.raises(ValueError, match="no"):
        world.ask_leader(lambda: int("no"))
