"""What the insertion engine has to know about nflows."""

from typing import ClassVar

from nflows import transforms
from nflows.flows import Flow
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.coupling import CouplingTransform
from nflows.transforms.linear import Linear
from nflows.transforms.nonlinearities import CauchyCDF
from torch import Tensor, nn

from attnflow_plugin.backbones.source_tower import SourceTower
from attnflow_plugin.insertion import Host, Role
from attnflow_plugin.nflows.encoded import EncodedTransform
from attnflow_plugin.nflows.layers import (
    AffineCoupling,
    AffineInjector,
    AttentionCoupling,
    ChannelAutoregression,
    ConditionalActNorm,
    ConditionalConv1x1,
    IMap,
    ITrans,
    MixtureLogisticCoupling,
    TopPrior,
)

__all__ = ["NFLOWS", "Nflows"]


class Nflows(Host):
    """The vocabulary of nflows."""

    name = "nflows"
    layer_type = transforms.Transform
    attentions: ClassVar = {"imap": IMap, "itrans": ITrans, "coupling": AttentionCoupling}
    iterating = (transforms.CompositeTransform, SourceTower)
    roles = (
        (
            (
                AffineInjector,
                AttentionCoupling,
                ChannelAutoregression,
                IMap,
                ITrans,
                TopPrior,
                transforms.SqueezeTransform,
                transforms.IdentityTransform,
                transforms.PointwiseAffineTransform,
                transforms.CompositeCDFTransform,
                transforms.Tanh,
                transforms.LogTanh,
                transforms.LeakyReLU,
                transforms.Sigmoid,
                CauchyCDF,
                transforms.GatedLinearUnit,
                transforms.PiecewiseLinearCDF,
                transforms.PiecewiseQuadraticCDF,
                transforms.PiecewiseCubicCDF,
                transforms.PiecewiseRationalQuadraticCDF,
            ),
            "other",
        ),
        ((ConditionalActNorm, transforms.ActNorm, transforms.BatchNorm), "actnorm"),
        (
            (ConditionalConv1x1, Linear, transforms.Permutation, transforms.HouseholderSequence),
            "permutation",
        ),
        (
            (AffineCoupling, MixtureLogisticCoupling, CouplingTransform, AutoregressiveTransform),
            "coupling",
        ),
        (
            (
                transforms.CompositeTransform,
                transforms.MultiscaleCompositeTransform,
                EncodedTransform,
            ),
            "container",
        ),
    )

    def known_role(self, module: nn.Module) -> Role | None:
        """The role of a class of the host; that of the inner layer for one that is turned round."""
        if isinstance(module, transforms.InverseTransform):
            return self.known_role(module._transform)
        return super().known_role(module)

    def run_to_latent(self, model: nn.Module, example: Tensor, context: Tensor | None) -> None:
        """Run the model from data to latent, without its base where it has a method for that."""
        if isinstance(model, Flow):
            model.transform_to_noise(example, context)
        elif isinstance(model, transforms.Transform):
            model(example, context)
        else:
            run = getattr(model, "log_prob")  # noqa: B009
            run(*(example,) if context is None else (example, context))

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """Several layers as one, in the host's order."""
        return transforms.CompositeTransform(layers)


NFLOWS = Nflows()
