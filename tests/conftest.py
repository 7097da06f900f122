"""Settings of the whole suite."""

import gc
import os
import signal

import pytest
import torch

# The models are tiny, and two workers share two cores: a second thread only waits for the first.
# Sums also come out the same in all processes of a test.
torch.set_num_threads(1)
# Nor are there cores for processes that compile beside these, each of which imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Trial programs for every set of instructions of the processor take as long as some tests.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# Shells start background jobs with Ctrl-C ignored, and so would be all processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Begin with the longest tests, so that no worker has one left when the others are done."""
    items.sort(key=lambda item: not ("compile" in item.path.name or item.path.suffix == ".ipynb"))


def pytest_collection_finish():
    """What there is by now stays: to go through it again and again takes a third of the time."""
    gc.collect()
    gc.freeze()
    # Models are gone soon, so there is little to find in between.
    gc.set_threshold(10_000, 20, 20)
