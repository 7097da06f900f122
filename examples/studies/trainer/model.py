"""The flow of either host behind one set of names."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import torch
from nflows.flows import Flow
from nflows.transforms import CompositeTransform
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.backbones import architecture, attention, check_options
from trainer.options import Options, UsageError

# Both hosts call these two inside their 1x1 convolutions; their users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")

COARSE = 4
"""How much smaller the image is on which ``--context coarse`` conditions."""
Shape = tuple[int, int, int]


class Described(Protocol):
    """What a model has to know of a data set."""

    @property
    def image_shape(self) -> Shape: ...
    @property
    def source_shape(self) -> Shape | None: ...
    @property
    def levels(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def dims(self) -> int: ...
    @property
    def map_values(self) -> tuple[int, ...] | None: ...


@dataclass(frozen=True)
class DataInfo:
    """The same, without the data.

    Attributes:
        map_values: of sources, see :class:`trainer.images.DataSet`.
    """

    image_shape: Shape
    source_shape: Shape | None
    levels: int
    classes: int
    dims: int
    map_values: tuple[int, ...] | None = None

    @classmethod
    def of(cls, data: Described) -> "DataInfo":
        return cls(*(getattr(data, each.name) for each in fields(cls)))

    as_dict = asdict


class Model:
    """A flow with attention, and what training does with it.

    Attributes:
        flow: the model, of the host's own class.
    """

    def __init__(self, options: Options, data: Described) -> None:
        check_options(options)
        check_context(options, data)
        self.host = import_module(f"attnflow_plugin.{options.host}")
        self.samples_have_an_axis = options.host == "nflows" and options.context != "none"
        self.is_joint = options.backbone == "full-glow"
        build = getattr(self.host, f"build_{options.backbone.replace('-', '_')}")
        # The same seed is the same backbone, with any attention or none, so that runs can be
        # compared in pairs.
        self.flow: nn.Module = build(
            data.image_shape,
            levels=options.levels,
            steps=options.depth,
            hidden_channels=options.hidden,
            **architecture(options),
            **(_conditioning(options, data) if options.backbone == "glow" else {}),
            **_attention(options),
        )

    def prepare(self, x: Tensor, context: Tensor | None) -> None:
        """Data-dependent initialisation."""
        self.host.prepare(self.flow, x, context)

    def objective(self, flow: nn.Module) -> nn.Module:
        """What training minimises, as a module: data and context to nats for each image."""
        if self.is_joint:
            return self.host.JointNegativeLogLikelihood(flow)
        return self.likelihood(flow)

    def likelihood(self, flow: nn.Module) -> nn.Module:
        """Negative log-likelihood of the data given the context, in nats for each image."""
        return self.host.NegativeLogLikelihood(flow)

    def recompute(self) -> None:
        """Let the backward pass compute the layers of the flow again.

        Of each step in normflows, and of each layer in nflows, only what goes in is kept. Copies
        of the flow are to be made before.
        """
        for level in getattr(self.flow, "flows", ()):
            for step in level:
                step.inverse = _recomputed(step.inverse)
        for module in self.flow.modules():
            if isinstance(module, CompositeTransform):
                for layer in module._transforms:
                    layer.forward = _recomputed(layer.forward)

    @torch.no_grad()
    def sample(
        self, flow: nn.Module, count: int, context: Tensor | None, temperature: float
    ) -> Tensor:
        """Images, one for each context if there is one."""
        # nflows draws a number of samples for each context, and gives them an axis.
        number = 1 if self.samples_have_an_axis else count
        with evaluation_mode(flow):
            samples, _ = self.host.sample(flow, number, context=context, temperature=temperature)
        return samples.flatten(0, 1) if self.samples_have_an_axis else samples

    @torch.no_grad()
    def to_latent(self, flow: nn.Module, x: Tensor, context: Tensor | None) -> list[Tensor]:
        """Images to latents: a tensor for each level in normflows, one for all in nflows."""
        with evaluation_mode(flow):
            if isinstance(flow, Flow):
                return [flow.transform_to_noise(x, context)]
            latents, _ = flow.inverse_and_log_det(*_without_none(x, context))  # type: ignore[operator]
        return latents

    @torch.no_grad()
    def to_data(self, flow: nn.Module, latents: list[Tensor], context: Tensor | None) -> Tensor:
        """The reverse of :meth:`to_latent`."""
        with evaluation_mode(flow):
            if isinstance(flow, Flow):
                return flow._transform.inverse(*latents, flow._embedding_net(context))[0]
            images, _ = flow.forward_and_log_det(*_without_none(latents, context))  # type: ignore[operator]
        return images


def _without_none(*arguments: Any) -> list[Any]:
    """The flow of normflows without a context has no argument for one."""
    return [each for each in arguments if each is not None]


def _recomputed(method: Callable[..., Any]) -> Callable[..., Any]:
    return partial(checkpoint, method, use_reentrant=False)


def _attention(options: Options) -> dict[str, Any]:
    kinds, own = attention(options)
    if not kinds:
        return {}
    further = ("context_in_attention", "source_attention")
    return {
        "attention": kinds,
        "attention_options": own,
        "position": options.position,
        "both_masks": options.both_masks,
        **{name: value for name, value in options.given.items() if name in further},
    }


def _conditioning(options: Options, data: Described) -> dict[str, Any]:
    channels, height, width = data.image_shape
    if options.context == "label":
        return {"num_classes": data.classes, "context_shape": ()}
    if options.context == "coarse":
        return {"context_shape": (channels, height // COARSE, width // COARSE)}
    if options.context == "source":
        return {"context_shape": data.source_shape}
    return {}


def check_context(options: Options, data: Described) -> None:
    """Raise if the data set has not what the model shall be conditioned on."""
    context, (_, height, width) = options.context, data.image_shape
    if context == "source" and data.source_shape is None:
        raise UsageError(
            f"--context source: {options.data} has no sources; --scale makes them, of its images "
            "at a lower resolution"
        )
    if options.backbone == "full-glow" and data.source_shape != data.image_shape:
        raise UsageError(
            f"--backbone full-glow: expected sources of the shape of the images, "
            f"{data.image_shape}, found {data.source_shape}"
        )
    if context == "label" and not data.classes:
        raise UsageError("--context label: this data set has no labels")
    if context == "coarse" and (height % COARSE or width % COARSE):
        raise UsageError(
            f"--context coarse: expected a size divisible by {COARSE}, found {height}x{width}"
        )


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode
