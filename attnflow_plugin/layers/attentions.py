"""The kinds of attention: what is listed here has a name in everything that takes attention.

BoundedAttention has none: it takes the place of the others where events are on circles or in boxes.
"""

from collections.abc import Mapping

from attnflow_plugin.layers.attention_coupling import AttentionCoupling
from attnflow_plugin.layers.base import MaskedAttention
from attnflow_plugin.layers.bounded_attention import BoundedAttention
from attnflow_plugin.layers.imap import IMap
from attnflow_plugin.layers.itrans import ITrans

__all__ = ["AttentionCoupling", "BoundedAttention", "IMap", "ITrans"]

#: By name, in the order in which they are shown.
ATTENTIONS: Mapping[str, type[MaskedAttention]] = {
    kind.attention_name: kind for kind in (IMap, ITrans, AttentionCoupling)
}
