"""What the arms are compared on: images, the size of the Glow for them, and lengths of training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HIDDEN = 64


@dataclass(frozen=True)
class Setting:
    """Images, and what the plain Glow and its training for them are like.

    Attributes:
        data: the images, by their name in train.py.
        edge: their height and width.
        steps: number of training steps, by the name of a length.
        options: other options of train.py than those of small Glows.
    """

    data: str
    edge: int
    steps: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> int:
        """Hidden channels of the couplings."""
        return self.options.get("hidden", HIDDEN)


LENGTHS = ("quick", "short", "long")
_REAL = {"hidden": 256, "batch": 32}
_REAL_STEPS = {"quick": 10, "short": 1000, "long": 4000}
# On the 8x8 digits the plain Glow overfits after about 2000 steps.
SMALL = {
    "digits": Setting("digits", 8, {"quick": 200, "short": 500, "long": 2000}),
    "photographs": Setting("photographs", 16, {"quick": 100, "short": 1500, "long": 4000}),
}
# The width of normflows' example.
REAL = {
    "digits-28": Setting("mnist-5000", 28, _REAL_STEPS, _REAL),
    "digits-3x32x32": Setting("mnist-5000-3x32x32", 32, _REAL_STEPS, _REAL),
    "photographs-32": Setting("photographs", 32, _REAL_STEPS, {**_REAL, "size": 32}),
}
SETTINGS = SMALL | REAL
