"""The arms: what is put into a plain Glow, or done to it, in groups that are compared."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Any, Literal, get_args

from harness import PLAIN, count_parameters
from torch import Tensor, nn

from ablation.control_layers import (
    ConstantScales,
    ConvCoupling,
    PointwiseCoupling,
    StaticMixing,
    StudiedIMap,
)
from ablation.settings import HIDDEN
from attnflow_plugin.backbones import ConvNet, GatedAttentionNet
from attnflow_plugin.backbones.multiscale import StepPosition
from attnflow_plugin.layers.base import attention_layers
from attnflow_plugin.normflows import AttentionCoupling, ITrans, insert_attention

DEPTH = 4
POSITIONS = get_args(StepPosition)  # The paper counts them from 1.
KINDS: dict[str, Callable[..., nn.Module]] = {
    "imap": StudiedIMap,
    "itrans": ITrans,
    "coupling": partial(AttentionCoupling, shift_bound=math.inf),
    "attention-coupling": AttentionCoupling,
    "affine-itrans": partial(ITrans, affine=True),
    "scales": ConstantScales,
    "conv": ConvCoupling,
    "pointwise": PointwiseCoupling,
    "static": StaticMixing,
    "conv-narrow": partial(ConvCoupling, like=partial(ITrans, affine=True)),
}
# Kinds with the bounds of insert_attention.
AS_INSERTED = {"attention-coupling", "affine-itrans"}
# The scale of iMap that learns most here; the paper's is the sigmoid.
IMAP = {"activation": "exp"}
# The paper's number of patches.
ITRANS = {"patches": 2}


@dataclass(frozen=True)
class Arm:
    """A Glow that differs from the plain one in one respect.

    Attributes:
        layers: kinds of layers, from data to latent, with their options.
        at: where in every step they go, as the paper counts.
        both_masks: two of each kind with complementary masks; or one, with either mask in turns.
        depth: steps in a level.
        coupling_net: "conv"; "wide", with a quarter more hidden channels; or "attention" with
            about as many parameters.
    """

    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    at: tuple[int, ...] = (4,)
    both_masks: bool | Literal["in turns"] = True
    depth: int = DEPTH
    coupling_net: str = "conv"

    @property
    def as_inserted(self) -> bool:
        """Whether bounds are those that ``insert_attention`` chooses for all layers together.

        The others have bounds as if each layer were the only one, or none.
        """
        return not AS_INSERTED.isdisjoint(self.layers)

    @property
    def starts_as_plain(self) -> bool:
        """Whether it is the plain model of its seed before training."""
        as_in_the_paper = any(options.get("init") == "paper" for options in self.layers.values())
        return not as_in_the_paper and self.depth == DEPTH and self.coupling_net == "conv"

    def glow_options(self, hidden: int = HIDDEN) -> dict[str, Any]:
        """Options of train.py for the Glow itself, where the plain one has so many channels."""
        nets: dict[str, Any] = {}
        if self.coupling_net == "attention":
            nets = {"coupling_net": partial(attention_net, hidden=hidden)}
        if self.coupling_net == "wide":
            hidden += hidden // 4
        return {"attention": "none", "depth": self.depth, "hidden": hidden, **nets}

    def insert(self, flow: nn.Module, example: Tensor) -> None:
        """Put the layers into a plain Glow."""
        if not self.layers:
            return
        flips = {False: [[False]], True: [[False], [True]], "in turns": [[False, True]]}
        insert_attention(
            flow,
            [
                partial(
                    _layer,
                    kind=kind,
                    options=options,
                    flips=cycle(flip),
                    image_shape=example.shape[1:],
                )
                for kind, options in self.layers.items()
                for flip in flips[self.both_masks]
            ],
            example=example,
            position=[POSITIONS[number - 1] for number in self.at],
        )
        if not self.as_inserted:
            for layer in attention_layers([flow]):
                layer.share_bounds(1)

    def fits(self, size: int) -> bool:
        """Whether the first level of such images has so many patches, and windows divide it."""
        edge = size // 2
        patches = [options.get("patches") for options in self.layers.values()]
        windows = [options.get("window", edge) for options in self.layers.values()]
        return all(not isinstance(number, int) or number <= edge for number in patches) and not any(
            edge % window for window in windows
        )


def _layer(
    channels: int,
    *,
    kind: str,
    options: Mapping[str, Any],
    flips: Iterator[bool],
    image_shape: tuple[int, ...],
) -> nn.Module:
    if isinstance(options.get("patches"), int):
        # A level has twice the channels of the one before and half its edge.
        edge = 2 * image_shape[0] * image_shape[1] // channels
        fits = (n for n in range(options["patches"], edge) if edge % n == 0)
        options = {**options, "patches": next(fits, edge)}
    return KINDS[kind](channels, **options, flip=next(flips))


def attention_net(inputs: int, outputs: int, hidden: int = HIDDEN) -> nn.Module:
    """A block of attention as coupling net, with about as many parameters as Glow's own net."""
    goal = count_parameters(ConvNet(inputs, outputs, hidden))
    nets = [
        GatedAttentionNet(inputs, outputs, width, blocks=1, dropout=0.0)
        for width in range(4, hidden + 1, 4)
    ]
    return min(nets, key=lambda net: abs(count_parameters(net) - goal))


