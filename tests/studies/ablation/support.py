"""Runs that were never made, runs that are short enough for tests, and what came out of runs."""

import pytest
from ablation.outcomes import final, outcomes, read_results
from ablation.runs import Job, read_times
from ablation.settings import SETTINGS
from harness import write_json

VERSIONS = {"python": "3.11", "torch": "2.9"}
HARDWARE = {"processor": "a clerk", "machine": "abacus", "instructions": "beads", "cores": 3}


def write_result(
    folder, arm, seed, final, *, data="digits", length="short", parameters=100, curve=None
):
    """The file of a run."""
    job = Job(arm, seed, data, length)
    result = {
        "config": job.config,
        "final": final,
        "curve": curve or [[job.steps, final]],
        "skipped": 0,
        "parameters": parameters,
        "seconds": 1.0,
        "versions": VERSIONS,
        "hardware": HARDWARE,
    }
    write_json(result, job.path(folder))
    return job


@pytest.fixture
def three_steps(monkeypatch):
    monkeypatch.setitem(SETTINGS["digits"].steps, "quick", 3)


def of_length(folder, data, length, score=final):
    """What came out of every arm, on one kind of data after one length of training."""
    chosen = [
        result
        for result in read_results(folder)
        if (result["config"]["data"], result["config"]["length"]) == (data, length)
    ]
    return outcomes(chosen, read_times(folder, data), score)
