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

import conditional
import torch
from conditional import Comparison, Measured, Shown, bits_at_the_end, draw_samples
from torch import Tensor
from trainer.options import Options
from trainer.run import TrainingRun

from attnflow_plugin.metrics import (
    lr_psnr,
    over_temperatures,
    pixel_diversity,
    psnr,
    resize_bicubic,
    ssim,
)
from attnflow_plugin.metrics.scores import Metric, TemperatureTable

TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN_TEMPERATURES = (0.1, 0.5, 0.9)
EXACT = 60.0
"""LR-PSNR from which on it makes no difference, in decibels; single images reach infinity."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    return COMPARISON.main(given, options_of(given))


def measure(training: TrainingRun) -> Measured:
    """All numbers of one model, on test images."""
    options = training.options
    targets, low = training.shown(conditional.IMAGES)

    def sample(low: Tensor, temperature: float) -> Tensor:
        return draw_samples(training, low, temperature)

    def diversity(temperature: float) -> float:
        drawn = torch.stack([sample(low, temperature) for _ in range(conditional.DRAWS)])
        return float(pixel_diversity(drawn).mean())

    found = over_temperatures(sample, [(targets, low)], metrics(options.scale), TEMPERATURES).rows
    every = TemperatureTable({t: {**row, "diversity": diversity(t)} for t, row in found.items()})
    _, low = training.shown(conditional.SHOWN)
    shown = Shown({str(t): sample(low, t).numpy() for t in SHOWN_TEMPERATURES}, str(every))
    return {"bits/dim": bits_at_the_end(training), **every.average}, shown


def metrics(scale: int | None) -> dict[str, Metric]:
    assert scale is not None
    return {
        "PSNR": lambda images, targets, low: psnr(images, targets),
        "SSIM": lambda images, targets, low: ssim(images, targets),
        "LR-PSNR": lambda images, targets, low: lr_psnr(images, low, scale).clamp(max=EXACT),
    }


def of_bicubic(options: Options) -> dict[str, dict[str, float]]:
    """The metrics of bicubic enlargement."""
    targets, low = conditional.test_images(options, conditional.IMAGES)
    found = {
        name: float(metric(bicubic(low, targets), targets, low).mean())
        for name, metric in metrics(options.scale).items()
    }
    return {"bicubic": found}


def bicubic(low: Tensor, targets: Tensor) -> Tensor:
    return resize_bicubic(low, targets.shape[-2:]).clamp(0, 1)


COMPARISON = Comparison(
    script="super_resolution.py",
    backbone="SRFlow",
    measure=measure,
    inputs=lambda low, targets: {"low resolution": low, "bicubic": bicubic(low, targets)},
    title=lambda options: f"{options.scale}x, test images of {options.data}",
    others=of_bicubic,
)


def options_of(given: argparse.Namespace) -> Options:
    """A small SRFlow; its last level is at a quarter of the size."""
    return conditional.small_flow(
        given,
        backbone="srflow",
        size=None if given.data == "faces" else given.size,
        scale=given.scale,
        rrdb_blocks=2,
        rrdb_channels=16,
        rrdb_growth_channels=8,
        pretrain_steps=given.pretrain_steps,
        freeze_encoder_until=given.steps // 4,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = conditional.parser(__doc__, "outputs/super_resolution", steps=3000)
    parser.add_argument("--data", choices=("photographs", "faces", "folder"), default="photographs")
    parser.add_argument("--size", type=int, default=32, help="of the patches; faces have 24")
    parser.add_argument("--scale", type=int, choices=(2, 4, 8), default=4)
    parser.add_argument("--pretrain-steps", type=int, default=2000, help="of the encoder, before")
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps = given.pretrain_steps = conditional.QUICK_STEPS
    return given


if __name__ == "__main__":
    sys.exit(main())
