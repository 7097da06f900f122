"""``insert_attention`` for nflows models."""

from collections.abc import Sequence
from typing import ClassVar

from nflows import transforms
from nflows.flows import Flow
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.coupling import CouplingTransform
from nflows.transforms.linear import Linear
from nflows.transforms.nonlinearities import CauchyCDF
from torch import Tensor, nn

from attnflow_plugin.insertion import Attention, Host, InsertionReport, Role, insert
from attnflow_plugin.insertion.places import Position
from attnflow_plugin.nflows.layers import IMap, ITrans

__all__ = ["insert_attention"]


class _Nflows(Host):
    name = "nflows"
    layer_type = transforms.Transform
    attentions: ClassVar = {"imap": IMap, "itrans": ITrans}
    iterating = (transforms.CompositeTransform,)
    roles = (
        (
            (
                IMap,
                ITrans,
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
        ((Linear, transforms.Permutation, transforms.HouseholderSequence), "permutation"),
        ((CouplingTransform, AutoregressiveTransform), "coupling"),
        ((transforms.CompositeTransform, transforms.MultiscaleCompositeTransform), "container"),
    )

    def known_role(self, module: nn.Module) -> Role | None:
        if isinstance(module, transforms.InverseTransform):
            return self.known_role(module._transform)
        return super().known_role(module)

    def run_to_latent(self, model: nn.Module, example: Tensor, context: Tensor | None) -> None:
        if isinstance(model, Flow):
            model.transform_to_noise(example, context)
        elif isinstance(model, transforms.Transform):
            model(example, context)
        else:
            run = getattr(model, "log_prob")  # noqa: B009
            run(*(example,) if context is None else (example, context))

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        return transforms.CompositeTransform(layers)


def insert_attention(
    model: nn.Module,
    attention: Attention | Sequence[Attention] = "imap",
    *,
    example: Tensor,
    position: Position | Sequence[Position] = "after_coupling",
    both_masks: bool = True,
    context: Tensor | None = None,
    **layer_options: object,
) -> InsertionReport:
    """Insert attention into an nflows model, in place.

    Works on ``Flow`` and its subclasses over any ``Transform``, the user's own included:
    ``CompositeTransform`` (nested too), ``MultiscaleCompositeTransform``, ``InverseTransform``, a
    single coupling. Shapes are learnt by running ``example`` through a copy of the model, in which
    the new layers are tried as well; the model itself does not run, so that an ActNorm that has
    seen no data keeps waiting for it. Random states are left as they were.

    With the layers' default ``init="identity"`` the model computes what it computed before.

    Inside a ``CompositeTransform`` the new layers join its list, which moves the keys of later
    layers in the ``state_dict``: load old checkpoints first, then insert. Elsewhere the layer and
    the new ones become one ``CompositeTransform``. An optimizer made before does not know the new
    parameters; see :meth:`~attnflow_plugin.insertion.InsertionReport.parameters`.

    Args:
        model: the model.
        attention: ``"imap"``, ``"itrans"``, a function from channels to a ``Transform``, or a
            sequence of these, from data to latent.
        example: a batch of data.
        position: ``"before_actnorm"``, ``"after_actnorm"``, ``"after_permutation"``,
            ``"after_coupling"`` (pos-1 to pos-4 of the paper, from data to latent), a class, after
            each instance of which to insert, or a sequence of these. A coupling is any layer that
            is neither a normalization, a permutation or linear map, nor pointwise or a reshaping;
            so an autoregressive transform is one. Layers of the user's own that derive from no such
            class are told apart by name: one with "norm" is a normalization, with "perm", "linear"
            or "1x1" a permutation.
        both_masks: insert two layers with complementary masks, so that everything is attended.
        context: a batch of contexts for conditional models.
        **layer_options: options of the layers, such as ``heads=5`` or ``activation="exp"``.

    Returns:
        A report of what was inserted where; ``print`` it.

    Raises:
        InsertionError: the model has no such position, or a layer does not fit somewhere; the model
            is untouched.
        OptionError: an unknown attention, position or option.
        NonFiniteError: the example is not finite.
    """
    return insert(
        _Nflows(),
        model,
        attention,
        example=example,
        position=position,
        both_masks=both_masks,
        context=context,
        layer_options=layer_options,
    )
