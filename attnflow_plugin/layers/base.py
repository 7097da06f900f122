"""The contract of invertible layers, and the common base of attention layers."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import in_plain_eager, plain_shape, without_autocast
from attnflow_plugin.debug import require_finite
from attnflow_plugin.errors import (
    MissingContextError,
    ShapeError,
    boolean,
    non_negative_int,
    one_of,
    positive_int,
)
from attnflow_plugin.masks import PATTERNS, MaskKind

Context = Tensor | Mapping[str, Tensor] | None
#: The part that a layer plays in a step of a flow.
Role = Literal["actnorm", "permutation", "coupling", "container", "other"]

_Direction = Callable[[Tensor, Any], tuple[Tensor, Tensor]]

_HALF_DTYPES = (torch.float16, torch.bfloat16)


class InvertibleLayer(nn.Module, ABC):
    r"""An invertible map on events of shape ``(C, *S)`` with 0 to 3 spatial axes.

    It is written in density direction and depends on no host:

    * `to_latent` maps data to latent, $z = f(x)$, and returns
      $\log |\det \partial z / \partial x|$;
    * `to_data` maps latent to data, $x = f^{-1}(z)$, and returns
      $\log |\det \partial x / \partial z|$.

    **Log-det**: natural logarithm, summed over all event dimensions. It is a new tensor of shape
    ``(B,)`` with the dtype and device of the output (float32 if that is half precision).

    **Precision**: all arithmetic runs in float32 or float64, under autocast too.

    **Errors**: a wrong rank, number of channels, dtype or device raises `ShapeError`.

    **Non-finite data** are no error: in both directions and on every device, a row with a
    non-finite entry gets the log-det NaN, and other rows are not affected. To find the layer where
    the first such value appears, see `attnflow_plugin.debug.raise_on_non_finite`.

    **Contexts**: one tensor for all layers of a model, or a mapping of names to tensors. A layer
    then takes the tensor that is called `context_name`.

    A subclass implements ``_to_latent`` and ``_to_data`` on checked input in full precision.

    Attributes:
        context_name: name of the layer's context, if a model has several.
        autocast_inside: whether the layer runs a net that may use the lower precision of autocast;
            it then casts the output of the net back itself.
        role: the role in a step of a flow, with which ``insert_attention`` finds places; with
            ``None`` it is guessed from the name of the class and from trial runs.
    """

    autocast_inside: ClassVar[bool] = False
    role: ClassVar[Role | None] = None
    context_name: str | None = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = positive_int(type(self).__name__, "channels", channels)

    def to_latent(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        r"""Map data to latent.

        Args:
            x: data, shape ``(B, C, *S)``.
            context: accepted by every layer, so that conditional hosts can pass it to all of them.

        Returns:
            ``z`` of the shape and dtype of ``x``, and the log-det of shape ``(B,)``.
        """
        return self._directed("to_latent", self._to_latent, x, context)

    def to_data(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        r"""Map latent to data: the inverse of `to_latent`, with the same shapes."""
        return self._directed("to_data", self._to_data, z, context)

    @abstractmethod
    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map checked data to latent; the log-det has shape ``(B,)``."""

    @abstractmethod
    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Undo ``_to_latent``."""

    def _directed(
        self, direction: str, run: _Direction, given: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """The checks and casts around either direction."""
        event = self._checked(given)
        require_finite(self, direction, "finite input", event)
        with self._precision(given):
            out, log_det = run(event, self._own(context))
        require_finite(self, direction, "finite results of finite input", out, log_det)
        return out.to(given.dtype), _nan_where_not_finite(log_det, event)

    def _own(self, context: Context) -> Any:  # noqa: ANN401
        """The layer's own context out of several: a tensor, or ``None``."""
        if not isinstance(context, Mapping):
            return context
        if self.context_name is None:
            if getattr(self, "context_channels", 0):
                raise MissingContextError(
                    f"{type(self).__name__}: expected a context_name of the layer for a mapping of "
                    f"contexts, found none; set it to one of {sorted(context)}"
                )
            return None
        if self.context_name not in context:
            raise MissingContextError(
                f"{type(self).__name__}: expected a context named {self.context_name!r}, found "
                f"{sorted(context)}"
            )
        return context[self.context_name]

    def _precision(self, event: Tensor) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast_inside else without_autocast(event)

    def _checked(self, event: Tensor) -> Tensor:
        name = type(self).__name__
        if not isinstance(event, Tensor):
            raise ShapeError(f"{name}: expected a tensor, found {type(event).__name__}")
        shape = plain_shape(event)
        if not 2 <= len(shape) <= 5 or shape[1] != self.channels:
            raise ShapeError(
                f"{name}: expected shape (batch, {self.channels}) with 0 to 3 more spatial axes, "
                f"found {tuple(shape)}"
            )
        self._check_dtype_and_device(event)
        return event.float() if event.dtype in _HALF_DTYPES else event

    def _check_dtype_and_device(self, event: Tensor) -> None:
        # Graphs of torch 2.4 to 2.9 have no ``next`` with a default.
        for parameter in islice(self.parameters(), 1):
            self._check_against(parameter, event)

    def _check_against(self, parameter: Tensor, event: Tensor) -> None:
        half_input_to_float_layer = event.dtype in _HALF_DTYPES and parameter.dtype == torch.float32
        if event.dtype != parameter.dtype and not half_input_to_float_layer:
            raise ShapeError(
                f"{type(self).__name__}: expected the dtype of the parameters, {parameter.dtype}, "
                f"found {event.dtype}; convert the data or the layer"
            )
        if event.device != parameter.device:
            raise ShapeError(
                f"{type(self).__name__}: expected the device of the parameters, "
                f"{parameter.device}, found {event.device}; move the data or the layer"
            )


