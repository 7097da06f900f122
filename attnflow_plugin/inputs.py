"""Checks of models, batches, contexts and labels that users pass, for any host."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import in_plain_eager, plain_shape
from attnflow_plugin.errors import AttnFlowError, OptionError, ShapeError

HOSTS = ("normflows", "nflows")
_FULL_PRECISION = {torch.float32, torch.float64}


@dataclass(frozen=True)
class EventSize:
    """The size of a model's events, found from its base distributions.

    Attributes:
        numbers: how many numbers one event has.
        find_shape: finds the shape of one event from the layers, or ``None``; it is called only
            to explain an error.
        exact: ``False`` if a base distribution also accepts larger events, by broadcasting.
    """

    numbers: int
    find_shape: Callable[[], tuple[int, ...] | None]
    exact: bool = True

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one event, if it is known and has ``numbers`` entries."""
        shape = self.find_shape()
        return shape if shape is not None and math.prod(shape) == self.numbers else None

    def check(self, owner: str, x: Tensor) -> None:
        """Raise for a batch of events of another size."""
        if self.exact and math.prod(plain_shape(x)[1:]) != self.numbers:
            raise self.refusal(owner, x)

    def is_of(self, x: Tensor) -> bool:
        """Whether a batch has events of this size."""
        shape = self.shape
        if shape is None:
            return math.prod(x.shape[1:]) == self.numbers
        return tuple(x.shape[1:]) == shape

    def refusal(self, owner: str, x: Tensor) -> ShapeError:
        """The error for a batch of other events."""
        expected = f"events of {self.numbers} numbers, as the base distributions of the model have"
        shape = self.shape
        if shape is not None:
            sizes = ", ".join(map(str, shape))
            expected = f"a batch of shape (B, {sizes}), which the model was built for"
        return ShapeError(f"{owner}: expected {expected}, found a batch of shape {tuple(x.shape)}")


def require_model(owner: str, host: str, model: object) -> None:
    """Raise unless ``model`` can be a model of the host: a module with a ``log_prob``.

    Raises:
        OptionError: it is something else, or a model of the other host.
    """
    found = type(model).__name__
    if not isinstance(model, nn.Module):
        raise OptionError(f"{owner}: expected a model of {host}, found {found}")
    if not callable(getattr(model, "log_prob", None)):
        inside = [name for name, module in model.named_children() if hasattr(module, "log_prob")]
        hint = f"; give the model inside of it, {' or '.join(inside)}" if inside else ""
        raise OptionError(
            f"{owner}: expected a model of {host}, with a method log_prob, found {found}{hint}"
        )
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    for other in packages.intersection(HOSTS) - {host}:
        raise OptionError(
            f"{owner}: expected a model of {host}, found {found} of {other}; take "
            f"{owner} from attnflow_plugin.{other}"
        )


def require_batch(owner: str, x: object) -> None:
    """Raise unless ``x`` is a tensor in floating point.

    Raises:
        ShapeError: it is something else.
    """
    x = _tensor(owner, x)
    if not x.is_floating_point():
        raise ShapeError(
            f"{owner}: expected a batch in floating point, found {x.dtype}; spread grey levels "
            f"over [0, 1) by attnflow_plugin.metrics.dequantize, or convert other data by .float()"
        )


def _tensor(owner: str, x: object) -> Tensor:
    if isinstance(x, Tensor):
        return x
    hint = "; of what a loader gives, pass only the data" if isinstance(x, Sequence) else ""
    raise ShapeError(
        f"{owner}: expected a batch of data as a tensor, found {type(x).__name__}{hint}"
    )


def require_events(owner: str, x: object, size: EventSize | None) -> None:
    """Raise unless ``x`` is a batch of events of the model's size, if that is known.

    The hosts would broadcast events of some other sizes against their parameters, accept integers,
    and return a wrong density. Integers are refused only if the size is known: a model with layers
    of the user's own may dequantise its data itself.

    Raises:
        ShapeError: it is not a tensor in floating point, or has events of another size.
    """
    x = _tensor(owner, x)
    if size is not None:
        require_batch(owner, x)
        size.check(owner, x)


def require_context(owner: str, context: object, rows: int) -> None:
    """Raise for a number, a list or an array in place of a tensor, in a mapping too.

    Raises:
        ShapeError: it is one of these.
    """
    if isinstance(context, Mapping):
        for entry in context.values():
            require_context(owner, entry, rows)
    if isinstance(context, Number) or (isinstance(context, Tensor) and context.ndim == 0):
        raise ShapeError(
            f"{owner}: expected the context as a tensor with a row for each of {rows}, found the "
            f"number {context}; for the class of that number, give torch.full(({rows},), {context})"
        )
    if isinstance(context, list) or hasattr(context, "__array_interface__"):
        raise ShapeError(
            f"{owner}: expected the context as a tensor, found {type(context).__name__}; give "
            f"torch.as_tensor(context)"
        )


