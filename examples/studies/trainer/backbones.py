"""What the backbones are built from, which options each has a use for, and the paper's models."""

from typing import Any

from attnflow_plugin import layers
from trainer.options import MNIST, Options, UsageError, flag

# By the names that the builders give them, too.
_ARCHITECTURE: dict[str, set[str]] = {
    "glow": {"coupling_net", "learned_priors", "scale_map"},
    "marflow": {"prior", "components", "blocks", "dropout"},
    "srflow": {
        *("rrdb_blocks", "rrdb_channels", "rrdb_growth_channels"),
        *("splits", "scale_map"),
    },
    "full-glow": {"conditioning", "trunk", "scale_map"},
}
# With --coupling-net attention, whose defaults are those of mARFlow.
_OF_ATTENTION_NETS = {"blocks", "dropout"}
_FURTHER = {
    "glow": {"context_in_attention", *_OF_ATTENTION_NETS},
    "srflow": {
        *("context_in_attention", "pretrain_steps", "pretrain_lr", "freeze_encoder_until"),
    },
    "full-glow": {"context_in_attention", "source_attention"},
}
_CONTEXTS = {
    "glow": ("none", "label", "coarse", "source"),
    "marflow": ("none",),
    "srflow": ("source",),
    "full-glow": ("source",),
}
# What is no option on the command line: the builders give it, or images have no use for it.
NOT_OFFERED = {"flip", "context_channels", "positions", "odd", "present"}
ATTENTIONS = {name: {*kind.options()} - NOT_OFFERED for name, kind in layers.ATTENTIONS.items()}
"""The attentions of the package and the options of their layers."""
_OF_ANY = {"position", "both_masks", "context_in_attention", "source_attention"}


def check_options(options: Options) -> None:
    """Raise where options do not go together, or nothing would come of one of them."""
    useless = set().union(*_ARCHITECTURE.values(), *_FURTHER.values()) - _used(options.backbone)
    _refuse(options, useless, f"--backbone {options.backbone}")
    if options.backbone == "glow" and options.coupling_net != "attention":
        _refuse(options, _OF_ATTENTION_NETS, "--coupling-net conv")
    kinds, used = attention(options)
    useless = set().union(*ATTENTIONS.values()) - used.keys() | (set() if kinds else _OF_ANY)
    _refuse(options, useless, f"--attention {options.attention}")
    if options.compile and options.recompute:
        raise UsageError("--recompute: --compile decides itself what is kept")
    if options.context != "source":
        _refuse(options, {"scale"}, f"--context {options.context}")
    if options.context not in _CONTEXTS[options.backbone]:
        expected = " or ".join(_CONTEXTS[options.backbone])
        raise UsageError(
            f"--backbone {options.backbone}: expected --context {expected}, found {options.context}"
        )
    # A power of two has one bit.
    if options.backbone == "srflow" and (options.scale or 0).bit_count() != 1:
        raise UsageError(
            f"--scale: --backbone srflow enlarges by a power of two, found {options.scale}"
        )


def architecture(options: Options) -> dict[str, Any]:
    """Arguments of the builder that only this backbone has, without those of its attention."""
    own = _ARCHITECTURE[options.backbone]
    found = {name: value for name, value in options.given.items() if name in own}
    if options.backbone == "glow" and options.coupling_net == "attention":
        nets = {name: options.given[name] for name in _OF_ATTENTION_NETS & options.given.keys()}
        found["coupling_net_options"] = nets
    if options.backbone == "srflow":
        found |= {"scale": options.scale, "image_head": options.pretrain_steps > 0}
    return found


def attention(options: Options) -> tuple[list[str], dict[str, Any]]:
    """The kinds of attention in a step, and the options of their layers that were given."""
    found: dict[str, Any] = {}
    if options.attention != "auto":
        given = [] if options.attention == "none" else options.attention.split(",")
        kinds = [layers.ALIASES.get(kind, kind) for kind in given]
    # What gained most in the project's own comparison, docs/choosing.md.
    elif options.data in ("digits", *MNIST):
        kinds = ["attention_coupling"]
    else:
        kinds, found = ["itrans"], {"affine": True}
    if unknown := [kind for kind in kinds if kind not in ATTENTIONS]:
        raise UsageError(
            f"--attention: expected auto, none, or some of {', '.join(ATTENTIONS)} with commas "
            f"between, found {unknown[0]!r}"
        )
    names = set().union(*(ATTENTIONS[kind] for kind in kinds))
    found |= {name: value for name, value in options.given.items() if name in names}
    # What is meant by it in Python.
    return kinds, {name: None if value == "none" else value for name, value in found.items()}


def summary(options: Options, parameters: int) -> str:
    """The model in a line."""
    kinds, of_layers = attention(options)
    given = "".join(f", {name} {value}" for name, value in of_layers.items())
    return (
        f"{options.backbone} in {options.host}, {parameters} parameters, attention: "
        f"{' and '.join(kinds) or 'none'}{given}"
    )


def _used(backbone: str) -> set[str]:
    return _ARCHITECTURE[backbone] | _FURTHER.get(backbone, set())


def _refuse(options: Options, names: set[str], user: str) -> None:
    for name in options.given:
        if name in names:
            raise UsageError(f"{flag(name)}: {user} has no use for it")


# The models in the paper's tables. Sizes, batch, optimiser, learning rate and number of steps are
# the paper's, for the backbone alone as well, so that the two differ in the attention only. What
# the paper leaves open is as in the released backbones. mnist-l3k2c48-imap is the row of mARFlow
# with iMap, 3 levels of 2 steps and 48 channels; without -imap and -itrans it is the backbone.
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
