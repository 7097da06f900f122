"""How the entries of an event lie in tokens: their order, the two halves, and groups of features.

The features of a token are divided into G groups, and each group has its own matrix.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.constants import (
    cached_constant,
    differentiates_by_hand,
    in_transform,
    plain_shape,
)
from attnflow_plugin.layers.patches import from_tokens, to_tokens
from attnflow_plugin.masks import MaskKind, make_mask, pattern_of


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
    alike: Tensor | None  # shape: (C, C): one where channels pass together; None without pairs
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
    scatter = from_tokens(scatter, shape, patches)
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


def _is_channels_last(event: Tensor) -> bool:
    if event.ndim != 4 or in_transform():
        return False
    return event.is_contiguous(memory_format=torch.channels_last) and not event.is_contiguous()
