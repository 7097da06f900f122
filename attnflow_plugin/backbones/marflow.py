"""mARFlow: mixture couplings with gated attention nets, and an autoregressive prior per level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.backbones.level_attention import attended, options_of_layers
from attnflow_plugin.backbones.multiscale import (
    Level,
    LevelAttention,
    MultiscalePlan,
    Recipe,
    StepPosition,
)
from attnflow_plugin.backbones.nets import GatedAttentionNet, ZeroConv
from attnflow_plugin.errors import one_of, positive_int
from attnflow_plugin.hosts import Host, Model
from attnflow_plugin.insertion.choice import as_list

Prior = Literal["channel-autoregressive", "gaussian"]
PRIORS: tuple[Prior, ...] = ("channel-autoregressive", "gaussian")

#: Hidden channels of the prior's nets, at every size of the model.
PRIOR_CHANNELS = 32


@dataclass(frozen=True)
class MARFlowRecipe(Recipe):
    """Mixture couplings, and a prior for each level.

    Attributes:
        hidden_channels: channels of the coupling nets.
        blocks: blocks of the coupling nets.
        dropout: dropout of the coupling nets.
        components: components of the mixtures.
        prior_name: kind of prior.
    """

    hidden_channels: int
    blocks: int
    dropout: float
    components: int
    prior_name: Prior

    def coupling(self, host: Host, level: Level, step: int) -> list[nn.Module]:
        """The mixture coupling; the first half of the channels passes."""
        coupling = host.layers.MixtureLogisticCoupling(
            level.event[0],
            partial(
                GatedAttentionNet,
                hidden_channels=self.hidden_channels,
                blocks=self.blocks,
                dropout=self.dropout,
            ),
            components=self.components,
        )
        return [coupling]

    def prior(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """The prior of the factored half, given the kept half."""
        kept_channels = 0 if level.kept is None else level.kept[0]
        if self.prior_name == "gaussian":
            if not kept_channels:
                return []
            return [host.layers.AffineCoupling(level.event[0], ZeroConv, flip=not keeps_first)]
        prior = host.layers.ChannelAutoregression(
            level.event[0],
            partial(ChannelLSTM, hidden_channels=PRIOR_CHANNELS, **_kernel(level)),
            kept_channels=kept_channels,
            keeps_first=keeps_first,
        )
        return [prior]


def _kernel(level: Level) -> dict[str, int]:
    """Sizes of kernels, which cover about the same part of the image at every level."""
    if level.index == 0:
        return {"kernel": 5, "dilation": 2}
    return {"kernel": 5 if level.index == 1 else 3}


def build_marflow(  # noqa: D417
    host: Host[Model],
    image_shape: Sequence[int],
    *,
    levels: int,
    steps: int,
    hidden_channels: int,
    attention: LevelAttention | None = None,
    position: StepPosition | Sequence[StepPosition] = "after_coupling",
    both_masks: bool = True,
    heads: int = 5,
    attention_options: Mapping[str, object] | None = None,
    prior: Prior = "channel-autoregressive",
    components: int = 32,
    blocks: int = 10,
    dropout: float = 0.2,
    **layer_options: object,
) -> Model:
    """Build mARFlow, with attention in its steps.

    In normflows it is a ``MultiscaleFlow``, in nflows a ``Flow`` over a
    ``MultiscaleCompositeTransform``. A step is the host's ``ActNorm``, its 1x1 convolution and a
    `MixtureLogisticCoupling` whose net is a `GatedAttentionNet`. The prior of the half that a level
    factors out depends on the half that it keeps. Call ``prepare`` with a batch of data before
    training, and ``model.eval()`` before measuring likelihoods, since the coupling nets have
    dropout.

    The released model passes the second half and swaps the halves after each coupling. Here the
    first half passes, which is equivalent and saves a layer.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** levels``.
        levels: number of levels; level 0 is the one next to the data.
        steps: steps in each level.
        hidden_channels: channels of the coupling nets, divisible by four.
        attention: as in ``insert_attention``, or a mapping from levels to that.
        position: where in a step the attention goes, one or several.
        both_masks: two layers with complementary masks at each position.
        heads: attention heads of ``"itrans"``.
        attention_options: further options of the attention layers as a mapping, instead of one by
            one.
        prior: ``"channel-autoregressive"``: every channel given the channels before it, so that
            sampling takes one step of a net for each channel; or ``"gaussian"``: all channels at
            once, from a convolution of the kept half.
        components: logistic components of each mixture.
        blocks: blocks of each coupling net.
        dropout: dropout in the coupling nets, in training only.
        **layer_options: options of the attention layers, as in ``insert_attention``.

    Returns:
        The model, in training mode.

    Raises:
        OptionError: an option is unknown, or options do not go together.
        ShapeError: the size is not divisible by the levels.

    Reference:
        Bhattacharyya, Mahajan, Fritz, Schiele, Roth, *Normalizing Flows with Multi-Scale
        Autoregressive Priors*, CVPR 2020; Sukthanker, Huang, Kumar, Timofte, Van Gool, *Generative
        Flows with Invertible Attentions*, CVPR 2022, tables 2 and 3.
    """
    name = "build_marflow"
    one_of(name, "prior", prior, PRIORS)
    hidden_channels = positive_int(name, "hidden_channels", hidden_channels)
    components = positive_int(name, "components", components)
    blocks = positive_int(name, "blocks", blocks)
    options = options_of_layers(build_marflow, attention, attention_options, layer_options)
    if _has_heads(attention):
        options.setdefault("heads", positive_int(name, "heads", heads))
    recipe = MARFlowRecipe(hidden_channels, blocks, dropout, components, prior)
    plan = MultiscalePlan(name, image_shape, levels, steps, recipe)
    return host.assemble(attended(host, plan, attention, position, both_masks, options))


def _has_heads(attention: LevelAttention | None) -> bool:
    kinds = attention.values() if isinstance(attention, Mapping) else [attention]
    return any("itrans" in as_list(kind) for kind in kinds)
