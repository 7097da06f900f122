"""Options of the models in the tables of *Generative Flows with Invertible Attentions*.

Sizes, batch, optimiser, learning rate and number of steps are the paper's, for the backbone alone
as well, so that the two differ in the attention only. What the paper leaves open is as in the
released backbones. ``--preset mnist-l3k2c48-imap`` is the row mARFlow + iMap with 3 levels of 2
steps and 48 channels; without ``-imap`` and ``-itrans`` it is the backbone.
"""

from typing import Any

_COMMON = {"attention": "none", "optimizer": "adam", "lr": 8e-4, "schedule": "constant"}
_COMMON |= {"clip": 0.0, "ema": 0.0}

# The released warm-up is over 10,000 images.
_MARFLOW = _COMMON | {"backbone": "marflow", "levels": 3, "batch": 32, "warmup": 10_000 // 32}
_MNIST = _MARFLOW | {"data": "mnist-3x32x32", "steps": 100_000}
_CIFAR10 = _MARFLOW | {"data": "cifar10", "steps": 90_000}

# The encoder's own training is that of SRFlow, which also means to train the flow alone for the
# first half of its steps.
_SRFLOW = _COMMON | {
    **{"backbone": "srflow", "context": "source", "hidden": 64, "warmup": 0},
    **{"data": "celeba", "size": 160, "scale": 8, "batch": 16, "steps": 500_000},
    **{"pretrain_steps": 200_000, "pretrain_lr": 2e-4, "freeze_encoder_until": 250_000},
}
_FULL_GLOW = _COMMON | {
    **{"backbone": "full-glow", "context": "source", "hidden": 512, "trunk": "tied", "warmup": 0},
    **{"data": "cityscapes-pairs", "size": 256, "batch": 1, "steps": 200_000},
}

# With the number of heads of iTrans.
_BACKBONES: dict[str, tuple[dict[str, Any], int]] = {
    "mnist-l3k4c96": (_MNIST | {"depth": 4, "hidden": 96}, 5),
    "mnist-l3k2c96": (_MNIST | {"depth": 2, "hidden": 96}, 5),
    "mnist-l3k2c48": (_MNIST | {"depth": 2, "hidden": 48}, 5),
    "cifar10-l3k4c96": (_CIFAR10 | {"depth": 4, "hidden": 96}, 5),
    "cifar10-l3k4c256": (_CIFAR10 | {"depth": 4, "hidden": 256}, 5),
    "celeba-sr8-l1k1": (_SRFLOW | {"levels": 1, "depth": 1}, 3),
    "celeba-sr8-l2k8": (_SRFLOW | {"levels": 2, "depth": 8}, 3),
    "cityscapes-l2k8": (_FULL_GLOW | {"levels": 2, "depth": 8}, 1),
    "cityscapes-l4k16": (_FULL_GLOW | {"levels": 4, "depth": 16}, 1),
}

PRESETS: dict[str, dict[str, Any]] = {}
"""Options by the name of the preset."""
for _name, (_options, _heads) in _BACKBONES.items():
    PRESETS[_name] = _options
    PRESETS[f"{_name}-imap"] = _options | {"attention": "imap", "activation": "sigmoid"}
    PRESETS[f"{_name}-itrans"] = _options | {"attention": "itrans", "heads": _heads, "patches": 2}
