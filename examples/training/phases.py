"""Parts of a training, in which different parameters learn: a function of the step."""

from enum import Enum

from torch import Tensor, nn

from attnflow_plugin.backbones import encoder_of, pretraining_loss
from training.options import Options


class Phase(Enum):
    """What learns.

    Attributes:
        ENCODER: the encoder of the low-resolution image, alone, to super-resolve.
        FLOW: the flow, with the encoder as it is.
        ALL: both; models without such an encoder know nothing else.
    """

    ENCODER = "encoder"
    FLOW = "flow"
    ALL = "all"


def phase_of(step: int, options: Options) -> Phase:
    """Steps count from 0."""
    if step < options.pretrain_steps:
        return Phase.ENCODER
    frozen = options.pretrain_steps + options.freeze_encoder_until
    return Phase.FLOW if step < frozen else Phase.ALL


class Pretraining(nn.Module):
    """The objective of the encoder's own training: images and sources to an error."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder_of(flow)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Mean absolute error, as a batch of one."""
        return pretraining_loss(self.encoder, context, x).reshape(1)


def select_parameters(flow: nn.Module, options: Options, phase: Phase) -> None:
    """Let the parameters of a phase learn and no others; one that gets no gradient stays."""
    if options.backbone != "srflow":
        return
    encoder = encoder_of(flow)
    flow.requires_grad_(phase is not Phase.ENCODER)
    encoder.requires_grad_(phase is not Phase.FLOW)
    if encoder.head is not None:
        encoder.head.requires_grad_(phase is Phase.ENCODER)
