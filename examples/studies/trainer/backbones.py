"""What the backbones are built from, and which options each has a use for."""

from typing import Any

from trainer.options import Options, UsageError, flag

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
ATTENTIONS: dict[str, set[str]] = {
    "imap": {"activation", "axis", "mask", "init", "gain_bound"},
    "itrans": {
        *("activation", "mask", "init", "gain_bound", "heads", "patches", "affine", "head_mode"),
        *("position_bias", "value_mixing", "rank"),
    },
    "coupling": {
        *("mask", "heads", "patches", "width", "kernel", "window", "scale_bound", "shift_bound"),
    },
}
"""The attentions of the package and the options of their layers."""
_OF_ANY = {"position", "both_masks", "context_in_attention", "source_attention"}
_FEW_GREY_LEVELS = {"digits", "mnist", "mnist-3x32x32"}


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
        kinds = [] if options.attention == "none" else options.attention.split(",")
    # What gained most in the project's own comparison, docs/choosing.md.
    elif options.data in _FEW_GREY_LEVELS:
        kinds = ["coupling"]
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
