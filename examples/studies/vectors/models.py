"""Flows of both hosts as these ship them, and the arms: what is put into them or done to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import nflows.flows
import nflows.nn.nets
import nflows.transforms as nt
import normflows as nf
import torch
from harness import PLAIN, count_parameters, seeded
from nflows.distributions import StandardNormal
from torch import Tensor, nn

import attnflow_plugin.nflows
import attnflow_plugin.normflows
from attnflow_plugin.nflows import AttentionCoupling
from vectors.data import Event, Rows

Model = nn.Module
Net = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Size:
    """Layers of a flow and hidden units of its nets."""

    layers: int = 4
    hidden: int = 32


PLAIN_SIZE = Size()


# Backbones. Affine layers of nflows only shrink as they start, so that deep flows need ActNorm.


class TransformerNet(nn.Module):
    """The net of a coupling that sees its inputs, and the context, as tokens of a transformer."""

    def __init__(self, inputs: int, outputs: int, contexts: int, width: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, width))
        self.position = nn.Parameter(torch.randn(inputs, width))
        self.context = nn.Linear(contexts, width) if contexts else None
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.output = nn.Linear(width * (inputs + bool(contexts)), outputs)
        nn.init.zeros_(self.output.weight)
        self.hidden_features = width  # By which splines of nflows scale what comes out.

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = inputs[..., None] * self.weight + self.position
        if self.context is not None:
            tokens = torch.cat([tokens, self.context(context)[:, None]], 1)
        return self.output(self.block(tokens).flatten(1))


def _net(event: Event, size: Size, transformer: bool) -> Net:
    if transformer:
        return partial(TransformerNet, contexts=event.contexts)
    return partial(
        nflows.nn.nets.ResidualNet,
        hidden_features=size.hidden,
        context_features=event.contexts or None,
        num_blocks=1,
    )


def _alternating(dims: int, flip: int) -> Tensor:
    return (torch.arange(dims) + flip) % 2


def nflows_realnvp(event: Event, size: Size, transformer: bool) -> Model:
    net = _net(event, size, transformer)
    layers: list[nn.Module] = []
    for k in range(size.layers):
        coupling = nt.AffineCouplingTransform(_alternating(event.dims, k), net)
        layers += [coupling, nt.ActNorm(event.dims)]
    return _nflows(event, layers)


def nflows_splines(event: Event, size: Size, transformer: bool) -> Model:
    net = _net(event, size, transformer)
    make = partial(
        nt.PiecewiseRationalQuadraticCouplingTransform,
        transform_net_create_fn=net,
        num_bins=8,
        tails="linear",
        tail_bound=4.0,
    )
    return _nflows(event, [make(_alternating(event.dims, k)) for k in range(size.layers)])


def nflows_maf(event: Event, size: Size, transformer: bool) -> Model:
    layers: list[nn.Module] = []
    for _ in range(size.layers):
        made = nt.MaskedAffineAutoregressiveTransform(
            event.dims, size.hidden, event.contexts or None, num_blocks=1
        )
        layers += [made, nt.ActNorm(event.dims), nt.ReversePermutation(event.dims)]
    return _nflows(event, layers)


def _nflows(event: Event, layers: list[nn.Module]) -> Model:
    return nflows.flows.Flow(nt.CompositeTransform(layers), StandardNormal([event.dims]))


def normflows_realnvp(event: Event, size: Size, transformer: bool) -> Model:
    """Without contexts, which this layer has no place for."""
    flows = []
    for k in range(size.layers):
        edges = [event.dims, size.hidden, size.hidden, event.dims]
        shift, scale = (nf.nets.MLP(edges, init_zeros=True) for _ in range(2))
        mask = _alternating(event.dims, k).float()
        flows.append(nf.flows.MaskedAffineFlow(mask, shift, scale))
    return _normflows(event, flows)


def normflows_splines(event: Event, size: Size, transformer: bool) -> Model:
    make = partial(
        nf.flows.CoupledRationalQuadraticSpline,
        event.dims,
        1,
        size.hidden,
        num_context_channels=event.contexts or None,
        tail_bound=4.0,
    )
    return _normflows(event, [make(reverse_mask=bool(k % 2)) for k in range(size.layers)])


def _normflows(event: Event, flows: list[nn.Module]) -> Model:
    base = nf.distributions.DiagGaussian(event.dims, trainable=False)
    kind = nf.ConditionalNormalizingFlow if event.contexts else nf.NormalizingFlow
    return kind(base, flows)


@dataclass(frozen=True)
class Backbone:
    """A flow as its host ships it.

    Attributes:
        host: the library.
        build: makes it, with a transformer as the net of its couplings if asked for.
        nets_to_choose: whether the host lets a user give that net.
    """

    host: Literal["normflows", "nflows"]
    build: Callable[[Event, Size, bool], Model]
    nets_to_choose: bool = False


BACKBONES = {
    "RealNVP (nflows)": Backbone("nflows", nflows_realnvp, nets_to_choose=True),
    "RealNVP (normflows)": Backbone("normflows", normflows_realnvp),
    "MAF (nflows)": Backbone("nflows", nflows_maf),
    "splines (nflows)": Backbone("nflows", nflows_splines, nets_to_choose=True),
    "splines (normflows)": Backbone("normflows", normflows_splines),
}


def log_prob(model: Model, rows: Rows) -> Tensor:
    """The same call in both hosts."""
    given = () if rows.context is None else (rows.context,)
    return model.log_prob(rows.x, *given)


def draw(model: Model, context: Tensor, rows: int) -> Tensor:
    """Samples for one context ``(1, K)``."""
    if isinstance(model, nflows.flows.Flow):
        return model.sample(rows, context=context)[0]
    return model.sample(rows, context=context.expand(rows, -1))[0]


# Arms.


class InShape(nt.Transform):
    """A layer for sets or sequences, inside of a flow of vectors."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, log_det = self.layer(inputs.unflatten(1, self.shape), context)
        return outputs.flatten(1), log_det

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, log_det = self.layer.inverse(inputs.unflatten(1, self.shape), context)
        return outputs.flatten(1), log_det


