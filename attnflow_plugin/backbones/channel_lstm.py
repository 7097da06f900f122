"""A convolutional LSTM over channels: the net of mARFlow's prior."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.backbones.nets import zeroed

CONDITION_CHANNELS = 4


class ChannelLSTM(nn.Module):
    r"""Predicts each channel of an image from the channels before it and a kept map.

    The input of step i is channel i - 1 (zeros at first) and a summary of the kept map in four
    channels. A convolution embeds it, layers of convolutional LSTM follow, and a last convolution
    gives mean and log-scale of channel i. The last convolution starts at zero.

    If all channels are given, each layer runs through all steps before the next one. The
    convolutions of its inputs are then one call, and only that of the hidden map runs in every
    step. Channel by channel, each layer is one convolution of its input and hidden map together.
    The LSTM's kernels are kept channels-last, in which dilated convolutions run up to three times
    as fast on a CPU.

    Args:
        kept_channels: channels of the kept map, zero for none.
        hidden_channels: channels of hidden maps and cells.
        layers: number of LSTM layers.
        kernel: size of the kernels, odd.
        dilation: dilation of the LSTM's kernels.

    Reference:
        Bhattacharyya, Mahajan, Fritz, Schiele, Roth, *Normalizing Flows with Multi-Scale
        Autoregressive Priors*, CVPR 2020.
    """

    def __init__(
        self,
        kept_channels: int,
        hidden_channels: int = 32,
        *,
        layers: int = 3,
        kernel: int = 5,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.condition: nn.Module | None = None
        condition_channels = CONDITION_CHANNELS if kept_channels else 0
        if kept_channels:
            self.condition = condition_net(kept_channels, hidden_channels)
        self.embedding = nn.Conv2d(
            1 + condition_channels, hidden_channels, kernel, padding=kernel // 2
        )
        self.cells = nn.ModuleList(_Cell(hidden_channels, kernel, dilation) for _ in range(layers))
        self.last = zeroed(nn.Conv2d(hidden_channels, 2, 3, padding=1))

    def forward(self, channels: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means and raw log-scales of all channels, each ``(B, N, H, W)``."""
        channels = channels.to(self.last.weight.dtype)
        rows, count = channels.shape[:2]
        before = F.pad(channels, (0, 0, 0, 0, 1, 0))[:, :-1]
        # Steps first, so that a step of all rows is contiguous.
        steps = before.transpose(0, 1).unsqueeze(2)
        constant = self._constant(channels, kept)
        hidden = self._embedded(steps.flatten(0, 1)).unflatten(0, (count, rows)) + constant
        for cell in self.cells:
            hidden = cell(hidden)
        out = self.last(hidden.flatten(0, 1)).unflatten(0, (count, rows))
        mean, log_scale = out.transpose(0, 1).unbind(2)
        return mean, log_scale

    def generator(
        self, event: Tensor, kept: Tensor | None = None
    ) -> Callable[[Tensor | None], tuple[Tensor, Tensor]]:
        """A function from the previous channel, ``None`` at first, to mean and raw log-scale."""
        dtype = self.last.weight.dtype
        constant = self._constant(event.to(dtype), kept)
        steps = [cell.stepper() for cell in self.cells]  # type: ignore[operator]

        def predict(before: Tensor | None) -> tuple[Tensor, Tensor]:
            if before is None:
                before = torch.zeros_like(event[:, :1])
            hidden = self._embedded(before.to(dtype)) + constant
            for step in steps:
                hidden = step(hidden)
            mean, log_scale = self.last(hidden).split(1, 1)
            return mean, log_scale

        return predict

    def _embedded(self, before: Tensor) -> Tensor:
        """The part of the embedding that changes from step to step, without the bias."""
        weight = self.embedding.weight[:, :1]
        return F.conv2d(before, weight, padding=self.embedding.padding)

    def _constant(self, event: Tensor, kept: Tensor | None) -> Tensor:
        """The part of the embedding that is the same in all steps."""
        embedding = self.embedding
        assert embedding.bias is not None
        if self.condition is None:
            return embedding.bias.reshape(-1, 1, 1)
        assert kept is not None
        summary = self.condition(kept.to(event.dtype))
        padding = embedding.padding
        return F.conv2d(summary, embedding.weight[:, 1:], embedding.bias, padding=padding)


class _Cell(nn.Module):
    """An LSTM layer with convolutions in place of matrix products."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.from_input, self.from_hidden = (
            nn.Conv2d(channels, 4 * channels, kernel, padding=padding, dilation=dilation)
            for _ in range(2)
        )
        for conv in (self.from_input, self.from_hidden):
            nn.utils.convert_conv2d_weight_memory_format(conv, torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        """All steps: ``(N, B, C, H, W)`` to the same shape."""
        rows = inputs.shape[:2]
        gates = self._conv(inputs.flatten(0, 1), self.from_input.weight, self._bias())
        # There is no hidden map in the first step.
        per_step = gates.unflatten(0, rows).unbind()
        hidden, cell = _gated(per_step[0], None)
        outputs = [hidden]
        for gates in per_step[1:]:
            recurrent = self._conv(hidden, self.from_hidden.weight, None)
            hidden, cell = _gated(gates + recurrent, cell)
            outputs.append(hidden)
        return torch.stack(outputs)

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """A function that runs one step after another and keeps the hidden map and the cell."""
        joint = torch.cat([self.from_input.weight, self.from_hidden.weight], 1)
        bias = self._bias()
        hidden: Tensor | None = None
        cell: Tensor | None = None

        def step(inputs: Tensor) -> Tensor:
            nonlocal hidden, cell
            if hidden is None:
                gates = self._conv(inputs, self.from_input.weight, bias)
            else:
                gates = self._conv(torch.cat([inputs, hidden], 1), joint, bias)
            hidden, cell = _gated(gates, cell)
            return hidden

        return step

    def _bias(self) -> Tensor:
        assert self.from_input.bias is not None
        assert self.from_hidden.bias is not None
        return self.from_input.bias + self.from_hidden.bias

    def _conv(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.from_input
        return F.conv2d(inputs, weight, bias, padding=conv.padding, dilation=conv.dilation)


def _gated(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """The new hidden map and cell; there is no cell before the first step."""
    enter, forget, candidate, leave = gates.chunk(4, 1)
    new = torch.sigmoid(enter) * torch.tanh(candidate)
    if cell is not None:
        new = torch.sigmoid(forget) * cell + new
    return torch.sigmoid(leave) * torch.tanh(new), new


def condition_net(kept_channels: int, hidden_channels: int) -> nn.Module:
    """The net that summarises the kept map."""
    return nn.Sequential(
        nn.Conv2d(kept_channels, hidden_channels, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(hidden_channels, CONDITION_CHANNELS, 5, padding=2),
    )