class MaskedAttention(InvertibleLayer):
    """Attention whose weights are computed from the passing half of the event.

    Args:
        channels: C.
        mask: pattern of the passing half, see `attnflow_plugin.masks.make_mask`.
        flip: swap the halves.
        context_channels: channels of a context that the weights also depend on, or zero.

    Attributes:
        attention_name: the name of the layer in ``insert_attention`` and the builders.
    """

    attention_name: ClassVar[str]
    role = "other"

    def __init__(self, channels: int, mask: MaskKind, flip: bool, context_channels: int) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.mask = one_of(name, "mask", mask, PATTERNS)
        self.flip = boolean(name, "flip", flip)
        self.context_channels = non_negative_int(name, "context_channels", context_channels)

    @classmethod
    def options(cls) -> list[str]:
        """The names of the options: all arguments of the class except the channels."""
        return list(inspect.signature(cls).parameters)[1:]

    @abstractmethod
    def share_bounds(self, layers: int) -> None:
        """Choose the bounds for a model with so many attention layers.

        ``insert_attention`` and the builders call this for all layers that they add. Bounds that
        were given to the constructor do not change.
        """

    def attention(self, x: Tensor, context: Context = None) -> Tensor:
        """The attention weights that are computed from the passing half of ``x``.

        Args:
            x: data, shape ``(B, C, *S)``.
            context: needed with ``context_channels``; a tensor or a mapping, as in ``to_latent``.
        """
        event = self._checked(x)
        with self._precision(x):
            return self._weights(event, self._own(context))

    @abstractmethod
    def _weights(self, event: Tensor, context: Tensor | None) -> Tensor:
        """The attention weights of a checked event."""


def attention_layers(modules: Iterable[nn.Module]) -> list[MaskedAttention]:
    """The attention layers among the modules and inside them."""
    inside = (part for module in modules for part in module.modules())
    return [part for part in inside if isinstance(part, MaskedAttention)]


def _nan_where_not_finite(log_det: Tensor, event: Tensor) -> Tensor:
    """The log-det, with NaN for the rows that have a non-finite entry."""
    event = event.detach()
    # The cheapest test, if values may be looked at without waiting for a device.
    if event.is_cpu and in_plain_eager() and math.isfinite(event.sum()):
        return log_det
    # Without a branch: zero times NaN or infinity is NaN, and sums of zeros do not overflow.
    return log_det + (0 * event).sum(tuple(range(1, event.ndim)))
