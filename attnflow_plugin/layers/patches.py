r"""Cutting an event into patches, the tokens, and the structure of the mask in them.

With ``patches=(2, 2)`` the tokens of an image are its four quadrants. A vector has no spatial axes,
so its coordinates are cut into runs instead. The features of a token are the channels and positions
inside its patch. They are divided into G groups, and each group has its own matrix.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from attnflow_plugin.constants import (
    cached_constant,
    differentiates_by_hand,
    in_transform,
    plain_shape,
)
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.masks import MaskKind, make_mask, pattern_of

#: Patches along each axis that is cut: one number or one per axis; None for single positions;
#: "auto" to choose by the size.
Patches = int | Sequence[int] | None | Literal["auto"]

#: The most tokens of "auto": O(N^3) is cheap up to here, and a low rank is faster beyond.
MOST_TOKENS = 256

# Counts for odd sizes, in order of preference. Up to 7, more patches are better, as with 4 and 2.
# The others are for sizes such as 11, which have no smaller divisor.
_ODD = (7, 5, 3, *range(11, MOST_TOKENS, 2))

_MOST_LISTED = 8

# The axes of an event, cut into patches, by the number of axes that are cut.
_EVENT = {
    1: "(n1 e1)",
    2: "(n1 e1) (n2 e2)",
    3: "(n1 e1) (n2 e2) (n3 e3)",
}
_TOKEN = {1: "n1", 2: "(n1 n2)", 3: "(n1 n2 n3)"}
_INSIDE = {1: "e1", 2: "e1 e2", 3: "e1 e2 e3"}


def patches_per_axis(
    owner: str, patches: Patches, shape: Sequence[int], *, has_auto: bool = False
) -> list[int]:
    """Number of patches along each axis that is cut, checked against the event ``(C, *S)``.

    With ``None`` every position is a patch. ``"auto"`` always divides the size. It is 4 if the size
    is divisible by 8, so that the edge is even and the mask is the same in all patches, and 2 for
    other even sizes. For odd sizes it is the first of 7, 5 and 3 that divides, or else the smallest
    divisor.
    Axes with a single position are not cut, nor are axes that would make more than `MOST_TOKENS`
    tokens in all.

    Args:
        owner: class name for errors.
        patches: number of patches, one or one per axis.
        shape: of the event.
        has_auto: whether to recommend ``"auto"`` if a size is not divisible.

    Raises:
        ShapeError: the number of axes differs, or a size is not divisible.
    """
    sizes = list(shape[1:]) or [shape[0]]
    if patches is None:
        return sizes
    if patches == "auto":
        return _chosen(sizes)
    counts = [patches] * len(sizes) if isinstance(patches, int) else list(patches)
    if len(counts) != len(sizes):
        raise ShapeError(
            f"{owner}: expected patches for {len(counts)} axes, found an event of shape "
            f"{tuple(shape)} with {len(sizes)} to cut"
        )
    uneven = [size for size, count in zip(sizes, counts, strict=True) if size % count]
    if uneven:
        what = "spatial size" if len(shape) > 1 else "number of channels (of a vector)"
        fitting = "; ".join(f"{size}: {_divisors(size)}" for size in dict.fromkeys(uneven))
        others = 'patches="auto" or patches=None' if has_auto else "patches=None"
        raise ShapeError(
            f"{owner}: expected a {what} divisible by patches {tuple(counts)}, found "
            f"{tuple(sizes)}. Choose one number per axis that divides its size ({fitting}), or "
            f"{others} (single positions)"
        )
    return counts


def _chosen(sizes: Sequence[int]) -> list[int]:
    counts = [_preferred(size) for size in sizes]
    while math.prod(counts) > MOST_TOKENS:
        counts[counts.index(max(counts))] = 1
    return counts


def _preferred(size: int) -> int:
    if size % 2 == 0:
        return 4 if size % 8 == 0 else 2
    for count in _ODD:
        if size % count == 0:
            return count
    return 1


def _divisors(size: int) -> str:
    """Numbers that divide a size, the smallest ones if there are many."""
    found = [str(count) for count in range(1, size + 1) if size % count == 0]
    return ", ".join(found[:_MOST_LISTED] + ["..."] * (len(found) > _MOST_LISTED))


class TokenLayout(NamedTuple):
    """Constants of a shape, a memory layout, a mask, patches and groups.

    Cutting into patches is a permutation of the entries. Reading them through an index takes one
    pass over memory, where a copy between the two orders of the axes has very short inner loops.

    **Pairs**: by a checkerboard every channel passes at one of two neighbouring positions and is
    attended at the other. Where patches consist of such pairs, each half is kept by itself, without
    the zeros in place of the other one, and its features are ordered (pair c).
    """

    gather: tuple[Tensor, ...]  # where features of tokens lie in the event; of each half by itself
    scatter: Tensor  # the inverse permutation
    passing: Tensor  # shape: (N, P): one where a feature passes and zero elsewhere
    attended: Tensor | None  # shape: (N, P): one minus that; None in halves by themselves
    alike: (
        Tensor | None
    )  # shape: (C, C): one where channels of a pair pass together; None: no pairs
    coupled: Tensor | None  # shape: (G, N, N), boolean: tokens that are alike; None for all
    classes: Tensor | None  # shape: (S, N), boolean: the same for tokens by class; None for all
    counts: Tensor  # shape: (G, N): attended features of each token
    class_counts: Tensor  # shape: (G, S): attended features of each token of a class
    channels: int  # features of a token are ordered (e c); one "channel" in a vector
    channels_last: bool

    def halves(self, event: Tensor) -> tuple[Tensor, Tensor]:
        """Rearrange ``(B, C, *S)`` to tokens and their features, passing and attended ones.

        They have shape ``(B, N, P)``, with zeros in place of the others; or half as many features.
        """
        memory = (event.movedim(1, -1) if self.channels_last else event).flatten(1)
        parts = permuted((memory,), self.gather, (self.scatter,))
        tokens = [part.unflatten(1, (plain_shape(self.passing)[0], -1)) for part in parts]
        if len(tokens) == 1:
            passing = tokens[0] * self.passing
            return passing, tokens[0] - passing
        return tokens[0], tokens[1]

    def join(self, passing: Tensor, attended: Tensor, shape: torch.Size) -> Tensor:
        """Undo `halves` for events of shape ``(C, *S)``, in the memory layout of the event."""
        # Zeros in place of a half: the sum puts both together.
        parts = (passing + attended,) if self.alike is None else (passing, attended)
        # Gradients in batches have no rule for flatten.
        rows = tuple(part.reshape(part.shape[0], part.shape[1:].numel()) for part in parts)
        (memory,) = permuted(rows, (self.scatter,), self.gather)
        if self.channels_last:
            return memory.reshape(-1, *shape[1:], shape[0]).movedim(-1, 1)
        return memory.reshape(-1, *shape)

    def deal(self, tokens: Tensor) -> Tensor:
        """Deal features to groups, ``(B, G, N, F)``; the last group is filled up with zeros."""
        return _deal(tokens, plain_shape(self.counts)[0], self.channels)

    def collect(self, grouped: Tensor) -> Tensor:
        """Undo `deal`."""
        if plain_shape(grouped)[1] == 1:
            return grouped.squeeze(1)
        features = grouped.transpose(1, 2).flatten(2)[..., : self.passing.shape[1]]
        return features.unflatten(2, (self.channels, -1)).mT.flatten(2)


def permuted(
    rows: tuple[Tensor, ...], gather: tuple[Tensor, ...], scatter: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The entries of adjacent rows in another order, cut into as many parts as there are indices.

    Args:
        rows: each ``(B, n)``.
        gather: where the entries of each part come from.
        scatter: the inverse: how ``rows`` come from the parts.
    """
    if differentiates_by_hand(*rows):
        return _Permuted.apply(len(rows), *rows, *gather, *scatter)
    together = torch.cat(rows, 1) if len(rows) > 1 else rows[0]
    return tuple(together.index_select(1, index) for index in gather)