@dataclass(frozen=True)
class Arm:
    """A flow that differs from the plain one in one respect.

    Attributes:
        attention: what insert_attention puts behind every coupling or autoregressive layer.
        options: for the layers.
        in_shape: attention for events as sets or sequences instead of vectors.
        like: "parameters" or "time" that it has in common with the arm of REFERENCE.
        wider: by its hidden units, else by its layers.
        transformer: as the net of the couplings.
    """

    attention: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    in_shape: bool = False
    like: Literal["parameters", "time"] | None = None
    wider: bool = False
    transformer: bool = False

    def fits(self, backbone: Backbone, event: Event) -> bool:
        if self.transformer:
            return backbone.nets_to_choose
        return not self.in_shape or (bool(event.shape) and backbone.host == "nflows")


REFERENCE = "coupling"
"""The arm whose parameters and time the controls have."""
# That of a single layer. What eight layers share by default is half of it.
_BOUND = {"scale_bound": 2.0}

ARMS = {
    PLAIN: Arm(),
    "imap": Arm("imap"),
    "imap, axis=channel": Arm("imap", {"axis": "channel"}),
    "itrans": Arm("itrans"),
    "itrans, affine": Arm("itrans", {"affine": True}),
    REFERENCE: Arm("coupling", _BOUND),
    "coupling, in shape": Arm(options=_BOUND, in_shape=True),
    "deeper, as many parameters": Arm(like="parameters"),
    "wider, as many parameters": Arm(like="parameters", wider=True),
    "deeper, as much time": Arm(like="time"),
    "transformer as net": Arm(transformer=True),
}


def make(backbone: str, arm: Arm, event: Event, size: Size, seed: int) -> Model:
    """The flow of an arm; those with attention start as the plain one of the seed."""
    kind = BACKBONES[backbone]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = kind.build(event, size, arm.transformer)
        if arm.attention or arm.in_shape:
            _insert(model, kind, arm, event)
    return model


def _insert(model: Model, kind: Backbone, arm: Arm, event: Event) -> None:
    random = seeded(0)
    x = torch.randn(16, event.dims, generator=random)
    context = torch.randn(16, event.contexts, generator=random) if event.contexts else None
    if arm.in_shape:
        layer = partial(_in_shape, event=event, **arm.options)
        attention: Any = [partial(layer, flip=flip) for flip in (False, True)]
        attnflow_plugin.nflows.insert_attention(model, attention, example=x, context=context)
        return
    hosts = {"nflows": attnflow_plugin.nflows, "normflows": attnflow_plugin.normflows}
    options = {**arm.options, "context_channels": event.contexts}
    hosts[kind.host].insert_attention(model, arm.attention, example=x, context=context, **options)


def _in_shape(channels: int, *, event: Event, **options: Any) -> nn.Module:
    """For several channels a set whose members are alike, for one channel a sequence."""
    sets = {"mask": "channel", "positions": False} if event.shape[0] > 1 else {}
    layer = AttentionCoupling(event.shape[0], context_channels=event.contexts, **sets, **options)
    return InShape(layer, event.shape)


@cache
def parameters(backbone: str, arm: str, event: Event, size: Size = PLAIN_SIZE) -> int:
    return count_parameters(make(backbone, ARMS[arm], event, size, 0))


def size_of(backbone: str, arm: str, event: Event, deep: int) -> Size:
    """How large a flow is: the plain size, or what has as much as the arm of REFERENCE.

    Args:
        backbone: its name.
        arm: its name.
        event: what it is for.
        deep: layers that take as much time.
    """
    size, like = PLAIN_SIZE, ARMS[arm].like
    if like == "time":
        return replace(size, layers=deep)
    if like == "parameters":
        while parameters(backbone, PLAIN, event, size) < parameters(backbone, REFERENCE, event):
            more = {"hidden": size.hidden + 2} if ARMS[arm].wider else {"layers": size.layers + 1}
            size = replace(size, **more)
    return size
