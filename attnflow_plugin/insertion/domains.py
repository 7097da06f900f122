r"""Where events live: on the line, on circles, in a box.

Attention scales and mixes. It would take events out of a circle or a box, and the density would no
longer integrate to one, without an error: many base distributions do not check their support.

Layers that keep events on circles or in a box, or that map between a box and the line, are known to
the hosts (``Host.domains``); all others hand on what their neighbours say. Base distributions are
asked: outside of a box there is no density, and on a line it falls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["LINE", "BaseCall", "Domain", "domain_of_base", "rows_of", "spline_domain"]

#: Of larger events, so many coordinates are looked at.
_MOST_COORDINATES = 256
#: Outside of any box around the latents, in units of their largest entry.
_NEAR = 20.0
#: Where the density of a line falls from one to the next; multiples of no likely period.
_FAR = (371.3, 3_011.7, 10_007.9, 100_003.7)


@dataclass(frozen=True)
class Domain:
    """The domain of some coordinates of an event.

    Attributes:
        text: for people, as in "lie in the box [0, 1]".
        coordinates: their indices; ``None`` for all.
    """

    text: str
    coordinates: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.coordinates is None:
            return f"all coordinates {self.text}"
        shown = ", ".join(map(str, self.coordinates[:8]))
        more = ", ..." if len(self.coordinates) > 8 else ""
        return f"coordinates [{shown}{more}] {self.text}"


#: Said by a layer whose other side is a box: here events are unbounded again.
LINE = Domain("range over the whole line")


@dataclass(frozen=True)
class BaseCall:
    """A call of a base distribution's ``log_prob``.

    Attributes:
        name: what it is called in the model, with its class.
        log_prob: the method.
        latents: what it was called with, or what it drew itself.
        batch: how many rows its further arguments have.
        args: further arguments.
        kwargs: further arguments by name.
    """

    name: str
    log_prob: Callable[..., Tensor]
    latents: Tensor
    batch: int
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


def spline_domain(layer: nn.Module) -> Domain | None:
    """The domain of a monotone spline, by its tails: ``None``, "linear", "circular" or a list."""
    own = vars(layer)
    if "tails" not in own:
        return None
    tails = dict(_tails_by_coordinate(layer))
    circular = tuple(sorted(k for k, tail in tails.items() if tail == "circular"))
    if circular or own["tails"] == "circular":
        bound = _shown(getattr(layer, "tail_bound", None))
        return Domain(f"lie on circles of half-length {bound}", circular or None)
    return Domain("lie in the box [0, 1]") if own["tails"] is None else None


def _tails_by_coordinate(layer: nn.Module) -> list[tuple[int, object]]:
    """Of a list of tails; a coupling has one for each half of its coordinates."""
    tails = layer.tails
    if not isinstance(tails, (list, tuple)):
        return []
    places = _indices(layer, "transform_features") or range(len(tails))
    found = list(zip(places, tails, strict=False))
    other = getattr(layer, "unconditional_transform", None)
    if other is not None and isinstance(getattr(other, "tails", None), (list, tuple)):
        found += zip(_indices(layer, "identity_features"), other.tails, strict=False)
    return found


def _indices(layer: nn.Module, name: str) -> list[int]:
    features = getattr(layer, name, None)
    return features.tolist() if isinstance(features, Tensor) else []


def _shown(bound: object) -> str:
    values = bound.flatten().tolist() if isinstance(bound, Tensor) else [bound]
    return ", ".join(sorted({f"{value:g}" for value in values}))


def domain_of_base(base: BaseCall) -> Domain | None:
    """The domain of a base distribution that is not the whole line in every coordinate.

    Its log-density is evaluated with one coordinate at a time moved out of the way: in a box it is
    minus infinity or an error there; on a circle, or in a box whose bounds are not checked, it is
    what it was.
    """
    latents = base.latents
    if not latents.is_floating_point() or latents.dtype in (torch.float16, torch.bfloat16):
        return None
    moved = _Moved(base)
    here = moved.log_prob(0.0)
    if here is None or not bool(here.isfinite().all()):
        return None
    near = [moved.log_prob(sign * _NEAR) for sign in (1, -1)]
    if any(values is None for values in near):
        return Domain("lie in a box or on a half-line, since there is an error outside of it")
    outside = torch.stack([(v == -torch.inf) | v.isnan() for v in near]).any(0)  # type: ignore[union-attr]
    if bool(outside.any()):
        return Domain(
            "lie in a box or on a half-line, since the density is zero outside of it",
            moved.where(outside),
        )
    falls = moved.falls(here, 1) & moved.falls(here, -1)
    if not bool(falls.all()):
        text = "lie on circles or in a box, since the density does not fall outside of it"
        return Domain(text, moved.where(~falls))
    return None


class _Moved:
    """The log-density of a base at one latent with one of its coordinates moved."""

    def __init__(self, base: BaseCall) -> None:
        self._base = base
        size = base.latents[0].numel()
        self._coordinates = torch.linspace(0, size - 1, min(size, _MOST_COORDINATES)).long()
        self._unit = 1 + float(base.latents.detach().abs().max())

    def log_prob(self, distance: float) -> Tensor | None:
        """One for each coordinate, in float64; ``None`` after an error."""
        rows, base = len(self._coordinates), self._base
        latents = base.latents.detach()[:1].expand(rows, *base.latents.shape[1:]).clone()
        here = torch.arange(rows, device=latents.device)
        # A map of the coordinates in their order, whatever the memory looks like.
        flat = latents.flatten(1)
        flat[here, self._coordinates.to(latents.device)] += distance * self._unit
        moved = flat.reshape(latents.shape)
        args = [rows_of(value, base.batch, rows) for value in base.args]
        kwargs = {name: rows_of(value, base.batch, rows) for name, value in base.kwargs.items()}
        try:
            values = base.log_prob(moved, *args, **kwargs).detach().double()
        except Exception:
            return None
        # Those of torch may have a density for each coordinate.
        values = values.flatten(1).sum(1) if values.ndim > 1 else values
        return values if values.shape == (rows,) else None

    def falls(self, here: Tensor, sign: int) -> Tensor:
        """Whether the log-density becomes ever smaller far away, on one side."""
        falls, last = torch.ones_like(here, dtype=torch.bool), here
        for distance in _FAR:
            values = self.log_prob(sign * distance)
            if values is None:
                break
            # What overflows has fallen.
            falls &= (values < last) | ~values.isfinite()
            last = values
        return falls

    def where(self, chosen: Tensor) -> tuple[int, ...] | None:
        """The coordinates that a condition holds for; ``None`` for all."""
        if bool(chosen.all()):
            return None
        return tuple(self._coordinates[chosen.cpu()].tolist())


def rows_of(value: object, batch: int, rows: int) -> object:
    """An argument that has a row for each event, for other events: its first row for all."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[:1].expand(rows, *value.shape[1:])
    return value
