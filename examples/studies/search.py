"""Where does attention pay? Search a trained Glow, insert what was found, and train on.

    python examples/studies/search.py               # 8x8 digits, 3 seeds; ten minutes of one core
    python examples/studies/search.py --data photographs  # 16x16 patches
    python examples/studies/search.py --quick       # one seed and few steps: does everything run?

Compared are the same trained model left as it is, with attention where the search put it, and with
each candidate after every coupling: all trained on for as long, on the same batches and the same
noise. The images that the search decides on are neither trained on nor tested on.
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import harness
import normflows as nf
import torch
from harness import Run, count_parameters
from torch import Tensor
from tqdm import tqdm
from trainer.data import load_data
from trainer.options import Options

from attnflow_plugin.metrics import dequantize
from attnflow_plugin.normflows import insert_attention, log_prob, prepare, search_attention
from attnflow_plugin.search import DEFAULT_CANDIDATES

# The host calls these inside its 1x1 convolutions; its users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")

PLAIN = "nothing"


class Split(NamedTuple):
    """Images as whole numbers: to train on, for the search to decide on, to test on."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    levels: int

    def noisy(self, images: Tensor, seed: int) -> Tensor:
        return dequantize(images, self.levels, generator=harness.seeded(seed))

    def batches(self, seed: int) -> Iterator[Tensor]:
        return harness.batches(self.train, self.levels, seed)


def load(name: str) -> Split:
    """The last fifth is held out; the digits are shuffled, and patches come picture by picture."""
    data = load_data(Options(data=name))
    images, count = data.train.images, len(data.train) // 5
    return Split(images[:-count], images[-count:], data.test.images, data.levels)


