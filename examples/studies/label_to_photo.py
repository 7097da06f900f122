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

import conditional
import torch
from conditional import Comparison, Measured, Shown, bits_at_the_end, draw_samples
from trainer.options import Options
from trainer.run import TrainingRun

from attnflow_plugin.metrics import bits_per_dim, pixel_diversity

TEMPERATURES = (0.5, 0.8)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    return COMPARISON.main(given, options_of(given))


def measure(training: TrainingRun) -> Measured:
    """All numbers of one model, on test images."""
    _, maps = training.shown(conditional.IMAGES)
    drawn = [draw_samples(training, maps, TEMPERATURES[-1]) for _ in range(conditional.DRAWS)]
    values = {
        "bits/dim": bits_at_the_end(training),
        "with another map": bits_with_another_map(training),
        "diversity": float(pixel_diversity(torch.stack(drawn)).mean()),
    }
    _, maps = training.shown(conditional.SHOWN)
    return values, Shown({str(t): draw_samples(training, maps, t).numpy() for t in TEMPERATURES})


def bits_with_another_map(training: TrainingRun) -> float:
    """Bits/dim of test images given the map of another; not higher, if maps are not used."""
    module, info = training.module, training.data.info
    likelihood = module.model.likelihood(module.best_flow)
    images, batches = training.data.testing(conditional.IMAGES)
    examples = map(module.test_example, batches)
    nats = sum(float(likelihood(x, maps.roll(1, 0)).sum()) for x, maps in examples)
    return float(bits_per_dim(torch.tensor(-nats / images), info.dims, info.levels))


COMPARISON = Comparison(
    script="label_to_photo.py",
    backbone="Full-Glow",
    measure=measure,
    inputs=lambda maps, photographs: {"map": maps},
    title=lambda options: f"test images of {options.data}",
)


def options_of(given: argparse.Namespace) -> Options:
    """A small Full-Glow."""
    return conditional.small_flow(given, backbone="full-glow", size=given.size)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = conditional.parser(__doc__, "outputs/label_to_photo", steps=1500)
    data = ("segmentation", "disparity", "pairs")
    parser.add_argument("--data", choices=data, default="segmentation")
    parser.add_argument("--size", type=int, default=32, help="of the patches")
    given = parser.parse_args(arguments)
    if given.quick:
        given.steps = conditional.QUICK_STEPS
    return given


if __name__ == "__main__":
    sys.exit(main())
