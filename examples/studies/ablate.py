"""What does which attention do? Every variant in the same Glow, against controls, in pairs.

    python examples/studies/ablate.py --quick   # a few arms, a few steps
    python examples/studies/ablate.py           # all of it: a day and a half
    python examples/studies/ablate.py --groups kinds controls --data digits --lengths short
    python examples/studies/ablate.py --arms imap scales --seeds 10
    python examples/studies/ablate.py --real-size --lengths short --seeds 3
    python examples/studies/ablate.py --report  # of what there is so far
    python examples/studies/ablate.py --start-from docs/ablation/ablation.json --seeds 10

All arms of a seed share batches and dequantisation noise, and those that insert layers the weights
of the Glow too, which the layers leave as it is when they start. Each run leaves a file in
--out; Ctrl-C stops, and the same command goes on with what is missing.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from ablation.arms import ARMS, GROUPS, QUICK, REAL_SIZE
from ablation.outcomes import unpack
from ablation.report import write_page, write_report
from ablation.runs import all_jobs, run_all, step_times
from ablation.samples import draw_samples
from ablation.settings import LENGTHS, REAL, SETTINGS, SMALL

ROUNDS = 15


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C.
    if options.start_from:
        unpack(options.start_from, options.out)
    jobs = all_jobs(options.arms, options.data, options.lengths, options.seeds)
    if not options.report:
        run_all(jobs, options.out, options.workers, options.keep_models)
        # Afterwards, when no run of this program is in the way.
        for data in options.data:
            step_times(options.arms, data, options.out, ROUNDS)
    print(write_report(options.out))
    if options.page:
        write_page(options.out, options.page)
    if options.samples:
        chosen = [job for job in jobs if job.arm in options.arms]
        draw_samples(chosen, options.out, options.samples)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group().add_argument
    which("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="which comparisons")
    add("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"of {', '.join(ARMS)}")
    add("--data", nargs="+", choices=SETTINGS, help=f"default: {', '.join(SMALL)}")
    which("--real-size", action="store_true", help=f"256 hidden channels, on {', '.join(REAL)}")
    add("--lengths", nargs="+", choices=LENGTHS, default=["short", "long"])
    add("--seeds", type=int, default=5, help="number of seeds")
    add("--workers", type=int, default=os.cpu_count(), help="runs at a time, a thread each")
    add("--out", type=Path, default=Path("outputs/ablation"))
    add("--keep-models", action="store_true", help="keep the weights of every run, too")
    add("--start-from", type=Path, metavar="FILE", help="published runs, not to be made again")
    add("--page", type=Path, help="page of the documentation to put the report into")
    add("--samples", type=Path, help="picture of samples, by models that were kept")
    add("--report", action="store_true", help="run nothing, report what there is")
    add("--quick", action="store_true", help="few arms, two seeds, short runs")
    options = parser.parse_args()
    if options.quick:
        options.arms, options.lengths, options.seeds = list(QUICK), ["quick"], 2
    settings, groups = SMALL, [GROUPS[name] for name in options.groups]
    if options.real_size:
        settings, groups = REAL, [REAL_SIZE]
    options.data = options.data or list(settings)
    options.arms = options.arms or list(dict.fromkeys(arm for group in groups for arm in group))
    return options


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("ablate.py: stopped; the same command goes on with what is missing")
