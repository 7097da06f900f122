"""The options of a run: one frozen record, from which the command line is made."""

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from training.presets import PRESETS

# What may differ between a run and its continuation. Everything else makes the model or the data.
FREE = {
    *("out", "data_dir", "device", "workers", "steps", "lr", "warmup", "schedule", "clip"),
    *("bf16", "compile", "log_every", "evaluate_every", "checkpoint_every", "temperature"),
}

DataName = Literal[
    *("digits", "photographs", "folder", "mnist", "mnist-3x32x32", "cifar10", "celeba"),
    *("cityscapes", "faces", "segmentation", "disparity", "pairs", "cityscapes-pairs"),
]
Host = Literal["normflows", "nflows"]
Backbone = Literal["glow", "marflow", "srflow", "full-glow"]
Attention = Literal["imap", "itrans", "both", "none"]
Activation = Literal["sigmoid", "softmax", "exp"]
Position = Literal["before_actnorm", "after_actnorm", "after_permutation", "after_coupling"]
Context = Literal["none", "label", "coarse", "source"]
CouplingNet = Literal["conv", "attention"]
ScaleMap = Literal["bounded", "sigmoid", "sigmoid_floor", "sigmoid_inv", "exp"]
Prior = Literal["channel-autoregressive", "gaussian"]
Splits = Literal["released", "all"]
Conditioning = Literal["full", "coupling", "prior"]
Trunk = Literal["pooling", "tied"]
Optimizer = Literal["adam", "adamax"]
Schedule = Literal["cosine", "constant"]
Device = Literal["auto", "cpu", "cuda"]


class UsageError(Exception):
    """Something the user can put right; train.py prints it without a traceback."""


