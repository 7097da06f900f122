"""What the insertion engine has to know about nflows."""

from functools import partial
from typing import ClassVar

from nflows import transforms
from nflows.distributions import Distribution
from nflows.flows import Flow
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.coupling import CouplingTransform
from nflows.transforms.linear import Linear
from nflows.transforms.nonlinearities import CauchyCDF
from torch import Tensor, nn

from attnflow_plugin.backbones.source_tower import SourceTower
from attnflow_plugin.hosts import Host, Role, Run, attentions_of, is_users_own, methods_of
from attnflow_plugin.inputs import EventSize
from attnflow_plugin.insertion.domains import LINE, Domain, spline_domain
from attnflow_plugin.nflows import layers
from attnflow_plugin.nflows.checks import event_size
from attnflow_plugin.nflows.encoded import EncodedTransform

__all__ = ["NFLOWS", "Nflows"]


class Nflows(Host):
    """The vocabulary of nflows."""

    name = "nflows"
    layer_type = transforms.Transform
    base_type = Distribution
    to_latent_method = "forward"
    one_way_errors = (NotImplementedError, transforms.InverseNotAvailable)
    attentions: ClassVar = attentions_of(layers)
    iterating = (transforms.CompositeTransform, SourceTower)
    roles = (
        (
            (
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
        ((transforms.ActNorm, transforms.BatchNorm), "actnorm"),
        (
            (Linear, transforms.Permutation, transforms.HouseholderSequence),
            "permutation",
        ),
        (
            (CouplingTransform, AutoregressiveTransform),
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

    def to_latent(self, model: nn.Module) -> list[Run]:
        """The user's ``log_prob``, and then what runs without a base distribution."""
        if isinstance(model, transforms.Transform):
            return [model]
        own = is_users_own(model, "log_prob", "_log_prob")
        return methods_of(model, "log_prob", *(() if own else ("transform_to_noise",)))

    @staticmethod
    def sample(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
        """By ``sample``, which draws a number for each context, along an axis of its own."""
        if not (args or kwargs):
            return model.sample(len(x))  # type: ignore[operator]
        drawn = model.sample(1, *args, **kwargs)  # type: ignore[operator]
        return drawn.squeeze(1) if drawn.ndim > x.ndim else drawn

    def there_and_back(self, model: nn.Module) -> Run | None:
        """By the transform, without a base distribution."""
        if isinstance(model, transforms.Transform):
            return partial(_there_and_back, model, nn.Identity())
        if isinstance(model, Flow):
            return partial(_there_and_back, model._transform, model._embedding_net)
        return None

    def domains(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        """Squashing functions, and splines by their tails."""
        for kinds, domain in _SQUASHES:
            if isinstance(layer, kinds):
                return LINE, domain
        spline = _UNIT_BOX if isinstance(layer, _SPLINES_WITHOUT_TAILS) else spline_domain(layer)
        return spline, spline

    def event_size(self, model: nn.Module) -> EventSize | None:
        """By the shape of the base distribution."""
        return event_size(model)

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """Several layers as one, in the host's order."""
        return transforms.CompositeTransform(layers)


_UNIT_BOX = Domain("lie in the box [0, 1]")
_SQUASHES = (
    ((transforms.Sigmoid, CauchyCDF), Domain("lie in the box (0, 1)")),
    ((transforms.Tanh,), Domain("lie in the box (-1, 1)")),
)
_SPLINES_WITHOUT_TAILS = (
    transforms.MaskedPiecewiseLinearAutoregressiveTransform,
    transforms.MaskedPiecewiseCubicAutoregressiveTransform,
)


def _there_and_back(
    transform: nn.Module, embedding: nn.Module, x: Tensor, context: Tensor | None = None
) -> object:
    embedded = embedding(context)
    z, _ = transform(x, embedded)
    return transform.inverse(z, embedded)[0]  # type: ignore[operator]


NFLOWS = Nflows()
