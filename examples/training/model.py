"""The flow of either host behind one set of names."""

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from training.backbones import architecture, check_options
from training.data import DataSet
from training.evaluation import evaluation_mode
from training.feed import COARSE
from training.options import Options

# Both hosts call these two inside their 1x1 convolutions; their users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")


class Model:
    """A flow with attention, and what training does with it.

    Attributes:
        flow: the model, of the host's own class.
    """

    def __init__(self, options: Options, data: DataSet) -> None:
        check_options(options)
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


def _attention(options: Options) -> dict[str, Any]:
    kinds = {"imap": ["imap"], "itrans": ["itrans"], "both": ["imap", "itrans"]}
    if options.attention == "none":
        return {}
    return {
        "attention": kinds[options.attention],
        "attention_options": _given(options, "activation", "heads", "patches", "affine"),
        "position": options.position,
        "both_masks": options.both_masks,
        **_given(options, "context_in_attention", "source_attention"),
    }


def _given(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.given.items() if name in names}


def _conditioning(options: Options, data: DataSet) -> dict[str, Any]:
    channels, height, width = data.image_shape
    if options.context == "label":
        return {"num_classes": data.classes, "context_shape": ()}
    if options.context == "coarse":
        return {"context_shape": (channels, height // COARSE, width // COARSE)}
    if options.context == "source":
        return {"context_shape": data.source_shape}
    return {}
