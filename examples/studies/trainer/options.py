"""The options of a run: one frozen record, from which the command line is made."""

import math
import shlex
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from attnflow_plugin.backbones.full_glow import Conditioning, Trunk
from attnflow_plugin.backbones.marflow import Prior
from attnflow_plugin.backbones.srflow import Splits
from attnflow_plugin.insertion.places import PositionName
from attnflow_plugin.layers import ATTENTIONS
from attnflow_plugin.layers.imap import Activation, Axis
from attnflow_plugin.layers.mixing import HeadMode
from attnflow_plugin.layers.scales import Init, ScaleMapName
from attnflow_plugin.masks import MaskKind

# What may differ between a run and its continuation. Everything else makes the model or the data.
FREE = {
    *("out", "data_dir", "device", "workers", "steps", "lr", "warmup", "schedule", "clip"),
    *("bf16", "compile", "recompute", "log_every", "evaluate_every", "checkpoint_every"),
    *("temperature", "broken"),
}

DataName = Literal[
    *("digits", "photographs", "faces", "segmentation", "disparity"),
    *("mnist-5000", "mnist-5000-3x32x32", "mnist", "mnist-3x32x32", "cifar10", "celeba"),
    *("folder", "pairs", "cityscapes", "cityscapes-pairs"),
]
MNIST = ("mnist", "mnist-3x32x32", "mnist-5000", "mnist-5000-3x32x32")
"""The digits in both protocols, all of them and those of a package."""

Host = Literal["normflows", "nflows"]
Backbone = Literal["glow", "marflow", "srflow", "full-glow"]
Size = int | str
Maps = Literal["auto", "pictures", "colours", "classes"]
Patches = int | Literal["auto", "none"]
Context = Literal["none", "label", "coarse", "source"]
CouplingNet = Literal["conv", "attention"]
Optimizer = Literal["adam", "adamax"]
Schedule = Literal["cosine", "constant"]
Device = Literal["auto", "cpu", "cuda"]


class UsageError(Exception):
    """Something the user can put right; train.py prints it without a traceback."""


@dataclass(frozen=True)
class From:
    """Numbers from ``low`` on, or above it, to below ``end``."""

    low: float
    above: bool = False
    end: float = math.inf

    def check(self, name: str, value: float) -> None:
        if not (self.low < value if self.above else self.low <= value) or not value < self.end:
            start = f"above {self.low:g}" if self.above else f"from {self.low:g} on"
            end = "" if self.end == math.inf else f" and below {self.end:g}"
            raise UsageError(f"{flag(name)}: expected a number {start}{end}, found {value}")


POSITIVE, COUNT, NATURAL = From(0, above=True), From(1), From(0)


@dataclass(frozen=True)
class _Files:
    """What to learn from, and where everything goes"""

    out: Annotated[Path, "folder of the checkpoints, the metrics and the picture"] = Path(
        "outputs/train"
    )
    data: Annotated[DataName, "data set"] = "digits"
    data_dir: Annotated[Path, "where the files of the data set are"] = Path("data")
    size: Annotated[
        Size | None, "height of images, or as in 64x128 height and width of files", COUNT
    ] = None
    channels: Annotated[Literal[1, 3], "of image files: 3 for colours, 1 for grey"] = 3
    bits: Annotated[int, "bits of each value that are kept, as Glow keeps 5", From(1, end=9)] = 8
    background: Annotated[str, "colour behind what is transparent in files"] = "white"
    maps: Annotated[Maps, "what sources in pairs of files are; auto looks at them"] = "auto"
    broken: Annotated[Literal["refuse", "skip"], "files that cannot be read"] = "refuse"
    scale: Annotated[int | None, "make sources, of images at 1/scale of their size", From(2)] = None


@dataclass(frozen=True)
class _Flow:
    """The flow"""

    host: Annotated[Host, "library of the flow"] = "normflows"
    backbone: Annotated[Backbone, "kind of flow"] = "glow"
    levels: Annotated[int, "levels of the flow, each at half the resolution", COUNT] = 2
    depth: Annotated[int, "steps of the flow in a level", COUNT] = 4
    hidden: Annotated[int, "hidden channels of the couplings", COUNT] = 64
    context: Annotated[
        Context, "condition on the class, on the image at 1/4 of its size, or on its source"
    ] = "none"


@dataclass(frozen=True)
class _Attention:
    """Attention in every step of the flow"""

    attention: Annotated[
        str,
        f"none, {', '.join(ATTENTIONS)}, or several with commas between; auto: the last for digits "
        "and MNIST, itrans with --affine for other images",
    ] = "auto"
    position: Annotated[PositionName, "where in a step of the flow"] = "after_coupling"
    both_masks: Annotated[bool, "a second attention with the complementary mask"] = True
    context_in_attention: Annotated[bool, "the attention sees the condition as well"] = False
    mask: Annotated[MaskKind | None, "what passes as it is"] = None
    init: Annotated[Init | None, "imap, itrans: first values"] = None
    activation: Annotated[Activation | None, "imap, itrans: activation"] = None
    gain_bound: Annotated[float | None, "imap, itrans: bound of the gains", POSITIVE] = None
    axis: Annotated[Axis | None, "imap: what gets a scale"] = None
    heads: Annotated[int | None, "itrans, attention_coupling: heads", COUNT] = None
    patches: Annotated[
        Patches | None,
        "itrans, attention_coupling: patches along each axis, auto, or none: single positions",
        COUNT,
    ] = None
    affine: Annotated[bool, "itrans: also scales and shifts"] = False
    head_mode: Annotated[HeadMode | None, "itrans: what heads do together"] = None
    position_bias: Annotated[bool, "itrans: weights depend on the places as well"] = False
    value_mixing: Annotated[bool, "itrans: channels are mixed as well"] = False
    rank: Annotated[int | None, "itrans: weights of low rank", COUNT] = None
    width: Annotated[int | None, "attention_coupling: channels of its attention", COUNT] = None
    kernel: Annotated[int | None, "attention_coupling: size of its convolutions", COUNT] = None
    window: Annotated[int | None, "attention_coupling: edge of what is attended to", COUNT] = None
    scale_bound: Annotated[float | None, "attention_coupling: bound of log-scales", POSITIVE] = None
    shift_bound: Annotated[float | None, "attention_coupling: bound of its shifts", POSITIVE] = None


