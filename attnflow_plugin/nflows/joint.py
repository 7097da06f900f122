"""Densities of targets and of their sources at once."""

from torch import Tensor, nn

from attnflow_plugin.backbones import joint
from attnflow_plugin.backbones.source_tower import SOURCE_LOG_PROB, SourceTower
from attnflow_plugin.errors import OptionError
from attnflow_plugin.nflows.encoded import EncodedTransform

__all__ = ["JointNegativeLogLikelihood", "joint_log_prob"]


def joint_log_prob(model: nn.Module, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log-densities of targets given their sources and of the sources, with one run of the tower.

    Args:
        model: made by ``build_full_glow``.
        target: batch of images.
        source: batch of the images that they are conditioned on.

    Returns:
        :math:`\log p(target | source)` and :math:`\log p(source)`, each of shape ``(B,)``.

    Raises:
        OptionError: a model of another kind.
    """
    encoded = getattr(model, "_transform", None)
    if not isinstance(encoded, EncodedTransform) or not isinstance(encoded.encoder, SourceTower):
        raise OptionError(
            f"joint_log_prob: expected a model made by build_full_glow, found a "
            f"{type(model).__name__}"
        )
    contexts = encoded.encoder(source)
    latent, log_det = encoded.transform(target, contexts)
    log_prob = model._distribution.log_prob(latent)  # type: ignore[operator, union-attr]
    return log_prob + log_det, contexts[SOURCE_LOG_PROB]


class JointNegativeLogLikelihood(joint.JointNegativeLogLikelihood):  # noqa: D101
    __doc__ = joint.JointNegativeLogLikelihood.__doc__
    _joint_log_prob = staticmethod(joint_log_prob)
