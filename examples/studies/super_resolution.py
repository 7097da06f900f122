"""Does attention help a flow to enlarge photographs? SRFlow, and cAttnFlow with iMap and iTrans.

    python examples/studies/super_resolution.py            # 4x, one seed, pictures of libraries
    python examples/studies/super_resolution.py --seeds 3  # differences with their spread
    python examples/studies/super_resolution.py --scale 8 --data faces
    python examples/studies/super_resolution.py --data folder --data-dir ~/pictures --size 64
    python examples/studies/super_resolution.py --quick    # few steps: does everything run?

All arms of a seed share the weights of the backbone, the batches and the noise. Pictures to test on
are others than those to train on. Ctrl-C saves; the same command goes on.
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
from torch import Tensor
from trainer.options import Options
from trainer.run import TrainingRun
from trainer.schedule import SAMPLES, seed_of

from attnflow_plugin.metrics import (
    lr_psnr,
    over_temperatures,
    pixel_diversity,
    psnr,
    resize_bicubic,
    ssim,
)
from attnflow_plugin.metrics.temperatures import Metric, TemperatureTable

TITLES = titles_for("SRFlow")
TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN_TEMPERATURES = (0.1, 0.5, 0.9)
IMAGES = 64
"""Test images that are enlarged; bits/dim are over all."""
SHOWN = 6
DRAWS = 4
"""Samples of one image, for the diversity."""
EXACT = 60.0
"""LR-PSNR from which on it makes no difference, in decibels; single images reach infinity."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    return script("super_resolution.py", given, options_of(given), run, report)


def run(options: Options, arms: Sequence[str], seeds: int, workers: int) -> list[Run]:
    """Train, measure, save numbers and the picture."""
    runs = compare(options, arms, seeds, measure, workers)
    keep(runs, options, picture)
    return runs


def measure(training: TrainingRun) -> Measured:
    """All numbers of one model, on test images."""
    options = training.options
    targets, low = training.shown(IMAGES)

    def sample(low: Tensor, temperature: float) -> Tensor:
        return draw_samples(training, low, temperature)

    def diversity(temperature: float) -> float:
        drawn = torch.stack([sample(low, temperature) for _ in range(DRAWS)])
        return float(pixel_diversity(drawn).mean())

    torch.manual_seed(seed_of(options.seed, SAMPLES))  # The same latent noise for every arm.
    found = over_temperatures(sample, [(targets, low)], metrics(options.scale), TEMPERATURES).rows
    every = TemperatureTable({t: {**row, "diversity": diversity(t)} for t, row in found.items()})
    _, low = training.shown(SHOWN)
    shown = {str(t): sample(low, t).numpy() for t in SHOWN_TEMPERATURES}
    return Measured({"bits/dim": test_bits(options.out), **every.average}, shown, str(every))


def metrics(scale: int | None) -> dict[str, Metric]:
    assert scale is not None
    return {
        "PSNR": lambda images, targets, low: psnr(images, targets),
        "SSIM": lambda images, targets, low: ssim(images, targets),
        "LR-PSNR": lambda images, targets, low: lr_psnr(images, low, scale).clamp(max=EXACT),
    }


def report(options: Options, runs: Sequence[Run]) -> str:
    """Metrics at each temperature, and their averages beside bicubic enlargement."""
    targets, low = shown_images(options, IMAGES)
    row = {
        name: float(metric(bicubic(low, targets), targets, low).mean())
        for name, metric in metrics(options.scale).items()
    }
    parts = [
        f"{TITLES[each.arm]}, seed 0\n\n{each.measured.text}" for each in runs if not each.seed
    ]
    return "\n\n".join([*parts, table(runs, TITLES, {"bicubic": row})])


def picture(options: Options, runs: Sequence[Run], path: Path) -> None:
    """Low resolution, enlargements, truth."""
    targets, low = shown_images(options, SHOWN)
    columns = {"low resolution": low.numpy(), "bicubic": bicubic(low, targets).numpy()}
    columns |= {**sample_columns(runs, TITLES), "truth": targets.numpy()}
    draw_columns(columns, f"{options.scale}x, test images of {options.data}", path)


def bicubic(low: Tensor, targets: Tensor) -> Tensor:
    return resize_bicubic(low, targets.shape[-2:]).clamp(0, 1)


def options_of(given: argparse.Namespace) -> Options:
    """A small SRFlow; its last level is at a quarter of the size."""
    return Options(
        backbone="srflow",
        context="source",
        data=given.data,
        data_dir=given.data_dir,
        size=None if given.data == "faces" else given.size,
        scale=given.scale,
        host=given.host,
        out=given.out,
        levels=2,
        depth=4,
        hidden=32,
        rrdb_blocks=2,
        rrdb_channels=16,
        rrdb_growth_channels=8,
        batch=16,
        steps=given.steps,
        pretrain_steps=given.pretrain_steps,
        freeze_encoder_until=given.steps // 4,
        evaluate_every=given.steps,
        checkpoint_every=250,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=("photographs", "faces", "folder"), default="photographs")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="with --data folder")
    parser.add_argument("--size", type=int, default=32, help="of the patches; faces have 24")
    parser.add_argument("--scale", type=int, choices=(2, 4, 8), default=4)
    parser.add_argument("--pretrain-steps", type=int, default=2000, help="of the encoder, before")
    add_options(parser, "outputs/super_resolution", steps=3000)
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps = given.pretrain_steps = QUICK_STEPS
    return given


if __name__ == "__main__":
    sys.exit(main())