@dataclass(frozen=True)
class _Backbones:
    """Of some backbones only; without them each has its own"""

    scale_map: Annotated[ScaleMapName | None, "scale of affine couplings"] = None
    learned_priors: Annotated[bool, "glow: levels predict what they split off"] = False
    coupling_net: Annotated[CouplingNet | None, "glow: nets of the couplings"] = None
    prior: Annotated[Prior | None, "marflow: what predicts what a level splits off"] = None
    components: Annotated[int | None, "marflow: components of the mixtures", COUNT] = None
    blocks: Annotated[
        int | None, "marflow, --coupling-net attention: blocks of the nets", COUNT
    ] = None
    dropout: Annotated[
        float | None, "the same: dropout of the nets, in training only", From(0, end=1)
    ] = None
    rrdb_blocks: Annotated[int | None, "srflow: blocks of the encoder", COUNT] = None
    rrdb_channels: Annotated[int | None, "srflow: channels of the encoder", COUNT] = None
    rrdb_growth_channels: Annotated[int | None, "srflow: channels its dense blocks add", COUNT] = (
        None
    )
    splits: Annotated[Splits | None, "srflow: which levels split something off"] = None
    pretrain_steps: Annotated[
        int, "srflow: steps that train the encoder alone, before all", NATURAL
    ] = 0
    pretrain_lr: Annotated[float | None, "srflow: learning rate of these, else --lr", POSITIVE] = (
        None
    )
    freeze_encoder_until: Annotated[
        int, "srflow: steps without the encoder, after that", NATURAL
    ] = 0
    conditioning: Annotated[Conditioning | None, "full-glow: what sees the source"] = None
    trunk: Annotated[Trunk | None, "full-glow: nets between source and target"] = None
    source_attention: Annotated[bool, "full-glow: attention in the flow of the source"] = True


@dataclass(frozen=True)
class _Training:
    """Training"""

    steps: Annotated[int, "training steps of the flow", COUNT] = 2000
    batch: Annotated[int, "images in a step, over all processes", COUNT] = 64
    optimizer: Annotated[Optimizer, "optimiser"] = "adam"
    lr: Annotated[float, "learning rate at its highest", POSITIVE] = 1e-3
    warmup: Annotated[int, "steps over which the learning rate grows to it", NATURAL] = 100
    schedule: Annotated[Schedule, "learning rate after that"] = "cosine"
    clip: Annotated[float, "largest norm of the gradient of bits/dim; 0 for any", NATURAL] = 10.0
    ema: Annotated[float, "decay of the average of the weights; 0 for none", From(0, end=1)] = 0.999
    seed: Annotated[int, "seed of everything random", NATURAL] = 0


@dataclass(frozen=True)
class _Machine:
    """The machine"""

    device: Annotated[Device, "where to train"] = "auto"
    bf16: Annotated[bool, "train under bfloat16 autocast (GPU only)"] = False
    compile: Annotated[bool, "compile the model"] = False
    recompute: Annotated[bool, "less memory: the backward pass computes layers again"] = False
    workers: Annotated[
        int, "processes that read image files, for each training process", NATURAL
    ] = 0


@dataclass(frozen=True)
class _Reports:
    """What is written, and when"""

    log_every: Annotated[int, "steps between lines in metrics.jsonl", COUNT] = 10
    evaluate_every: Annotated[int, "steps between evaluations and pictures", COUNT] = 500
    checkpoint_every: Annotated[int, "steps between checkpoints", COUNT] = 500
    temperature: Annotated[float, "temperature of the samples in the picture", POSITIVE] = 1.0


# The first of the bases comes last in the record.
@dataclass(frozen=True)
class Options(_Reports, _Machine, _Training, _Backbones, _Attention, _Flow, _Files):
    """All of a run; the same options give the same numbers on a CPU."""

    def __post_init__(self) -> None:
        for name, (_, _, *limits) in hints().items():
            value = getattr(self, name)
            # Some may be words.
            if limits and isinstance(value, int | float):
                limits[0].check(name, value)

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

    def command(self) -> str:
        """What to type for the same run."""
        words = ["python", "examples/studies/train.py"]
        for name, value in self.given.items():
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(f"no_{name}"))
            else:
                words += [flag(name), str(value)]
        return shlex.join(words)


@cache
def hints() -> dict[str, tuple[Any, ...]]:
    """Type, help and limits of each option."""
    hints = get_type_hints(Options, include_extras=True)
    return {each.name: get_args(hints[each.name]) for each in fields(Options)}


def from_dict(stored: dict[str, Any]) -> Options:
    """The reverse of :meth:`Options.as_dict`; what is missing takes its default."""
    known = {each.name: each for each in fields(Options)}
    if unknown := stored.keys() - known.keys():
        raise UsageError(f"expected options of this version, found {', '.join(sorted(unknown))}")
    return Options(
        **{k: Path(v) if isinstance(known[k].default, Path) else v for k, v in stored.items()}
    )


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


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")