@dataclass(frozen=True)
class Options:
    """All of a run; the same options give the same numbers on a CPU."""

    out: Annotated[Path, "folder of the checkpoint, the metrics and the picture"] = Path(
        "outputs/train"
    )

    data: Annotated[DataName, "data set"] = "digits"
    data_dir: Annotated[Path, "where the files of the data set are"] = Path("data")
    size: Annotated[int | None, "height of patches, or to which files are resized"] = None
    scale: Annotated[int | None, "make sources, of images at 1/scale of their size"] = None

    host: Annotated[Host, "library of the flow"] = "normflows"
    backbone: Annotated[Backbone, "kind of flow"] = "glow"
    attention: Annotated[Attention, "attention in every step of the flow"] = "imap"
    heads: Annotated[int | None, "heads of iTrans"] = None
    patches: Annotated[int | None, "patches of iTrans along each axis, else its own choice"] = None
    affine: Annotated[bool, "iTrans also scales and shifts"] = False
    activation: Annotated[Activation | None, "activation of the attention, else its own"] = None
    position: Annotated[Position, "where in a step of the flow"] = "after_coupling"
    both_masks: Annotated[bool, "a second attention with the complementary mask"] = True
    levels: Annotated[int, "levels of the flow, each at half the resolution"] = 2
    depth: Annotated[int, "steps of the flow in a level"] = 4
    hidden: Annotated[int, "hidden channels of the couplings"] = 64
    context: Annotated[
        Context, "condition on the class, on the image at 1/4 of its size, or on its source"
    ] = "none"
    context_in_attention: Annotated[bool, "the attention sees the condition as well"] = False

    # Of some backbones only; without them each has its own.
    scale_map: Annotated[ScaleMap | None, "scale of affine couplings"] = None
    learned_priors: Annotated[bool, "glow: levels predict what they split off"] = False
    coupling_net: Annotated[CouplingNet | None, "glow: nets of the couplings"] = None
    prior: Annotated[Prior | None, "marflow: what predicts what a level splits off"] = None
    components: Annotated[int | None, "marflow: components of the mixtures"] = None
    blocks: Annotated[int | None, "marflow, --coupling-net attention: blocks of the nets"] = None
    dropout: Annotated[float | None, "the same: dropout of the nets, in training only"] = None
    rrdb_blocks: Annotated[int | None, "srflow: blocks of the encoder"] = None
    rrdb_channels: Annotated[int | None, "srflow: channels of the encoder"] = None
    rrdb_growth_channels: Annotated[int | None, "srflow: channels its dense blocks add"] = None
    splits: Annotated[Splits | None, "srflow: which levels split something off"] = None
    pretrain_steps: Annotated[int, "srflow: steps that train the encoder alone, before all"] = 0
    pretrain_lr: Annotated[float | None, "srflow: learning rate of these, else --lr"] = None
    freeze_encoder_until: Annotated[int, "srflow: steps without the encoder, after that"] = 0
    conditioning: Annotated[Conditioning | None, "full-glow: what sees the source"] = None
    trunk: Annotated[Trunk | None, "full-glow: nets between source and target"] = None
    source_attention: Annotated[bool, "full-glow: attention in the flow of the source"] = True

    steps: Annotated[int, "training steps of the flow"] = 2000
    batch: Annotated[int, "images in a step, over all processes"] = 64
    optimizer: Annotated[Optimizer, "optimiser"] = "adam"
    lr: Annotated[float, "learning rate at its highest"] = 1e-3
    warmup: Annotated[int, "steps over which the learning rate grows to it"] = 100
    schedule: Annotated[Schedule, "learning rate after that"] = "cosine"
    clip: Annotated[float, "largest norm of the gradient of bits/dim; 0 for any"] = 10.0
    ema: Annotated[float, "decay of the average of the weights; 0 for none"] = 0.999
    seed: Annotated[int, "seed of everything random"] = 0

    device: Annotated[Device, "where to train"] = "auto"
    bf16: Annotated[bool, "train under bfloat16 autocast (GPU only)"] = False
    compile: Annotated[bool, "compile the model"] = False
    workers: Annotated[int, "processes that read image files, for each training process"] = 0
    log_every: Annotated[int, "steps between lines in metrics.jsonl"] = 10
    evaluate_every: Annotated[int, "steps between evaluations and pictures"] = 500
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 500
    temperature: Annotated[float, "temperature of the samples in the picture"] = 1.0

    def __post_init__(self) -> None:
        periods = ("log_every", "evaluate_every", "checkpoint_every")
        for name in ("levels", "depth", "hidden", "steps", "batch", *periods):
            if getattr(self, name) < 1:
                raise UsageError(f"{flag(name)}: expected at least 1, found {getattr(self, name)}")
        for name in ("pretrain_steps", "freeze_encoder_until"):
            if getattr(self, name) < 0:
                raise UsageError(f"{flag(name)}: expected at least 0, found {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"--ema: expected a number from 0 to below 1, found {self.ema}")
        if min(self.lr, self.highest_pretrain_lr) <= 0 or self.clip < 0:
            raise UsageError("--lr and --clip: expected a positive rate, and a norm of 0 or more")

    @property
    def all_steps(self) -> int:
        """Training steps with those before the flow's own."""
        return self.pretrain_steps + self.steps

    @property
    def highest_pretrain_lr(self) -> float:
        """The learning rate of the encoder's own training."""
        return self.lr if self.pretrain_lr is None else self.pretrain_lr

    @property
    def given(self) -> dict[str, Any]:
        """What differs from its default."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != each.default
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint holds no code."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def from_dict(stored: dict[str, Any]) -> Options:
    """The reverse of :meth:`Options.as_dict`; what is missing takes its default."""
    paths = {each.name for each in fields(Options) if isinstance(each.default, Path)}
    return Options(**{k: Path(v) if k in paths else v for k, v in stored.items()})


def resumed(stored: dict[str, Any], given: dict[str, Any]) -> Options:
    """The options of a checkpoint, with those changed that may change."""
    options = from_dict(stored)
    for name, value in given.items():
        before = getattr(options, name)
        if name not in FREE and value != before:
            raise UsageError(
                f"{flag(name)}: the checkpoint was made with {before}, found {value}; a run "
                "cannot change it on the way"
            )
    return replace(options, **given)


def parse(arguments: Sequence[str] | None, description: str) -> tuple[dict[str, Any], bool]:
    """The options that were given, by themselves or by a preset, and whether to resume."""
    parser = argparse.ArgumentParser(description=description, argument_default=argparse.SUPPRESS)
    hints = get_type_hints(Options, include_extras=True)
    for each in fields(Options):
        assert each.default is not MISSING
        parser.add_argument(flag(each.name), **_settings(hints[each.name], each.default))
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=None,
        metavar="NAME",
        help=f"options of a row of the paper's tables; others change them: {', '.join(PRESETS)}",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on from the checkpoint in --out, if there is one, with its options",
    )
    given = vars(parser.parse_args(arguments))
    resume, preset = given.pop("resume"), given.pop("preset")
    return _preset(preset, given) | given, resume


def _preset(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Its options; the size of the images belongs to its own data."""
    options = PRESETS[name] if name else {}
    return {k: v for k, v in options.items() if k != "size" or "data" not in given}


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def _settings(hint: Any, default: Any) -> dict[str, Any]:
    """What argparse is told: the type and the help from the annotation, choices from a Literal."""
    kind, text = get_args(hint)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if default is None:
        kind = next(each for each in get_args(kind) if each is not NoneType)
    else:
        text += f" (default: {default})"
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "help": text}
    return {"type": kind, "help": text}
