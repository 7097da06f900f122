"""What shape, mask and contexts of an event say of its entries, before anything is computed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.layers.attention_coupling.token_attention import Positions, Windows
from attnflow_plugin.layers.base import Context
from attnflow_plugin.masks import PATTERNS, MaskKind, make_mask
from attnflow_plugin.options import boolean, one_of

__all__ = [
    "Halves",
    "Layout",
    "halves_of",
    "name_of_mask",
    "positions_in",
    "present_in",
    "require_axes",
]


class Halves(NamedTuple):
    """What follows from mask and event shape alone."""

    passing: Tensor  # shape: (C, *S): M, one where the event passes and zero elsewhere
    attended: Tensor  # shape: (C, *S): 1 - M
    colours: Tensor  # shape: (1, C, *S): one where the event passes and minus one elsewhere


class Layout(NamedTuple):
    """What is known of an event whatever its entries are."""

    halves: Halves
    windows: Windows
    only_passing_seen: bool  # tokens are coordinates that pass or not, all in one window
    present: Tensor | None  # shape: (B, *S), boolean: false for padding; None for all

    @property
    def attended(self) -> Tensor:
        """One for every entry that is transformed, ``(C, *S)`` or ``(B, C, *S)``."""
        attended = self.halves.attended
        return attended if self.present is None else attended * self.present.unsqueeze(1)


def halves_of(mask: MaskKind, event: Tensor, flip: bool) -> Halves:
    """The halves of an event, from the cache where they were built before; see `make_mask`."""
    sizes = (mask, plain_shape(event)[1:], flip, event.dtype)
    return cached_constant(_build_halves, *sizes, device=event.device)


def _build_halves(
    mask: MaskKind, shape: torch.Size, flip: bool, dtype: torch.dtype, device: torch.device
) -> Halves:
    passing = make_mask(mask, shape[0], shape[1:], flip, device=device).to(dtype)
    return Halves(passing, 1 - passing, (2 * passing - 1).unsqueeze(0))


def positions_in(
    owner: str,
    positions: Positions,
    mask: MaskKind,
    patches: int | Sequence[int] | None = None,
    kernel: int | Sequence[int] = 1,
    window: int | Sequence[int] | None = None,
) -> Positions:
    """The option, if no other one tells positions apart that it does not.

    Raises:
        OptionError: one does, or it is unknown.
    """
    if isinstance(positions, str):
        one_of(owner, "positions", positions, (True, False, "periodic"))
    elif boolean(owner, "positions", positions):
        return True
    if not positions:
        alike = [kind for kind, pattern in PATTERNS.items() if pattern.spatial_period == 1]
        one_of(owner, "mask with positions=False", mask, alike)
        one_of(owner, "patches with positions=False", patches, [None])
    # Both have borders.
    one_of(owner, f"kernel with positions={positions!r}", kernel, [1])
    one_of(owner, f"window with positions={positions!r}", window, [None])
    return positions


def require_axes(
    owner: str, shape: Sequence[int], kernel: tuple[int, ...] = (), no_vector: bool = False
) -> None:
    """Check that an event ``(C, *S)`` has the axes that options need.

    Raises:
        ShapeError: it has others than the kernel, or is a vector, whose coordinates have weights of
            their own, where positions are wanted that are alike.
    """
    if kernel and len(kernel) != len(shape) - 1:
        raise ShapeError(
            f"{owner}: expected {len(kernel)} spatial axes as in kernel={kernel}, found an event "
            f"of shape {tuple(shape)}"
        )
    if no_vector and len(shape) == 1:
        raise ShapeError(
            f"{owner}: expected events of shape (C, N) with present, or positions=False or "
            f"'periodic', found a vector of shape {tuple(shape)}; give x.unflatten(1, (C, N)) for "
            f"N positions"
        )


def name_of_mask(
    owner: str,
    present: str | None,
    patches: int | Sequence[int] | None,
    kernel: int | Sequence[int],
) -> str | None:
    """The name of the mask of what is present, for a layer that can have one.

    Raises:
        OptionError: no name, or options by which a position sees parts of others.
    """
    if present is None:
        return None
    if not isinstance(present, str):
        raise OptionError(
            f"{owner}: expected present to be the name of a mask among the contexts, found "
            f"{present!r}"
        )
    one_of(owner, "patches with present", patches, [None])
    one_of(owner, "kernel with present", kernel, [1])
    return present


def present_in(
    owner: str, name: str | None, contexts: Context, event: Tensor, alone: bool
) -> Tensor | None:
    """Which positions of an event are there, boolean, ``(B, *S)``; ``None`` for all.

    Args:
        owner: class name for errors.
        name: of the mask in a mapping of contexts, or ``None`` where nothing is padded.
        contexts: the mapping.
        event: shape ``(B, C, *S)``.
        alone: whether the mask may also be given by itself, in place of a mapping.

    Raises:
        MissingContextError: there is no such mask.
        ShapeError: it is not boolean, or of another shape or device than the event.
    """
    if name is None:
        return None
    mask: object = contexts if alone else None
    if isinstance(contexts, Mapping):
        mask = contexts.get(name)
    if mask is None:
        found = sorted(contexts) if isinstance(contexts, Mapping) else type(contexts).__name__
        raise MissingContextError(
            f"{owner}: expected a context named {name!r}, the mask of what is present, found "
            f"{found}; give context={{{name!r}: mask}}"
        )
    rows, _, *spatial = plain_shape(event)
    expected = (rows, *spatial)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ShapeError(
            f"{owner}: expected the mask {name!r} as a boolean tensor, true where a position is "
            f"present, found {mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}; "
            f"give torch.as_tensor(mask, dtype=torch.bool, device=x.device)"
        )
    if (tuple(plain_shape(mask)), mask.device) != (expected, event.device):
        raise ShapeError(
            f"{owner}: expected the mask {name!r} of shape {expected} on {event.device}, one entry "
            f"for each position of a row, found {tuple(plain_shape(mask))} on {mask.device}"
        )
    return mask
