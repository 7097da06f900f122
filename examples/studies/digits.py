"""Does attention help a Glow on 8x8 digits? The same training without it, and with three layers.

    python examples/studies/digits.py          # normflows, 3 seeds; pictures in outputs/digits
    python examples/studies/digits.py --host nflows
    python examples/studies/digits.py --quick  # one seed and few steps: does everything run?

The layers are the two of the paper, iMap and iTrans, and the attention coupling, which
docs/choosing.md recommends for such images. All arms of a seed share the weights of the backbone,
the batches and the dequantisation noise. That is possible because an inserted layer starts as the
identity. The training is short, and an arm may gain by learning faster: in normflows, learned
constants in the place of iTrans gain as much.
"""

import argparse
import time
from pathlib import Path
from types import ModuleType

import harness
import numpy as np
import torch
from digits_pictures import (
    TEMPERATURE,
    TITLES,
    Shown,
    gain_over_plain,
    plot_all,
    relative_time,
    view_attention,
)
from glows import GLOWS, HOSTS
from harness import PLAIN, Run
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attnflow_plugin.metrics import bits_per_dim, dequantize

LEVELS = 17
DIMENSIONS = 64
# What is inserted.
ARMS = {PLAIN: None, "imap": "imap", "itrans": "itrans", "coupling": "coupling"}
WORKERS = 2


def load_data() -> tuple[Tensor, Tensor]:
    """Grey values from 0 to 16, shape (images, 1, 8, 8): 1437 to train on, 360 to test on."""
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1)
    shuffled = images[torch.randperm(len(images), generator=harness.seeded(0))]
    return shuffled[:1437], shuffled[1437:]


