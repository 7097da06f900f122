"""Runs that were never made, and runs that are short enough for tests."""

import pytest
from ablation.runs import Job
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
