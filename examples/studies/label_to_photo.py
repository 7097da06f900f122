"""Does attention help a flow to make photographs from maps? Full-Glow, and cAttnFlow.

    python examples/studies/label_to_photo.py                    # maps of segments, one seed
    python examples/studies/label_to_photo.py --seeds 3          # differences with their spread
    python examples/studies/label_to_photo.py --data disparity   # from how far things are
    python examples/studies/label_to_photo.py --data pairs --data-dir ~/pairs  # source/ and target/
    python examples/studies/label_to_photo.py --arms plain itrans itrans-context  # see the map
    python examples/studies/label_to_photo.py --quick            # few steps: does everything run?

All arms of a seed share the weights of the backbone, the batches and the noise. Photographs to test
on are others than those to train on. Ctrl-C saves; the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from comparison import (
    QUICK_STEPS,
    Measured,
    Run,
    add_options,
    compare,
    draw_samples,
    keep,
    sample_columns,
    script,
    shown_images,
    table,
    test_bits,
    titles_for,
)
from sample_pictures import draw_columns
from trainer.options import Options
from trainer.run import TrainingRun
from trainer.schedule import SAMPLES, seed_of

from attnflow_plugin.metrics import bits_per_dim, pixel_diversity

TITLES = titles_for("Full-Glow")
TEMPERATURES = (0.5, 0.8)
IMAGES = 64
"""Test images for the diversity and for maps that do not belong to them."""
SHOWN = 6
DRAWS = 4
"""Samples of one map, for the diversity."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    return script("label_to_photo.py", given, options_of(given), run, report)


def run(options: Options, arms: Sequence[str], seeds: int, workers: int) -> list[Run]:
    """Train, measure, save numbers and the picture."""
    runs = compare(options, arms, seeds, measure, workers)
    keep(runs, options, picture)
    return runs


def measure(training: TrainingRun) -> Measured:
    """All numbers of one model, on test images."""
    options = training.options
    _, maps = training.shown(IMAGES)
    torch.manual_seed(seed_of(options.seed, SAMPLES))  # The same latent noise for every arm.
    drawn = torch.stack([draw_samples(training, maps, TEMPERATURES[-1]) for _ in range(DRAWS)])
    values = {
        "bits/dim": test_bits(options.out),
        "with another map": bits_with_another_map(training),
        "diversity": float(pixel_diversity(drawn).mean()),
    }
    _, maps = training.shown(SHOWN)
    shown = {str(t): draw_samples(training, maps, t).numpy() for t in TEMPERATURES}
    return Measured(values, shown)


def bits_with_another_map(training: TrainingRun) -> float:
    """Bits/dim of test images given the map of another; not higher, if maps are not used."""
    module, info = training.module, training.data.info
    likelihood = module.model.likelihood(module.best_flow)
    images, batches = training.data.testing(IMAGES)
    examples = map(module.test_example, batches)
    nats = sum(float(likelihood(x, maps.roll(1, 0)).sum()) for x, maps in examples)
    return float(bits_per_dim(torch.tensor(-nats / images), info.dims, info.levels))


def report(options: Options, runs: Sequence[Run]) -> str:
    """Conditional bits/dim, and what comes with them."""
    return table(runs, TITLES)


def picture(options: Options, runs: Sequence[Run], path: Path) -> None:
    """Map, samples, truth."""
    targets, maps = shown_images(options, SHOWN)
    columns = {"map": maps.numpy()}
    columns |= {**sample_columns(runs, TITLES), "truth": targets.numpy()}
    draw_columns(columns, f"test images of {options.data}", path)


def options_of(given: argparse.Namespace) -> Options:
    """A small Full-Glow."""
    return Options(
        backbone="full-glow",
        context="source",
        data=given.data,
        data_dir=given.data_dir,
        size=given.size,
        host=given.host,
        out=given.out,
        levels=2,
        depth=4,
        hidden=32,
        batch=16,
        steps=given.steps,
        evaluate_every=given.steps,
        checkpoint_every=250,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = ("segmentation", "disparity", "pairs")
    parser.add_argument("--data", choices=data, default="segmentation")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="with --data pairs")
    parser.add_argument("--size", type=int, default=32, help="of the patches")
    add_options(parser, "outputs/label_to_photo", steps=1500)
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps = QUICK_STEPS
    return given


if __name__ == "__main__":
    sys.exit(main())
