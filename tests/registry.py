"""One list of named layers that drives every property test.

A new layer or option is one line here; its exactness, numerics, serialisation and host classes are
then tested by what is already written.
"""

import importlib
from typing import NamedTuple

from torch import nn

FLAVOURS = {
    "core": "attnflow_plugin",
    "normflows": "attnflow_plugin.normflows",
    "nflows": "attnflow_plugin.nflows",
}


class Case(NamedTuple):
    class_name: str
    shape: tuple[int, ...]
    options: dict

    def build(self, flavour: str = "core") -> nn.Module:
        layer_class = getattr(importlib.import_module(FLAVOURS[flavour]), self.class_name)
        return layer_class(self.shape[0], **self.options)


def imap(*shape: int, **options) -> Case:
    return Case("IMap", shape, options)


def itrans(*shape: int, **options) -> Case:
    return Case("ITrans", shape, options)


def coupling(*shape: int, **options) -> Case:
    return Case("AttentionCoupling", shape, options)


def bounded(*shape: int, **options) -> Case:
    return Case("BoundedAttention", shape, options)


#: An interval that normal data stay in.
WIDE = (-9.0, 9.0)
#: What ITrans can do beyond the paper.
ALL = {"position_bias": True, "value_mixing": True, "affine": True}

CASES: dict[str, Case] = {
    # Event shapes
    "imap-vector": imap(6),
    "imap-odd-vector": imap(5),
    "imap-sequence": imap(3, 7),
    "imap-image": imap(3, 4, 4),
    "imap-even-channels": imap(4, 3, 3),
    "imap-one-channel": imap(1, 4, 4),
    "imap-non-square": imap(3, 2, 5),
    "imap-volume": imap(2, 2, 3, 2),
    # Options
    "imap-flip": imap(3, 4, 3, flip=True),
    "imap-channel-axis": imap(3, 4, 4, axis="channel"),
    "imap-channel-axis-vector": imap(6, axis="channel"),
    "imap-sigmoid": imap(3, 4, 4, activation="sigmoid"),
    "imap-softmax": imap(3, 4, 4, activation="softmax"),
    "imap-softmax-channel-axis": imap(4, 3, 3, activation="softmax", axis="channel"),
    "imap-spatial-mask": imap(3, 4, 4, mask="spatial"),
    "imap-channel-mask": imap(3, 4, 4, mask="channel"),
    "imap-random-mask": imap(3, 4, 4, mask="random"),
    "imap-gain-bound": imap(3, 4, 4, gain_bound=0.2),
    "imap-sigmoid-gain-bound": imap(3, 4, 4, activation="sigmoid", gain_bound=0.2),
    "imap-softmax-gain-bound": imap(3, 4, 4, activation="softmax", gain_bound=0.2),
    "imap-paper": imap(3, 4, 4, init="paper"),
    "imap-paper-softmax": imap(3, 4, 4, init="paper", activation="softmax"),
    "imap-paper-channel-axis": imap(4, 3, 3, init="paper", axis="channel"),
    # Event shapes
    "itrans-vector": itrans(6),
    "itrans-odd-vector": itrans(5, patches=5, activation="sigmoid"),
    "itrans-sequence": itrans(3, 8, patches=4),
    "itrans-image": itrans(3, 4, 4),
    "itrans-odd-patch-edge": itrans(2, 6, 6),
    "itrans-one-odd-edge": itrans(3, 6, 4),
    "itrans-single-positions": itrans(2, 3, 3, patches=3),
    "itrans-one-channel": itrans(1, 4, 4),
    "itrans-more-patches-of-the-longer-edge": itrans(2, 4, 8),
    "itrans-unequal-patches": itrans(3, 6, 4, patches=(3, 2)),
    "itrans-volume": itrans(2, 2, 2, 4),
    # Options
    "itrans-flip": itrans(2, 6, 2, flip=True),
    "itrans-sigmoid": itrans(3, 4, 4, activation="sigmoid"),
    "itrans-sum-heads": itrans(3, 4, 4, heads=3),
    "itrans-concat-heads": itrans(4, 4, 4, heads=2, head_mode="concat"),
    "itrans-uneven-concat-heads": itrans(3, 4, 4, heads=5, head_mode="concat"),
    "itrans-concat-odd-edge": itrans(3, 6, 2, heads=2, head_mode="concat"),
    "itrans-spatial-mask": itrans(3, 4, 4, mask="spatial"),
    "itrans-spatial-mask-odd-edge": itrans(2, 6, 2, mask="spatial"),
    "itrans-channel-mask": itrans(3, 4, 4, mask="channel"),
    "itrans-channel-mask-across-runs": itrans(6, patches=3, mask="channel"),
    "itrans-random-mask": itrans(2, 4, 4, mask="random"),
    "itrans-random-mask-concat": itrans(2, 4, 4, mask="random", heads=3, head_mode="concat"),
    "itrans-gain-bound": itrans(3, 4, 4, heads=2, gain_bound=0.1),
    "itrans-position-bias": itrans(3, 4, 4, position_bias=True),
    "itrans-position-bias-vector": itrans(6, patches=3, position_bias=True),
    "itrans-every-position": itrans(2, 4, 3, patches=None),
    "itrans-every-coordinate": itrans(6, patches=None),
    "itrans-value-mixing": itrans(3, 4, 4, value_mixing=True),
    "itrans-value-mixing-vector": itrans(6, value_mixing=True),
    "itrans-value-mixing-odd-edge": itrans(3, 6, 2, value_mixing=True),
    "itrans-value-mixing-spatial-mask": itrans(3, 4, 4, value_mixing=True, mask="spatial"),
    "itrans-value-mixing-channel-mask": itrans(5, 2, 2, value_mixing=True, mask="channel"),
    "itrans-affine": itrans(3, 4, 4, affine=True, heads=2),
    "itrans-affine-vector": itrans(6, affine=True),
    "itrans-affine-random-mask": itrans(2, 4, 4, affine=True, mask="random"),
    "itrans-affine-spatial-mask": itrans(2, 3, 4, affine=True, mask="spatial", patches=(3, 2)),
    "itrans-all-options": itrans(3, 4, 3, patches=None, heads=2, **ALL),
    "itrans-all-options-vector": itrans(6, patches=3, flip=True, **ALL),
    "itrans-all-options-concat": itrans(3, 6, 2, heads=2, head_mode="concat", flip=True, **ALL),
    "itrans-all-options-volume": itrans(2, 2, 2, 4, activation="sigmoid", **ALL),
    "itrans-all-options-paper": itrans(3, 4, 4, init="paper", **ALL),
    "itrans-rank": itrans(3, 4, 4, rank=2),
    "itrans-rank-vector": itrans(12, patches=3, rank=2, position_bias=True),
    "itrans-rank-odd-vector": itrans(9, patches=3, rank=2),
    "itrans-rank-volume": itrans(2, 2, 2, 4, rank=2),
    "itrans-rank-odd-edge": itrans(3, 6, 2, rank=2, position_bias=True),
    "itrans-rank-every-position": itrans(2, 4, 3, patches=None, rank=3, flip=True),
    "itrans-rank-spatial-mask": itrans(2, 6, 4, mask="spatial", rank=2),
    "itrans-rank-channel-mask": itrans(3, 4, 4, mask="channel", rank=2),
    "itrans-rank-across-runs": itrans(10, patches=5, mask="channel", rank=2, position_bias=True),
    "itrans-rank-sum-heads": itrans(3, 6, 6, heads=3, rank=2),
    "itrans-rank-concat-heads": itrans(3, 6, 2, heads=2, head_mode="concat", rank=2),
    "itrans-rank-above-the-tokens": itrans(3, 4, 4, rank=6),
    "itrans-rank-all-options": itrans(3, 4, 3, patches=None, heads=2, rank=2, **ALL),
    "itrans-paper": itrans(3, 4, 4, init="paper"),
    "itrans-paper-sigmoid": itrans(3, 4, 4, init="paper", activation="sigmoid"),
    "itrans-paper-five-heads": itrans(3, 4, 4, init="paper", heads=5),
    "itrans-paper-odd-edge": itrans(2, 6, 6, init="paper"),
    # Event shapes
    "coupling-vector": coupling(6),
    "coupling-odd-vector": coupling(5),
    "coupling-sequence": coupling(3, 7),
    "coupling-image": coupling(3, 4, 4),
    "coupling-one-channel": coupling(1, 4, 4),
    "coupling-non-square": coupling(2, 3, 5),
    "coupling-volume": coupling(2, 2, 3, 2),
    # Options
    "coupling-flip": coupling(3, 4, 3, flip=True),
    "coupling-patches": coupling(3, 4, 4, patches=2),
    "coupling-unequal-patches": coupling(2, 6, 2, patches=(3, 1)),
    "coupling-patches-of-a-vector": coupling(6, patches=3),
    "coupling-windows": coupling(2, 4, 4, window=2),
    "coupling-windows-that-do-not-divide": coupling(2, 5, 3, window=2),
    "coupling-shifted-windows": coupling(2, 4, 4, window=2, flip=True),
    "coupling-shifted-windows-that-do-not-divide": coupling(2, 5, 3, window=(2, 3), flip=True),
    "coupling-windows-of-patches": coupling(2, 8, 4, patches=(4, 2), window=(3, 2), flip=True),
    "coupling-windows-of-a-vector": coupling(6, window=3),
    "coupling-neighbours": coupling(3, 4, 4, kernel=(3, 3)),
    "coupling-neighbours-in-a-volume": coupling(1, 3, 2, 2, kernel=(3, 1, 3)),
    "coupling-one-narrow-head": coupling(3, 4, 4, heads=1, width=1),
    "coupling-scale-bound": coupling(3, 4, 4, scale_bound=0.5),
    "coupling-spatial-mask": coupling(3, 4, 4, mask="spatial"),
    "coupling-channel-mask": coupling(3, 4, 4, mask="channel"),
    "coupling-random-mask": coupling(3, 4, 4, mask="random"),
    "coupling-set": coupling(4, 5, mask="channel", positions=False),
    "coupling-periodic": coupling(2, 5, 4, positions="periodic"),
    "coupling-sign": coupling(3, 4, 4, odd=True),
    "coupling-sign-vector": coupling(6, odd=True),
    "coupling-sign-windows": coupling(2, 5, 3, window=2, odd=True, flip=True),
    "coupling-sign-set": coupling(3, 4, mask="channel", positions=False, odd=True, flip=True),
    # Domains
    "bounded-vector-on-circles": bounded(6, circles=WIDE),
    "bounded-odd-vector-of-all-kinds": bounded(5, circles={0: WIDE, 3: WIDE}, boxes={1: WIDE}),
    "bounded-sequence-in-boxes": bounded(3, 7, boxes=WIDE),
    "bounded-image-of-all-kinds": bounded(3, 4, 4, circles={1: WIDE}, boxes={2: WIDE}),
    "bounded-set-on-circles": bounded(3, 4, circles=WIDE, mask="channel", positions=False),
    "bounded-volume-on-circles": bounded(2, 2, 3, 2, circles=WIDE, flip=True),
}

PAPER = {name for name, case in CASES.items() if case.options.get("init") == "paper"}

# With a net inside that may use the lower precision of autocast.
NETS = {name for name, case in CASES.items() if case.class_name == "AttentionCoupling"}
