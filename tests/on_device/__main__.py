"""Run it: see the package."""

import argparse
import time

import torch

from tests.on_device import report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.on_device", description=report.__doc__)
    parser.add_argument("part", nargs="?", choices=("all", *report.PARTS), default="all")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--few", action="store_true", help="few layers and models, small and short")
    given = parser.parse_args()
    started = time.monotonic()
    for line in report.lines(given.part, given.device, given.few):
        print(line, flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")
