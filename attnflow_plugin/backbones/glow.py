"""Glow: images, optionally with classes or a context, optionally with attention."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from attnflow_plugin.backbones.level_attention import attended, options_of_layers
from attnflow_plugin.backbones.multiscale import (
    Level,
    LevelAttention,
    MultiscalePlan,
    Recipe,
    StepPosition,
)
from attnflow_plugin.backbones.nets import ConvNet, GatedAttentionNet
from attnflow_plugin.errors import OptionError, ShapeError, did_you_mean, one_of, positive_int
from attnflow_plugin.hosts import Host, Model
from attnflow_plugin.layers.scales import ScaleMapName

NetFactory = Callable[[int, int], nn.Module]
CouplingNet = Literal["conv", "attention"] | NetFactory

#: Length of the vector that stands for a class label.
LABEL_CHANNELS = 16
# Arguments of the nets that the builder sets itself.
_GIVEN_TO_NETS = ("inputs", "outputs", "hidden_channels")


@dataclass(frozen=True)
class GlowRecipe(Recipe):
    """Affine couplings, conditional or not.

    Attributes:
        make_net: the coupling nets, from inputs and outputs.
        scale_map: scale of couplings and injectors.
        context_channels: channels of the context that enters couplings, zero for none.
        learned_priors: the kept half of a level shifts and scales the factored half.
    """

    make_net: NetFactory
    scale_map: ScaleMapName = "bounded"
    context_channels: int = 0
    learned_priors: bool = False

    def coupling(self, host: Host, level: Level, step: int) -> list[nn.Module]:
        """The affine coupling, with an injector before it if there is a context."""
        coupling = self._affine(host, level)
        if not self.context_channels:
            return [coupling]
        injector = host.layers.AffineInjector(
            level.event[0],
            self.make_net,
            context_channels=self.context_channels,
            scale_map=self.scale_map,
        )
        return [injector, coupling]

    def prior(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """A coupling in which the kept half shifts and scales the other."""
        if not self.learned_priors or level.kept is None:
            return []
        return [self._affine(host, level, flip=not keeps_first)]

    def _affine(self, host: Host, level: Level, *, flip: bool = False) -> nn.Module:
        return host.layers.AffineCoupling(
            level.event[0],
            self.make_net,
            context_channels=self.context_channels,
            flip=flip,
            scale_map=self.scale_map,
        )


def build_glow(  # noqa: D417
    host: Host[Model],
    image_shape: Sequence[int],
    *,
    levels: int,
    steps: int,
    hidden_channels: int,
    attention: LevelAttention | None = None,
    position: StepPosition | Sequence[StepPosition] = "after_coupling",
    both_masks: bool = True,
    attention_options: Mapping[str, object] | None = None,
    coupling_net: CouplingNet = "conv",
    coupling_net_options: Mapping[str, object] | None = None,
    scale_map: ScaleMapName = "bounded",
    learned_priors: bool = False,
    num_classes: int | None = None,
    context_shape: Sequence[int] | None = None,
    context_in_attention: bool = False,
    **layer_options: object,
) -> Model:
    """Build a Glow with attention in its steps.

    In normflows it is a ``MultiscaleFlow``, or a `ConditionalMultiscaleFlow` with
    ``context_shape``; in nflows it is a ``Flow`` over a ``MultiscaleCompositeTransform``. A step is
    the host's ``ActNorm``, its 1x1 convolution and an `AffineCoupling`, whose scale is bounded on
    both sides by default. Under autocast only the nets use the lower precision. Call ``prepare``
    with a batch of data before training.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** levels``.
        levels: number of levels; level 0 is the one next to the data.
        steps: steps in each level.
        hidden_channels: channels of the coupling nets.
        attention: as in ``insert_attention``, or a mapping from levels to that.
        position: where in a step the attention goes, one or several.
        both_masks: two layers with complementary masks at each position.
        attention_options: options of the attention layers as a mapping, instead of one by one.
        coupling_net: ``"conv"``, the net of Glow; ``"attention"``, a `GatedAttentionNet`; or a
            function from input and output channels to a net.
        coupling_net_options: further options of that net, such as ``blocks`` and ``dropout``.
        scale_map: scale of the couplings, ``"bounded"``, or ``"sigmoid"``, ``"sigmoid_inv"``,
            ``"exp"`` as in the hosts.
        learned_priors: the half that a level passes on shifts and scales the half it factors out.
        num_classes: number of classes. Without ``context_shape`` every class has its own base
            distribution, and labels are passed as ``y`` in normflows, as ``context`` in nflows.
        context_shape: ``(K,)`` for a vector, ``(K, H', W')`` for a map of any size, or ``()`` with
            ``num_classes`` for a label. The context enters affine injectors and couplings at every
            level.
        context_in_attention: the attention weights also depend on the context.
        **layer_options: options of the attention layers, as in ``insert_attention``.

    Returns:
        The model, in training mode.

    Raises:
        OptionError: an option is unknown, or options do not go together.
        ShapeError: the size is not divisible by the levels.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    """
    name = "build_glow"
    if num_classes is not None:
        num_classes = positive_int(name, "num_classes", num_classes)
    context_channels = _context_channels(name, context_shape, num_classes)
    if context_in_attention and not context_channels:
        raise OptionError(f"{name}: expected context_shape with context_in_attention, found none")
    options = options_of_layers(build_glow, attention, attention_options, layer_options)
    if context_in_attention:
        options["context_channels"] = context_channels
    make_net = _coupling_net(name, coupling_net, hidden_channels, coupling_net_options or {})
    plan = MultiscalePlan(
        name,
        image_shape,
        levels,
        steps,
        GlowRecipe(make_net, scale_map, context_channels, learned_priors),
        learned_base=True,
        num_classes=None if context_channels else num_classes,
    )
    conditional = bool(context_channels)
    plan = attended(host, plan, attention, position, both_masks, options, conditional=conditional)
    if not context_channels:
        return host.assemble(plan)
    if num_classes is None:
        return host.assemble(plan, nn.Identity())
    return host.assemble(plan, nn.Embedding(num_classes, context_channels))


def _coupling_net(
    owner: str, net: CouplingNet, hidden_channels: int, options: Mapping[str, object]
) -> NetFactory:
    """The function that makes the coupling nets of a model."""
    hidden_channels = positive_int(owner, "hidden_channels", hidden_channels)
    if isinstance(net, nn.Module):
        raise OptionError(
            f"{owner}: expected coupling_net to make a net from input and output channels, found "
            f"one that is already made, {type(net).__name__}; give its class, or a function"
        )
    if callable(net):
        return partial(net, **options)
    nets: dict[str, Callable[..., nn.Module]] = {"conv": ConvNet, "attention": GatedAttentionNet}
    chosen = nets[one_of(owner, "coupling_net", net, nets)]
    known = [name for name in inspect.signature(chosen).parameters if name not in _GIVEN_TO_NETS]
    unknown = set(options).difference(known)
    if unknown:
        raise OptionError(
            f"{owner}: the coupling net {net!r} has no options {sorted(unknown)}"
            f"; it has {', '.join(known) or 'none'}{did_you_mean(unknown, known)}"
        )
    return partial(chosen, hidden_channels=hidden_channels, **options)


def _context_channels(
    name: str, context_shape: Sequence[int] | None, num_classes: int | None
) -> int:
    if context_shape is None:
        return 0
    if not isinstance(context_shape, Sequence) or len(context_shape) not in (0, 1, 3):
        raise ShapeError(
            f"{name}: expected context_shape (), (K,) or (K, H, W), found {context_shape!r}"
        )
    if (len(context_shape) == 0) != (num_classes is not None):
        raise OptionError(
            f"{name}: expected context_shape=() and num_classes together, for labels as context, "
            f"found context_shape={tuple(context_shape)} and num_classes={num_classes}"
        )
    if not context_shape:
        return LABEL_CHANNELS
    return positive_int(name, "the channels of context_shape", context_shape[0])
