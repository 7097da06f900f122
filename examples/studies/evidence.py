"""Does attention pay without images? Posteriors, tables, particles and a time series, in pairs.

    python examples/studies/evidence.py --quick         # does it run at all?
    python examples/studies/evidence.py --plan          # how long the rest takes
    python examples/studies/evidence.py                 # all of it: hours
    python examples/studies/evidence.py --data SLCP --seeds 10
    python examples/studies/evidence.py --minutes 30    # begins nothing after half an hour
    python examples/studies/evidence.py --report        # of what there is so far

Data are made here or shipped with scikit-learn; flows are those that the hosts ship. All arms of a
seed share the parts of the data and the batches, and those with attention also the weights of the
plain flow, which attention leaves as it is when it starts. Each run leaves a file in --out; Ctrl-C
stops, and the same command goes on with what is missing.
"""

import argparse
import math
import signal
import sys
from pathlib import Path

import torch
from vectors.data import SOURCES
from vectors.models import ARMS, BACKBONES
from vectors.report import write_page, write_report
from vectors.runs import Job, Study, all_jobs

QUICK = {"data": ["two moons", "wine", "GARCH"], "backbones": ["MAF (nflows)"]}


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C.
    torch.set_num_threads(1)
    study, length = Study(options.out), "quick" if options.quick else "full"
    jobs = all_jobs(options.data, options.backbones, options.arms, options.seeds, length)
    if options.plan:
        print_plan(study, jobs)
        return
    if not options.report:
        study.run_all(jobs, options.minutes)
    report = write_report(options.out, length)
    print(report)
    if options.page:
        write_page(options.out, length, options.page)


def print_plan(study: Study, jobs: list[Job]) -> None:
    hours = study.hours(jobs)
    for (data, backbone), value in hours.items():
        print(f"{data:20s} {backbone:22s} {60 * value:6.1f} minutes")
    print(
        f"{len(study.pending(jobs))} of {len(jobs)} runs: {sum(hours.values()):.1f} hours at most"
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--data", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="NAME")
    add("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), metavar="NAME")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    add("--seeds", type=int, default=5, help="number of seeds")
    add("--minutes", type=float, default=math.inf, help="time after which no run begins")
    add("--out", type=Path, default=Path("outputs/evidence"))
    add("--plan", action="store_true", help="run nothing, tell how long it would take")
    add("--report", action="store_true", help="run nothing, report what there is")
    add("--page", type=Path, help="page of the documentation to put the report into")
    add("--quick", action="store_true", help="a few data, a few steps, one seed")
    options = parser.parse_args()
    if options.quick:
        options.data, options.backbones, options.seeds = QUICK["data"], QUICK["backbones"], 1
    return options


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("evidence.py: stopped; the same command goes on with what is missing")
