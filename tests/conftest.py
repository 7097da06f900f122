"""Settings of the whole suite."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers on two cores: more threads than that only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
