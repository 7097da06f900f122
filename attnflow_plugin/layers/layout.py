"""Halves, windows and padding of an event: what follows from its shape, mask and contexts."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError, boolean, one_of
from attnflow_plugin.layers.base import Context
from attnflow_plugin.layers.patches import to_tokens
from attnflow_plugin.masks import PATTERNS, MaskKind, make_mask

#: Whether weights depend on the relative positions of tokens, and whether these are on a torus.
Positions = bool | Literal["periodic"]


class Windows(NamedTuple):
    """The n positions, as N tokens of p positions, dealt to G windows of T tokens.

    Sizes need not be divisible: windows at the border are padded with tokens that nothing attends
    to. Shifted windows start in the middle of an unshifted one. The two halves that remain at the
    ends of an axis share a window, but do not attend to each other.

    A window holds the first positions of all its tokens, then the second ones, and so on. The
    features of a token and the tokens are then two axes of the same memory.
    """

    sizes: tuple[int, ...]  # tokens of a window along each axis
    tokens: Tensor  # shape: (G, T): the token at each place
    places: Tensor  # shape: (N,): the place of each token
    gather: Tensor | None  # shape: (G * p * T,): the position at each place; None if in order
    scatter: Tensor | None  # shape: (n,): the place of each position
    allowed: Tensor | None  # shape: (G, T, T), boolean: who may attend to whom; None for all

    def cut(self, features: Tensor) -> Tensor:
        """Deal ``(B, n, w)`` to windows, ``(B * G, p * T, w)``."""
        if self.gather is None:
            return features
        dealt = features.index_select(1, self.gather)
        return dealt.unflatten(1, (self.tokens.shape[0], -1)).flatten(0, 1)

    def join(self, dealt: Tensor) -> Tensor:
        """Undo `cut`."""
        if self.scatter is None:
            return dealt
        together = dealt.unflatten(0, (-1, self.tokens.shape[0])).flatten(1, 2)
        return together.index_select(1, self.scatter)

    def mask(self, bias: Tensor) -> Tensor:
        """The bias of all windows from that of one, ``(H, T, T)``, without forbidden pairs."""
        if self.allowed is None:
            return bias
        return bias.masked_fill(~self.allowed.unsqueeze(1), -math.inf)


class Halves(NamedTuple):
    """Constants of a mask and an event shape."""

    passing: Tensor  # shape: (C, *S): M, one where the event passes and zero elsewhere
    attended: Tensor  # shape: (C, *S): 1 - M
    colours: Tensor  # shape: (1, C, *S): one where the event passes and minus one elsewhere


class Layout(NamedTuple):
    """Everything about an event that does not depend on its entries."""

    halves: Halves
    windows: Windows
    only_passing_seen: bool  # tokens are coordinates that pass or not, all in one window
    present: Tensor | None  # shape: (B, *S), boolean: false for padding; None for all

    def attended(self) -> Tensor:
        """One for every entry that is transformed, ``(C, *S)`` or ``(B, C, *S)``."""
        attended = self.halves.attended
        return attended if self.present is None else attended * self.present.unsqueeze(1)


def halves_of(mask: MaskKind, event: Tensor, flip: bool) -> Halves:
    """The halves of an event, cached; see `make_mask`."""
    sizes = (mask, plain_shape(event)[1:], flip, event.dtype)
    return cached_constant(_build_halves, *sizes, device=event.device)


def _build_halves(
    mask: MaskKind, shape: torch.Size, flip: bool, dtype: torch.dtype, device: torch.device
) -> Halves:
    passing = make_mask(mask, shape[0], shape[1:], flip, device=device).to(dtype)
    return Halves(passing, 1 - passing, (2 * passing - 1).unsqueeze(0))


def token_windows(
    owner: str,
    grid: Sequence[int],
    patches: Sequence[int] | None,
    window: int | tuple[int, ...] | None,
    shifted: bool,
    device: torch.device,
) -> Windows:
    """The windows of an event, cached.

    Args:
        owner: class name for errors.
        grid: positions along each axis.
        patches: tokens along each axis; ``None`` for single positions.
        window: tokens along each axis of a window, one number or one per axis; ``None`` for all.
        shifted: move the windows by half their size, along axes with several windows.
        device: device of the indices.

    Raises:
        ShapeError: the event has another number of axes.
    """
    counts = grid if patches is None else patches
    per_axis = (window,) * len(grid) if window is None or isinstance(window, int) else window
    if len(per_axis) != len(grid):
        raise ShapeError(
            f"{owner}: expected {len(per_axis)} axes as in window={window}, found a grid of "
            f"positions {tuple(counts)}"
        )
    sizes = tuple(min(size or count, count) for size, count in zip(per_axis, counts, strict=True))
    return cached_constant(_build, tuple(grid), tuple(counts), sizes, shifted, device=device)


def _build(
    grid: tuple[int, ...],
    counts: tuple[int, ...],
    sizes: tuple[int, ...],
    shifted: bool,
    device: torch.device,
) -> Windows:
    tokens, places, allowed = _deal(counts, sizes, shifted, device)
    order = torch.arange(math.prod(grid), device=device)
    if sizes == grid:
        return Windows(sizes, tokens, places, None, None, allowed)
    positions = to_tokens(order.reshape(1, 1, *grid), counts)[0]
    gather = positions[tokens].mT.flatten()
    # Each place has a window, a token in it, and a first position.
    width, size = positions.shape[1], tokens.shape[1]
    first = places.div(size, rounding_mode="floor") * width * size + places % size
    target = first[:, None] + size * order[:width]
    scatter = torch.empty_like(order).index_copy(0, positions.flatten(), target.flatten())
    return Windows(sizes, tokens, places, gather, scatter, allowed)


def _deal(
    counts: tuple[int, ...], sizes: tuple[int, ...], shifted: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Token at each place, place of each token, and the pairs that may attend to each other."""
    gather = region = padding = torch.zeros(1, 1, dtype=torch.long, device=device)
    for count, size in zip(counts, sizes, strict=True):
        shift = size // 2 if shifted and size < count else 0
        windows = -(-count // size)
        places = torch.arange(windows * size, device=device).reshape(windows, size)
        token = (places + shift) % (windows * size)
        pad = (token >= count).long()
        # Tokens may attend to each other if their windows are the same before they are rolled.
        own = (token - shift).div(size, rounding_mode="floor") + 1
        gather = _outer(gather, token.clamp(max=count - 1), count)
        region = _outer(region, own * (1 - pad) + (windows + 1) * pad, windows + 2)
        padding = _outer(padding, pad, 2)
    total = math.prod(counts)
    # Padding goes to an extra place behind the last token.
    target = torch.where(padding > 0, total, gather).flatten()
    scatter = torch.zeros(total + 1, dtype=torch.long, device=device)
    scatter = scatter.index_copy(0, target, torch.arange(target.shape[0], device=device))[:total]
    whole = all(count % size == 0 for count, size in zip(counts, sizes, strict=True))
    alike = whole and (not shifted or sizes == counts)
    return gather, scatter, None if alike else region[:, :, None] == region[:, None, :]


def _outer(total: Tensor, axis: Tensor, base: int) -> Tensor:
    """Add an axis: numbers of ``(windows, places)`` as digits, of which the last runs fast."""
    both = total[:, None, :, None] * base + axis[None, :, None, :]
    return both.flatten(2).flatten(0, 1)


def positions_in(
    owner: str,
    positions: Positions,
    mask: MaskKind,
    patches: int | Sequence[int] | None = None,
    kernel: int | Sequence[int] = 1,
    window: int | Sequence[int] | None = None,
) -> Positions:
    """The option, if no other option distinguishes positions that this one does not.

    Raises:
        OptionError: another option does, or this one is unknown.
    """
    if isinstance(positions, str):
        one_of(owner, "positions", positions, (True, False, "periodic"))
    elif boolean(owner, "positions", positions):
        return True
    if not positions:
        alike = [kind for kind, pattern in PATTERNS.items() if pattern.spatial_period == 1]
        one_of(owner, "mask with positions=False", mask, alike)
        one_of(owner, "patches with positions=False", patches, [None])
    # Neighbourhoods and windows have borders.
    one_of(owner, f"kernel with positions={positions!r}", kernel, [1])
    one_of(owner, f"window with positions={positions!r}", window, [None])
    return positions


def require_axes(
    owner: str, shape: Sequence[int], kernel: tuple[int, ...] = (), no_vector: bool = False
) -> None:
    """Check that an event ``(C, *S)`` has the axes that options need.

    Raises:
        ShapeError: it has another number of axes than the kernel, or is a vector although the
            options need positions with shared weights.
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
    """The name of the mask of present positions, if the layer can have one.

    Raises:
        OptionError: it is not a name, or other options mix positions.
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
    """Which positions of an event are present, boolean, ``(B, *S)``; ``None`` for all.

    Args:
        owner: class name for errors.
        name: name of the mask in a mapping of contexts, or ``None`` without padding.
        contexts: the mapping.
        event: shape ``(B, C, *S)``.
        alone: whether the mask may also be given by itself instead of a mapping.

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
            f"{owner}: expected a context named {name!r}, the mask of present positions, found "
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
