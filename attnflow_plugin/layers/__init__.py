"""The invertible layers, for any host, written in density direction.

The kinds of attention are listed here; their names work wherever an attention can be chosen.
`BoundedAttention` has no name: it replaces the others where events lie on circles or in boxes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attnflow_plugin.layers.affine import AffineCoupling, AffineInjector, TopPrior
from attnflow_plugin.layers.attention_coupling import AttentionCoupling
from attnflow_plugin.layers.base import InvertibleLayer, MaskedAttention
from attnflow_plugin.layers.bounded_attention import BoundedAttention
from attnflow_plugin.layers.channel_autoregression import ChannelAutoregression
from attnflow_plugin.layers.conditional import ConditionalActNorm, ConditionalConv1x1
from attnflow_plugin.layers.imap import IMap
from attnflow_plugin.layers.itrans import ITrans
from attnflow_plugin.layers.mixture_coupling import MixtureLogisticCoupling

__all__ = [
    "AffineCoupling",
    "AffineInjector",
    "AttentionCoupling",
    "BoundedAttention",
    "ChannelAutoregression",
    "ConditionalActNorm",
    "ConditionalConv1x1",
    "IMap",
    "ITrans",
    "InvertibleLayer",
    "MixtureLogisticCoupling",
    "TopPrior",
]

#: By name, in the order in which they are shown.
ATTENTIONS: Mapping[str, type[MaskedAttention]] = {
    kind.attention_name: kind for kind in (IMap, ITrans, AttentionCoupling)
}
#: Short names for some of them.
ALIASES: Mapping[str, str] = {"coupling": AttentionCoupling.attention_name}
#: The name that stands for the recommendation for the shape of the events.
AUTO = "auto"

_IMAGE, _SEQUENCE = 2, 1
_MOST_TOKENS = 256


class Recommendation(NamedTuple):
    """An attention by its name, with the options that differ from its defaults."""

    name: str
    options: Mapping[str, object]


def recommended(data: Sequence[int], event: Sequence[int]) -> Recommendation:
    """The attention that "auto" stands for; docs/choosing.md has the measurements.

    Args:
        data: shape ``(C, *S)`` of the model's data.
        event: shape ``(C, *S)`` of the events where the layer goes.
    """
    axes, tokens = len(event) - 1, math.prod(event[1:])
    if axes >= _IMAGE and data[0] > 1:
        return Recommendation(ITrans.attention_name, {"affine": True})
    window = {} if tokens <= _MOST_TOKENS else {"window": 64 if axes == _SEQUENCE else 8}
    return Recommendation(AttentionCoupling.attention_name, window)