def run(library: str, arm: str, seed: int, steps: int) -> Run:
    """Train and evaluate one model; what is random depends on the seed, not on the arm."""
    host = HOSTS[library]
    train_images, test_images = load_data()
    stream = harness.batches(train_images, LEVELS, seed)
    train_set = dequantize(train_images, LEVELS, generator=harness.seeded(0))
    test_set = dequantize(test_images, LEVELS, generator=harness.seeded(1))

    torch.manual_seed(seed)
    model = GLOWS[library]()
    with torch.no_grad():
        host.log_prob(model, next(stream))  # The first batch initialises every ActNorm.
    inserted: tuple[nn.Module, ...] = ()
    if ARMS[arm] is not None:
        inserted = host.insert_attention(model, ARMS[arm], example=train_set[:1]).layers

    def evaluate(data: Tensor) -> float:
        return harness.mean_bits(lambda x: host.log_prob(model, x), [data], DIMENSIONS, LEVELS)

    def loss(x: Tensor) -> Tensor:
        return bits_per_dim(host.log_prob(model, x), DIMENSIONS, LEVELS).mean()

    def after(step: int) -> None:
        if step % max(1, steps // 25) == 0 or step == steps:
            curve.append((step, evaluate(test_set)))

    started = time.process_time()  # Of the processor, which others may use as well.
    curve = [(0, evaluate(test_set))]
    harness.fit(model, loss, stream, steps, f"{arm}, seed {seed}", after)
    values = {
        "seconds": time.process_time() - started,
        "train_bits_per_dim": evaluate(train_set),
        "test_bits_per_dim": curve[-1][1],
    }
    samples = draw(host, model, 48)
    views = view_attention(lambda x: host.log_prob(model, x), inserted, test_set[:3])
    shown = Shown(curve, samples, views)
    return Run(arm, seed, harness.count_parameters(model), values, shown)


@torch.no_grad()
def draw(host: ModuleType, model: nn.Module, count: int) -> np.ndarray:
    """Samples on the grey levels of the data, shape (count, 8, 8)."""
    torch.manual_seed(0)  # The same latent noise for every arm.
    samples, _ = host.sample(model, count, temperature=TEMPERATURE)
    levels = (samples * LEVELS).floor().clamp(0, LEVELS - 1)
    return levels.squeeze(1).numpy()


def table(runs: list[Run]) -> str:
    """Every seed of every arm, in columns."""
    arms = harness.by_arm(runs)
    seeds = [f"seed {run.seed}: train test" for run in arms[PLAIN]]
    rows = [["", "parameters", "s/run", *seeds, "test, minus plain"]]
    for name, arm in arms.items():
        numbers = [run.values for run in arm]
        each = [f"{v['train_bits_per_dim']:.3f} {v['test_bits_per_dim']:.3f}" for v in numbers]
        seconds = f"{np.mean([v['seconds'] for v in numbers]):.0f}"
        gain = "" if name == PLAIN else _with_spread(gain_over_plain(runs, name))
        rows.append([name, f"{arm[0].parameters:,}", seconds, *each, gain])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _with_spread(gain: harness.Difference) -> str:
    """Negative is better."""
    over = "1 seed" if gain.seeds == 1 else f"95 %, {gain.seeds} seeds"
    return f"{gain.text('+.3f', '.3f')} ({over})"


def verdict(runs: list[Run]) -> str:
    """What the numbers say, in words; the best arm comes first."""
    arms = harness.by_arm(runs)
    gains = {name: gain_over_plain(runs, name) for name in arms if name != PLAIN}
    best_first = sorted(gains, key=lambda name: gains[name].mean)
    lines = [f"* {_sentence(runs, name)}" for name in best_first]
    best = best_first[0]
    if effect(runs, best) == "helps":
        head = f"{TITLES[best]} is the best of the {len(arms)}."
    else:
        head = "No layer helps in every seed."
    caution = (
        "Each of them is compared with the plain Glow. The training is short, so that a part of a\n"
        "gain is faster learning. docs/choosing.md compares with deeper Glows that take as long."
    )
    return "\n".join([f"Verdict: {head}", *lines, caution])


def _sentence(runs: list[Run], name: str) -> str:
    """The effect of one arm and its price."""
    gain, arms = gain_over_plain(runs, name), harness.by_arm(runs)
    extra = arms[name][0].parameters / arms[PLAIN][0].parameters - 1
    return (
        f"{TITLES[name]} {effect(runs, name)}: {gain.text('+.3f', '.3f')} bits/dim;"
        f" {relative_time(runs, name):.1f} times the training time, {extra:.0%} more parameters"
    )


def effect(runs: list[Run], name: str) -> str:
    """An arm helps or hurts if it does so in every seed."""
    arms = harness.by_arm(runs)
    plain = harness.scores(arms[PLAIN], "test_bits_per_dim")
    found = harness.scores(arms[name], "test_bits_per_dim")
    differences = [found[seed] - plain[seed] for seed in plain]
    if max(differences) < 0:
        return "helps"
    return "hurts" if min(differences) > 0 else "makes no clear difference"


def main() -> None:
    options = parse_options()
    jobs = [
        (options.host, arm, seed, options.steps)
        for arm in reversed(ARMS)  # The slow ones first, so that no worker waits at the end.
        for seed in range(options.seeds)
    ]
    started = time.perf_counter()
    found = list(harness.do_all(run, jobs, WORKERS))
    runs = sorted(found, key=lambda run: list(ARMS).index(run.arm))
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{options.host} Glow, {options.steps} steps; bits/dim, lower is better\n")
    print(table(runs))
    print(f"\n{verdict(runs)}")
    rows = [
        {"host": options.host, "arm": run.arm, "seed": run.seed, "steps": options.steps}
        | {"parameters": run.parameters, **run.values, "test_curve": run.shown.curve}
        for run in runs
    ]
    harness.write_json(rows, options.out / "results.json", indent=1)
    plot_all(load_data()[0][:48].squeeze(1).numpy(), runs, options.host, options.out)
    print(f"\n{time.perf_counter() - started:.0f} s; pictures and results in {options.out}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", choices=HOSTS, default="normflows")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=800, help="training steps of a run")
    parser.add_argument("--out", type=Path, default=Path("outputs/digits"))
    parser.add_argument("--quick", action="store_true", help="the same as --seeds 1 --steps 60")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = 1, 60
    return options


if __name__ == "__main__":
    main()