class _Permuted(torch.autograd.Function):
    """A permutation whose gradient is the inverse; torch would add entries to zeros one by one."""

    @staticmethod
    def forward(ctx: Any, count: int, *given: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        rows, indices = given[:count], given[count:]
        ctx.gather, ctx.scatter = indices[:-count], indices[-count:]
        return permuted(rows, ctx.gather, ctx.scatter)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        found = permuted(gradients, ctx.scatter, ctx.gather)
        return (None, *found, *[None] * (len(ctx.gather) + len(ctx.scatter)))


def to_tokens(event: Tensor, patches: Sequence[int]) -> Tensor:
    """Rearrange ``(B, C, *S)`` to tokens and their features, ``(B, N, P)``."""
    event_side, token_side = _patterns(event.ndim - 1, len(patches))
    return rearrange(event, f"b {event_side} -> b {token_side}", **_axis_sizes(patches))


def _from_tokens(tokens: Tensor, shape: torch.Size, patches: Sequence[int]) -> Tensor:
    """Undo `to_tokens` for the tokens ``(N, P)`` of an event of shape ``(C, *S)``."""
    event_side, token_side = _patterns(len(shape), len(patches))
    cut = shape[-len(patches) :]
    edges = {f"e{k + 1}": size // patches[k] for k, size in enumerate(cut)}
    sizes = {**_axis_sizes(patches), **edges}
    return rearrange(tokens[None], f"b {token_side} -> b {event_side}", **sizes)[0]


def token_layout(
    mask: MaskKind,
    event: Tensor,
    flip: bool,
    patches: Sequence[int],
    groups: int,
    dense: bool = True,
    in_pairs: bool = False,
) -> TokenLayout:
    """The layout of an event, cached.

    ``coupled`` takes N^2 entries; unless ``dense`` there are ``classes`` in its place. Those are
    the tokens with the pattern of the first one and with its opposite, a third pattern (of a vector
    with ``mask="channel"``) belongs to none. The random mask has no classes.

    With ``in_pairs`` the halves are kept by themselves where mask and patches allow it.
    """
    shape = plain_shape(event)[1:]
    return cached_constant(
        _build_layout,
        mask,
        shape,
        flip,
        tuple(patches),
        groups,
        dense,
        in_pairs and groups == 1 and _has_pairs(mask, shape, patches),
        _is_channels_last(event),
        event.dtype,
        device=event.device,
    )


def _has_pairs(mask: MaskKind, shape: torch.Size, patches: Sequence[int]) -> bool:
    """Whether neighbours along the last axis lie in one patch and have opposite patterns."""
    pattern = pattern_of(mask)
    if len(shape) == 1 or pattern.spatial_period != 2 or shape[-1] // patches[-1] % 2:
        return False
    return pattern.is_same_in_patches(shape, patches)


def _build_layout(
    mask: MaskKind,
    shape: torch.Size,
    flip: bool,
    patches: tuple[int, ...],
    groups: int,
    dense: bool,
    in_pairs: bool,
    channels_last: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> TokenLayout:
    channels = shape[0] if len(shape) > 1 else 1
    places = torch.arange(shape.numel(), device=device)
    memory = places.reshape(*shape[1:], shape[0]).movedim(-1, 0) if channels_last else places
    gather = to_tokens(memory.reshape(1, *shape), patches)[0]
    scatter = places.reshape(gather.shape)
    passing = to_tokens(make_mask(mask, shape[0], shape[1:], flip, device=device)[None], patches)[0]
    gathers: tuple[Tensor, ...] = (gather.flatten(),)
    alike = None
    if in_pairs:
        gathers, scatter, alike = _pairs(gather, passing, channels)
    scatter = _from_tokens(scatter, shape, patches)
    scatter = scatter.movedim(0, -1) if channels_last else scatter
    attended = (~passing).to(dtype)
    # Features that pad the last group count as passing, since they are zero.
    dealt = _deal(attended[None], groups, channels)[0]
    counts = dealt.sum(-1)
    is_alike = pattern_of(mask).is_same_in_patches(shape, patches)
    classes = None if dense or is_alike else _classes(passing)
    return TokenLayout(
        gathers,
        scatter.flatten(),
        passing.to(dtype),
        None if in_pairs else attended,
        None if alike is None else alike.to(dtype),
        _coupled(dealt) if dense and not is_alike else None,
        classes,
        counts,
        counts[:, :1] if classes is None else (counts[:, None] * classes).amax(-1),
        channels,
        channels_last,
    )


def _pairs(
    gather: Tensor, passing: Tensor, channels: int
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Indices of both halves, where their features go in the tokens, and which channels are alike.

    Args:
        gather: where each feature of each token lies, ``(N, P)``.
        passing: which ones pass, of this shape.
        channels: C.
    """
    here, there = gather.unflatten(1, (-1, 2, channels)).unbind(2)
    first = passing.unflatten(1, (-1, 2, channels))[:, :, 0]
    halves = torch.where(first, here, there).flatten(), torch.where(first, there, here).flatten()
    places = torch.arange(first.numel(), device=gather.device).reshape(
        *first.shape[:2], 1, channels
    )
    places = places.expand(-1, -1, 2, -1).flatten(1)
    scatter = torch.where(passing, places, places + first.numel())
    pattern = first[0, 0]
    return halves, scatter, ~(pattern[:, None] ^ pattern)


def _coupled(attended: Tensor) -> Tensor:
    """Pairs of tokens that attend to the same features of a group, and to at least one."""
    shared = attended @ attended.mT
    counts = shared.diagonal(dim1=-2, dim2=-1)
    # Tokens whose patterns only overlap, as runs of a vector's coordinates can, are not coupled:
    # one would change entries that pass in the other.
    return (shared > 0) & (shared == counts[..., None, :]) & (shared == counts[..., :, None])


def _classes(passing: Tensor) -> Tensor:
    """Tokens with the pattern of the first one, and those with its opposite."""
    differs = passing ^ passing[:1]  # Torch 2.13 cannot compile != of booleans.
    return torch.stack([~differs.any(1), differs.all(1)])


def _deal(tokens: Tensor, groups: int, channels: int) -> Tensor:
    if groups == 1:
        return tokens.unsqueeze(1)
    # A group is a run of channels, like a head of ordinary attention.
    features = tokens.unflatten(2, (-1, channels)).mT.flatten(2)
    features = F.pad(features, (0, -plain_shape(features)[2] % groups))
    return features.unflatten(2, (groups, -1)).transpose(1, 2)


def _patterns(event_axes: int, cut_axes: int) -> tuple[str, str]:
    """Both sides of the rearrangement, without the batch; the channels of a vector are cut."""
    if event_axes == 1:
        return _EVENT[1], f"{_TOKEN[1]} {_INSIDE[1]}"
    return f"c {_EVENT[cut_axes]}", f"{_TOKEN[cut_axes]} ({_INSIDE[cut_axes]} c)"


def _is_channels_last(event: Tensor) -> bool:
    if event.ndim != 4 or in_transform():
        return False
    return event.is_contiguous(memory_format=torch.channels_last) and not event.is_contiguous()


def _axis_sizes(patches: Sequence[int]) -> dict[str, int]:
    return {f"n{k + 1}": count for k, count in enumerate(patches)}