def _position() -> dict[str, Arm]:
    chosen = [(1,), (2,), (3,), (1, 4), (2, 4), (3, 4), (1, 2, 3, 4)]
    others = {f"imap-at-{'-'.join(map(str, at))}": Arm({"imap": IMAP}, at) for at in chosen}
    known = _kinds() | _stronger()
    usual = {name: known[name] for name in ("itrans", "itrans-affine-auto-patches", "coupling")}
    early = {f"{name}-at-1": replace(arm, at=(1,)) for name, arm in usual.items()}
    return {"imap": Arm({"imap": IMAP}), **others, **usual, **early}


def _heads() -> dict[str, Arm]:
    return {"itrans": Arm({"itrans": ITRANS})} | {
        f"itrans-{heads}-heads-{mode}": Arm(
            {"itrans": {**ITRANS, "heads": heads, "head_mode": mode}}
        )
        for heads in (3, 5, 7)
        for mode in ("sum", "concat")
    }


def _masks() -> dict[str, Arm]:
    arms = {}
    for kind, options in {"imap": IMAP, "itrans": ITRANS}.items():
        arms[kind] = Arm({kind: options})
        arms[f"{kind}-one-mask"] = Arm({kind: options}, both_masks=False)
        for mask in ("spatial", "channel", "random"):
            arms[f"{kind}-{mask}-mask"] = Arm({kind: {**options, "mask": mask}})
    return arms


def _maps() -> dict[str, Arm]:
    spatial = {
        f"imap-{activation}": Arm({"imap": {"activation": activation}})
        for activation in ("sigmoid", "softmax")
    }
    channel = {
        f"imap-channel-{activation}": Arm({"imap": {"activation": activation, "axis": "channel"}})
        for activation in ("exp", "sigmoid", "softmax")
    }
    return {"imap": Arm({"imap": IMAP}), **spatial, **channel}


def _patches() -> dict[str, Arm]:
    others = {f"itrans-{n}-patches": Arm({"itrans": {"patches": n}}) for n in (4, 8, "auto")}
    return {"itrans": Arm({"itrans": ITRANS}), **others}


def _kinds() -> dict[str, Arm]:
    return {
        "imap": Arm({"imap": IMAP}),
        "itrans": Arm({"itrans": ITRANS}),
        "imap-itrans": Arm({"imap": IMAP, "itrans": ITRANS}),
        "coupling": Arm({"coupling": {}}),
        "coupling-3x3": Arm({"coupling": {"kernel": (3, 3)}}),
        "coupling-imap": Arm({"coupling": {}, "imap": IMAP}),
    }


