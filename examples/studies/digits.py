"""Does attention help a Glow on 8x8 digits? The same training without, with iMap, with iTrans.

    python examples/studies/digits.py          # normflows, 3 seeds; pictures in outputs/digits
    python examples/studies/digits.py --host nflows
    python examples/studies/digits.py --quick  # one seed and few steps: does everything run?

All arms of a seed share the weights of the backbone, the batches and the dequantisation noise.
That is possible because an inserted layer starts as the identity. The training is short, and an arm
may gain by learning faster: in normflows, learned constants in the place of iTrans gain as much.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import current_process, get_context
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from attention_views import view_attention
from glows import GLOWS, HOSTS, TEMPERATURE
from plots import plot_all
from results import Job, Run, save_json, table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from attnflow_plugin.metrics import bits_per_dim, dequantize

LEVELS = 17
DIMENSIONS = 64
# What to insert, with which options.
ARMS: dict[str, dict | None] = {"plain": None, "imap": {}, "itrans": {}}
WORKERS = 2


def load_data() -> tuple[Tensor, Tensor]:
    """Grey values from 0 to 16, shape (images, 1, 8, 8): 1437 to train on, 360 to test on."""
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1)
    shuffled = images[torch.randperm(len(images), generator=seeded(0))]
    return shuffled[:1437], shuffled[1437:]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(images: Tensor, seed: int) -> Iterator[Tensor]:
    random = seeded(seed)
    while True:
        chosen = torch.randint(len(images), (64,), generator=random)
        yield dequantize(images[chosen], LEVELS, generator=random)


def run(job: Job) -> Run:
    """Train and evaluate one model; what is random depends on the seed, not on the arm."""
    torch.set_num_threads(1)  # The other core belongs to the other worker.
    host = HOSTS[job.host]
    train_images, test_images = load_data()
    stream = batches(train_images, job.seed)
    train_set = dequantize(train_images, LEVELS, generator=seeded(0))
    test_set = dequantize(test_images, LEVELS, generator=seeded(1))

    torch.manual_seed(job.seed)
    model = GLOWS[job.host]()
    with torch.no_grad():
        host.log_prob(model, next(stream))  # The first batch initialises every ActNorm.
    inserted: tuple[nn.Module, ...] = ()
    options = ARMS[job.arm]
    if options is not None:
        inserted = host.insert_attention(model, job.arm, example=train_set[:1], **options).layers

    started = time.perf_counter()
    curve = train(host, model, stream, test_set, job)
    return Run(
        job=job,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=time.perf_counter() - started,
        train=evaluate(host, model, train_set),
        curve=curve,
        samples=draw(host, model, 48),
        views=view_attention(lambda x: host.log_prob(model, x), inserted, test_set[:3]),
    )


def train(
    host: ModuleType, model: nn.Module, stream: Iterator[Tensor], test_set: Tensor, job: Job
) -> list[tuple[int, float]]:
    """Maximum likelihood; returns the test bits/dim on the way."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.steps)
    curve = [(0, evaluate(host, model, test_set))]
    line = int(current_process().name.split("-")[-1]) - 1  # One line of bars for each worker.
    for step in tqdm(range(1, job.steps + 1), str(job), position=line, leave=False, mininterval=1):
        loss = bits_per_dim(host.log_prob(model, next(stream)), DIMENSIONS, LEVELS).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, job.steps // 25) == 0 or step == job.steps:
            curve.append((step, evaluate(host, model, test_set)))
    return curve


@torch.no_grad()
def evaluate(host: ModuleType, model: nn.Module, data: Tensor) -> float:
    return float(bits_per_dim(host.log_prob(model, data), DIMENSIONS, LEVELS).mean())


@torch.no_grad()
def draw(host: ModuleType, model: nn.Module, count: int) -> np.ndarray:
    """Samples on the grey levels of the data, shape (count, 8, 8)."""
    torch.manual_seed(0)  # The same latent noise for every arm.
    samples, _ = host.sample(model, count, temperature=TEMPERATURE)
    levels = (samples * LEVELS).floor().clamp(0, LEVELS - 1)
    return levels.squeeze(1).numpy()


def main() -> None:
    options = parse_options()
    jobs = [
        Job(options.host, arm, seed, options.steps)
        for arm in reversed(ARMS)  # The slow ones first, so that no worker waits at the end.
        for seed in range(options.seeds)
    ]
    spawn = get_context("spawn")
    started = time.perf_counter()
    with ProcessPoolExecutor(
        WORKERS, mp_context=spawn, initializer=tqdm.set_lock, initargs=(spawn.RLock(),)
    ) as pool:
        runs = list(pool.map(run, jobs))
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{options.host} Glow, {options.steps} steps; bits/dim, lower is better\n")
    print(table(runs))
    save_json(runs, options.out / "results.json")
    plot_all(load_data()[0][:48].squeeze(1).numpy(), runs, options.out)
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
