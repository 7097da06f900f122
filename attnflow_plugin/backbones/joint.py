"""The loss of a model of targets and of their sources; host-free."""

from collections.abc import Callable

from torch import Tensor, nn

from attnflow_plugin.errors import OptionError

__all__ = ["JointNegativeLogLikelihood"]

#: Weight of the source's density in the loss of Full-Glow.
SOURCE_WEIGHT = 1e-4


class JointNegativeLogLikelihood(nn.Module):
    r"""The joint loss of a Full-Glow, :math:`-\log p(y | x) - w \log p(x)`, as a module to wrap.

    The tower of the source runs once for both terms. All parameters of the model take part; in
    :math:`-\log p(y | x)` alone the learned priors of the source do not, which
    DistributedDataParallel has to be told.

    Args:
        model: made by ``build_full_glow`` of the host.
        source_weight: w.
    """

    _joint_log_prob: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]

    def __init__(self, model: nn.Module, source_weight: float = SOURCE_WEIGHT) -> None:
        super().__init__()
        if not source_weight >= 0:
            raise OptionError(
                f"{type(self).__name__}: expected a source_weight of at least zero, found "
                f"{source_weight}"
            )
        self.model = model
        self.source_weight = source_weight

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """The loss of each pair in nats, shape ``(B,)``."""
        of_target, of_source = self._joint_log_prob(self.model, target, source)
        return -of_target - self.source_weight * of_source