def glow(channels: int, size: int) -> nf.MultiscaleFlow:
    """The host's own Glow: two levels of two steps."""
    fine, coarse = 4 * channels, 8 * channels
    return nf.MultiscaleFlow(
        q0=[
            nf.distributions.DiagGaussian((coarse, size // 4, size // 4)),
            nf.distributions.DiagGaussian((fine // 2, size // 2, size // 2)),
        ],
        flows=[
            [*(nf.flows.GlowBlock(width, 32) for _ in range(2)), nf.flows.Squeeze()]
            for width in (coarse, fine)
        ],
        merges=[nf.flows.Merge()],
        class_cond=False,
    )


def train(model: nf.MultiscaleFlow, batches: Iterator[Tensor], steps: int, title: str) -> None:
    harness.fit(model, lambda x: -log_prob(model, x).mean(), batches, steps, title)


def test(model: nf.MultiscaleFlow, split: Split) -> float:
    parts, dims = split.noisy(split.test, 1).split(256), split.test[0].numel()
    return harness.mean_bits(lambda x: log_prob(model, x), parts, dims, split.levels)


def arms(
    model: nf.MultiscaleFlow, split: Split, seed: int, options: argparse.Namespace
) -> Iterator[tuple[str, nf.MultiscaleFlow]]:
    """The trained model as it is, where the search says, and everywhere."""
    example = split.noisy(split.train[:1], 0)
    everywhere = {
        label: with_attention(model, example, seed, attention)
        for label, attention in DEFAULT_CANDIDATES.items()
    }
    yield PLAIN, deepcopy(model)
    small = count_parameters(everywhere["imap"]) - count_parameters(model)
    for arm, limits in searches(small).items():
        yield arm, searched(model, split, seed, options, arm, limits)
    yield from ((f"{label} everywhere", changed) for label, changed in everywhere.items())


def with_attention(
    model: nf.MultiscaleFlow, example: Tensor, seed: int, attention: str
) -> nf.MultiscaleFlow:
    changed = deepcopy(model)
    torch.manual_seed(seed)
    insert_attention(changed, attention, example=example)
    return changed


def searches(small: int) -> dict[str, dict]:
    """What is searched for, by options of ``search_attention``."""
    return {
        "search": {},
        "search, no larger than imap everywhere": {"max_parameters": small},
        "search, trials train new layers only": {"train": "new"},
    }


def searched(
    model: nf.MultiscaleFlow,
    split: Split,
    seed: int,
    options: argparse.Namespace,
    arm: str,
    limits: dict,
) -> nf.MultiscaleFlow:
    # Searches that differ in their limits alone share a file, and so their trials.
    trained = limits.get("train", "all")
    path = f"{options.data}-{seed}-{options.steps}-{options.trial_steps}-{trained}.pt"
    with tqdm(total=options.budget, desc=arm, leave=False, mininterval=1) as bar:
        result = search_attention(
            model,
            islice(split.batches(1000 + seed), options.trial_steps),
            DEFAULT_CANDIDATES,
            options.budget,
            held_out=split.noisy(split.held_out, 2).split(256),
            steps=options.trial_steps,
            seed=seed,
            path=options.out / path,
            progress=lambda trial: bar.update(options.trial_steps),
            **limits,
        )
    print(f"\nseed {seed}, {arm}: {result}\n", flush=True)
    found = deepcopy(model)
    result.apply(found)
    return found


def run(split: Split, seed: int, options: argparse.Namespace) -> list[Run]:
    torch.manual_seed(seed)
    model = glow(split.train.shape[1], split.train.shape[2])
    prepare(model, next(split.batches(seed)))
    train(model, split.batches(seed), options.steps, "before")
    print(f"seed {seed}: {test(model, split):.4f} bits/dim after {options.steps} steps", flush=True)
    outcomes = []
    for arm, start in arms(model, split, seed, options):
        train(start, split.batches(2000 + seed), options.then, arm)
        new = count_parameters(start) - count_parameters(model)
        outcomes.append(Run(arm, seed, new, {"test": test(start, split)}))
        bits = outcomes[-1].values["test"]
        print(f"seed {seed}, {arm}: {new:,} new parameters, {bits:.4f}", flush=True)
    return outcomes


def table(outcomes: list[Run]) -> str:
    """Means over the seeds, and gains over the model that was left as it is."""
    found = harness.by_arm(outcomes)
    plain = harness.scores(found[PLAIN], "test")
    rows = [["", "new parameters", "test bits/dim", "gain", "gain per 1000 parameters"]]
    for arm, runs in found.items():
        own, size = harness.scores(runs, "test"), mean(run.parameters for run in runs)
        cells = [f"{size:,.0f}", f"{mean(own.values()):.4f}", "", ""]
        if arm != PLAIN:
            gain = harness.paired_difference(plain, own)
            cells[2] = gain.text("+.4f", ".4f")
            cells[3] = f"{1000 * gain.mean / size:+.4f}" if size else ""
        rows.append([arm, *cells])
    return harness.markdown(rows)


def main(given: Sequence[str] | None = None) -> None:
    options = parse_options(given)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    split = load(options.data)
    started = time.perf_counter()
    outcomes = [found for seed in range(options.seeds) for found in run(split, seed, options)]
    rows = [
        {"arm": run.arm, "seed": run.seed, "new_parameters": run.parameters, **run.values}
        for run in outcomes
    ]
    harness.write_json(rows, options.out / f"{options.data}.json", indent=1)
    print(f"\n{options.data}, {options.then} more steps; ± is a 95 % interval over seeds\n")
    print(table(outcomes))
    print(f"\n{time.perf_counter() - started:.0f} s; numbers and trials in {options.out}")


def parse_options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=("digits", "photographs"), default="digits")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=800, help="training steps before the search")
    parser.add_argument("--trial-steps", type=int, default=40, help="training steps of a trial")
    parser.add_argument("--budget", type=int, default=1500, help="training steps of a search")
    parser.add_argument("--then", type=int, default=400, help="training steps after it")
    parser.add_argument("--out", type=Path, default=Path("outputs/search"))
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    options = parser.parse_args(given)
    if options.quick:
        options.seeds, options.steps, options.then = 1, 30, 10
        options.trial_steps, options.budget = 3, 80
    return options


if __name__ == "__main__":
    main()