def _stronger() -> dict[str, Arm]:
    options: dict[str, dict[str, Any]] = {
        "bias": {"position_bias": True},
        "positions": {"patches": None},
        "positions-bias": {"patches": None, "position_bias": True},
        "values": {"value_mixing": True},
        "affine": {"affine": True},
        "affine-values": {"affine": True, "value_mixing": True},
        "low-rank": {"patches": None, "rank": 8},
        "together": {
            **{"patches": None, "position_bias": True, "heads": 4},
            **{"value_mixing": True, "affine": True},
        },
    }
    more_patches = {
        f"{name}-auto-patches": {**options[name], "patches": "auto"}
        for name in ("bias", "affine", "together")
    }
    each = {
        f"itrans-{name}": Arm({"itrans": {**ITRANS, **chosen}})
        for name, chosen in {**options, **more_patches}.items()
    }
    both = Arm({"imap": IMAP, "itrans": options["together"]})
    return {"itrans": Arm({"itrans": ITRANS}), **each, "imap-itrans-together": both}


def _init() -> dict[str, Arm]:
    sigmoid = {"activation": "sigmoid"}
    return {
        "imap-sigmoid": Arm({"imap": sigmoid}),
        "imap-paper": Arm({"imap": {**sigmoid, "init": "paper"}}),
        "itrans": Arm({"itrans": ITRANS}),
        "itrans-paper": Arm({"itrans": {**ITRANS, "init": "paper"}}),
    }


def _controls() -> dict[str, Arm]:
    deeper = {f"depth-{depth}": Arm(depth=depth) for depth in (5, 6, 8, 12, 16)}
    return {
        "scales": Arm({"scales": {}}),
        "conv": Arm({"conv": {}}),
        "conv-narrow": Arm({"conv-narrow": {}}),
        "pointwise": Arm({"pointwise": {}}),
        "static": Arm({"static": {}}),
        "static-affine": Arm({"static": {"affine": True}}),
        "attention-net": Arm(coupling_net="attention"),
        **deeper,
    }


def _real_size() -> dict[str, Arm]:
    """The few that are trained at a size where a run takes long."""
    known = _init() | _kinds() | _patches() | _stronger() | _controls()
    names = (
        *("imap-paper", "itrans-paper", "imap-sigmoid", "imap", "itrans", "itrans-auto-patches"),
        *("itrans-affine-auto-patches", "coupling"),
    )
    attention = {name: known[name] for name in names}
    windows = Arm({"coupling": {"window": 7}})
    attention["coupling-windows"] = windows
    attention["coupling-windows-in-turns"] = replace(windows, both_masks="in turns")
    for name, window in {"windows": 7, "windows-of-8": 8}.items():
        arm = Arm({"attention-coupling": {"window": window}})
        attention[f"coupling-{name}-as-inserted"] = arm
    twice = {"window": 7, "scale_bound": 1.0}
    attention["coupling-windows-twice-the-bounds"] = Arm({"attention-coupling": twice})
    attention["itrans-affine-as-inserted"] = Arm({"affine-itrans": {}})
    return {**attention, "wide": Arm(coupling_net="wide")} | {
        name: known[name] for name in ("depth-5", "depth-6", "depth-8")
    }


GROUPS: dict[str, dict[str, Arm]] = {
    "kinds": _kinds(),
    "controls": _controls(),
    "heads": _heads(),
    "masks": _masks(),
    "maps": _maps(),
    "patches": _patches(),
    "stronger": _stronger(),
    "position": _position(),
    "init": _init(),
}
REAL_SIZE = _real_size()
ARMS = {PLAIN: Arm()} | {name: arm for group in GROUPS.values() for name, arm in group.items()}
ARMS |= REAL_SIZE
# What a quick look takes; in depth, the two next to the plain model.
QUICK = (
    *(PLAIN, "imap", "itrans", "coupling", "coupling-imap"),
    *("scales", "conv", "depth-5", "depth-8"),
)
