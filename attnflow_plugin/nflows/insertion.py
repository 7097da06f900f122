"""``insert_attention`` for nflows models."""

from collections.abc import Sequence

from torch import Tensor, nn

from attnflow_plugin.insertion import Attention, InsertionReport, insert
from attnflow_plugin.insertion.places import Position
from attnflow_plugin.nflows.host import NFLOWS

__all__ = ["insert_attention"]


def insert_attention(
    model: nn.Module,
    attention: Attention | Sequence[Attention] = "imap",
    *,
    example: Tensor,
    position: Position | Sequence[Position] = "after_coupling",
    both_masks: bool = True,
    context: object = None,
    check_domain: bool = True,
    **layer_options: object,
) -> InsertionReport:
    """Insert attention into an nflows model, in place.

    Works on ``Flow`` and its subclasses over any ``Transform``, the user's own included:
    ``CompositeTransform`` (nested too), ``MultiscaleCompositeTransform``, ``InverseTransform``, a
    single coupling; and on modules with a ``log_prob`` that are built from transforms. Shapes are
    learnt by running ``log_prob(example)`` in a copy of the model; another copy tries the new
    layers in both directions. The model itself does not run, so that an ActNorm that has seen no
    data keeps waiting for it. Random states are left as they were, and so is the model if anything
    fails or interrupts.

    With the layers' default ``init="identity"`` the model computes what it computed before. Bounds
    that are not among the options are chosen for the number of attention layers that the model has
    then, so that deep models stay safe to sample.

    Inside a ``CompositeTransform`` the new layers join its list, which moves the keys of later
    layers in the ``state_dict``: load old checkpoints first, then insert. Elsewhere the layer and
    the new ones become one ``CompositeTransform``. Beside a layer that the model uses twice, the
    new ones are used twice as well. An optimizer made before does not know the new
    parameters; see :meth:`~attnflow_plugin.insertion.InsertionReport.add_to`.

    Args:
        model: the model.
        attention: name of a layer, such as ``"imap"`` or ``"itrans"``, a function from channels to
            a ``Transform``, or a sequence of these, from data to latent.
        example: a batch of data.
        position: ``"before_actnorm"``, ``"after_actnorm"``, ``"after_permutation"``,
            ``"after_coupling"`` (pos-1 to pos-4 of the paper, from data to latent), a class, after
            each instance of which to insert, or a sequence of these. A coupling is any layer that
            is neither a normalization, a permutation or linear map, nor pointwise or a reshaping;
            so an autoregressive transform is one. Layers of the user's own that derive from no such
            class are told apart by name: one with "norm" is a normalization, with "perm", "linear"
            or "1x1" a permutation.
        both_masks: insert two layers with complementary masks, so that everything is attended.
        context: a batch of contexts for conditional models, or whatever else ``log_prob`` takes
            after the data: one argument, a tuple of several, or a mapping of their names.
        check_domain: refuse to put attention where it would take events out of a circle, a torus
            or a box. Without the check such a density no longer integrates to one.
        **layer_options: options of the layers, such as ``heads=5`` or ``init="paper"``; with
            several attentions each gets those it knows.

    Returns:
        A report of what was inserted where; ``print`` it.

    Raises:
        InsertionError: the model has no such position, or a layer does not fit somewhere; the model
            is untouched.
        DomainError: events at a place do not range over the whole line; also an InsertionError.
        OptionError: an unknown attention, position or option.
        NonFiniteError: the example is not finite.
    """
    return insert(
        NFLOWS,
        model,
        attention,
        example=example,
        position=position,
        both_masks=both_masks,
        context=context,
        check_domain=check_domain,
        layer_options=layer_options,
    )
