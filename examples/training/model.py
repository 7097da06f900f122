"""The flow of either host behind one set of names."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from training.data import DataSet
from training.feed import COARSE
from training.options import Attention, Options

# Both hosts call these two inside their 1x1 convolutions; their users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")


class Glow:
    """A Glow with attention, and what training does with it.

    Attributes:
        flow: the model, of the host's own class.
    """

    def __init__(self, options: Options, data: DataSet) -> None:
        self.host = import_module(f"attnflow_plugin.{options.host}")
        self.samples_have_an_axis = options.host == "nflows" and options.context != "none"
        self.flow: nn.Module = self.host.build_glow(
            data.image_shape,
            levels=options.levels,
            steps=options.depth,
            hidden_channels=options.hidden,
            attention=_attention(options.attention),
            attention_options={"activation": options.activation} if options.activation else None,
            position=options.position,
            both_masks=options.both_masks,
            learned_priors=options.learned_priors,
            **_conditioning(options, data),
        )

    def prepare(self, x: Tensor, context: Tensor | None) -> None:
        """Data-dependent initialisation."""
        self.host.prepare(self.flow, x, context)

    def objective(self, flow: nn.Module) -> nn.Module:
        """What training minimises, as a module: data and context to nats for each image."""
        return self.host.NegativeLogLikelihood(flow)

    def sample(
        self, flow: nn.Module, count: int, context: Tensor | None, temperature: float
    ) -> Tensor:
        """Images, one for each context if there is one."""
        draw = self.host.sample
        if self.samples_have_an_axis:
            # nflows draws a number of samples for each context, and gives them an axis.
            return draw(flow, 1, context=context, temperature=temperature)[0].flatten(0, 1)
        return draw(flow, count, context=context, temperature=temperature)[0]


def _attention(name: Attention) -> Sequence[str] | None:
    kinds = {"none": None, "imap": ["imap"], "itrans": ["itrans"], "both": ["imap", "itrans"]}
    return kinds[name]


def _conditioning(options: Options, data: DataSet) -> dict[str, Any]:
    channels, height, width = data.image_shape
    if options.context == "label":
        return {"num_classes": data.classes, "context_shape": ()}
    if options.context == "coarse":
        return {"context_shape": (channels, height // COARSE, width // COARSE)}
    return {}