def context_rows(owner: str, context: Tensor | Mapping[str, Tensor]) -> int:
    """The number of rows of a context; all tensors of a mapping must have the same number.

    Raises:
        ShapeError: entries of a mapping are not tensors, or have different numbers of rows.
    """
    if not isinstance(context, Mapping):
        return plain_shape(context)[0]
    found = {
        name: plain_shape(entry)[0] if isinstance(entry, Tensor) else type(entry).__name__
        for name, entry in context.items()
    }
    rows = set(found.values())
    if len(rows) != 1 or not isinstance(first := rows.pop(), int):
        raise ShapeError(
            f"{owner}: expected contexts by name as tensors with the same number of rows, found "
            f"{found}"
        )
    return first


def require_rows(owner: str, context: Tensor | Mapping[str, Tensor] | None, rows: int) -> None:
    """Raise unless a context, if there is one, has a row for each row of data.

    Raises:
        ShapeError: it has another number of rows.
    """
    if context is None:
        return
    found = context_rows(owner, context)
    if found != rows:
        raise ShapeError(f"{owner}: expected a context for each of {rows} rows, found {found}")


def require_labels(
    owner: str, labels: object, classes: int, rows: int, *, one_hot: bool, read: bool = False
) -> None:
    """Raise unless ``labels`` are class labels.

    Args:
        owner: the function or class, for errors.
        labels: the labels.
        classes: number of classes.
        rows: number of rows to label.
        one_hot: whether weights of classes, ``(B, classes)``, are accepted as well.
        read: also look at the values on accelerators, which makes the CPU wait for them.

    Raises:
        ShapeError: they have another shape or dtype, or a label is out of range.
    """
    require_context(owner, labels, rows)
    if not isinstance(labels, Tensor):
        raise ShapeError(
            f"{owner}: expected labels as a tensor of shape ({rows},), found "
            f"{type(labels).__name__}"
        )
    if labels.ndim == 2 and labels.shape[1] == classes > 1:
        if not one_hot:
            raise ShapeError(
                f"{owner}: expected labels of shape ({rows},) from 0 to {classes - 1}, found "
                f"{tuple(labels.shape)}, which looks one-hot; give labels.argmax(1)"
            )
        if not labels.is_floating_point():
            raise ShapeError(
                f"{owner}: expected one-hot labels in floating point, found {labels.dtype}; give "
                f"labels.float(), or labels.argmax(1)"
            )
        return
    if one_hot and labels.ndim != 1:
        raise ShapeError(
            f"{owner}: expected labels of shape ({rows},), or one-hot ({rows}, {classes}), found "
            f"{tuple(labels.shape)}"
        )
    if labels.dtype not in (torch.int64, torch.int32):
        raise ShapeError(
            f"{owner}: expected labels as whole numbers from 0 to {classes - 1} in torch.int64, "
            f"found {labels.dtype}; give labels.long()"
        )
    _require_range(owner, labels, classes, read)


def _require_range(owner: str, labels: Tensor, classes: int, read: bool) -> None:
    if not in_plain_eager() or not labels.numel() or not (read or labels.is_cpu):
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        raise ShapeError(
            f"{owner}: expected labels from 0 to {classes - 1}, for {classes} classes, found "
            f"labels from {low} to {high}"
        )


def require_temperature(temperature: object) -> None:
    """Raise unless the temperature is a positive, finite number.

    Raises:
        OptionError: it is not.
    """
    try:
        possible = bool(0 < temperature < math.inf)  # type: ignore[operator]
    except TypeError:
        possible = False
    if not possible:
        raise OptionError(f"sample: expected a positive temperature, found {temperature!r}")


@contextmanager
def explained(owner: str, model: nn.Module, x: Tensor, size: EventSize | None) -> Iterator[None]:
    """Turn an error inside a model into one about the batch, if the batch is the likely cause."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, AttnFlowError) and not isinstance(error, ShapeError):
            raise
        if not x.is_floating_point():
            require_batch(owner, x)
        if size is not None and not size.is_of(x):
            raise size.refusal(owner, x) from error
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
        if dtype != x.dtype and {dtype, x.dtype} <= _FULL_PRECISION:
            raise ShapeError(
                f"{owner}: expected a batch in {dtype} as the parameters of the model, found "
                f"{x.dtype}; give x.{'double' if dtype == torch.float64 else 'float'}()"
            ) from error
        raise


def unsqueezed(shape: tuple[int, ...], factor: int) -> tuple[int, ...] | None:
    """The shape of an image before squeezing by a factor; ``None`` if it is not such an image."""
    if factor == 1:
        return shape
    if len(shape) != 3 or shape[0] % factor**2:
        return None
    return (shape[0] // factor**2, shape[1] * factor, shape[2] * factor)
