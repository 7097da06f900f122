r"""Cutting an event into tokens, and the structure that the mask gives them.

Tokens are patches. Those of an image with ``patches=(2, 2)`` are its four quadrants; a vector has
no spatial axes, so its coordinates are cut into runs instead. A token's features are the channels
and positions inside its patch. The features are dealt to G groups; each group has its own matrix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from attnflow_plugin.constants import cached_constant, in_transform
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.masks import MaskKind, make_mask

__all__ = [
    "TokenLayout",
    "from_groups",
    "from_tokens",
    "like_channels_last",
    "patches_per_axis",
    "to_groups",
    "to_tokens",
    "token_layout",
]

# The axes of an event, cut into patches, by the number of axes that are cut.
_EVENT = {
    1: "(n1 e1)",
    2: "(n1 e1) (n2 e2)",
    3: "(n1 e1) (n2 e2) (n3 e3)",
}
_TOKEN = {1: "n1", 2: "(n1 n2)", 3: "(n1 n2 n3)"}
_INSIDE = {1: "e1", 2: "e1 e2", 3: "e1 e2 e3"}


class TokenLayout(NamedTuple):
    """What follows from mask, event shape, patches and groups alone."""

    passing: Tensor  # shape: (N, P), boolean
    coupled: Tensor  # shape: (G, N, N), boolean: co-attended tokens
    counts: Tensor  # shape: (G, N), float: attended features of each token


def patches_per_axis(owner: str, patches: int | Sequence[int], shape: Sequence[int]) -> list[int]:
    """Number of patches along each axis that is cut, checked against the event ``(C, *S)``.

    Raises:
        ShapeError: the number of axes differs, or a size does not divide.
    """
    sizes = list(shape[1:]) or [shape[0]]
    counts = [patches] * len(sizes) if isinstance(patches, int) else list(patches)
    if len(counts) != len(sizes):
        raise ShapeError(
            f"{owner}: expected patches for {len(counts)} axes, found an event of shape "
            f"{tuple(shape)} with {len(sizes)} to cut"
        )
    if any(size % count for size, count in zip(sizes, counts, strict=True)):
        what = "spatial size" if len(shape) > 1 else "number of channels (of a vector)"
        raise ShapeError(
            f"{owner}: expected a {what} divisible by patches {tuple(counts)}, found {tuple(sizes)}"
        )
    return counts


def to_tokens(event: Tensor, patches: Sequence[int]) -> Tensor:
    """Rearrange ``(B, C, *S)`` to tokens and their features, ``(B, N, P)``."""
    axes = len(patches)
    channel, inside = ("c ", "(c " + _INSIDE[axes] + ")") if event.ndim > 2 else ("", "e1")
    pattern = f"b {channel}{_EVENT[axes]} -> b {_TOKEN[axes]} {inside}"
    return rearrange(event, pattern, **_axis_sizes(patches))


def from_tokens(tokens: Tensor, patches: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Undo :func:`to_tokens` for an event of shape ``(C, *S)``."""
    axes = len(patches)
    sizes = _axis_sizes(patches)
    spatial = shape[1:] or shape
    sizes |= {f"e{k + 1}": size // patches[k] for k, size in enumerate(spatial)}
    channel, inside = ("c ", "(c " + _INSIDE[axes] + ")") if len(shape) > 1 else ("", "e1")
    return rearrange(tokens, f"b {_TOKEN[axes]} {inside} -> b {channel}{_EVENT[axes]}", **sizes)


def to_groups(tokens: Tensor, groups: int) -> Tensor:
    """Deal features to groups, ``(B, G, N, F)``; the last group is filled up with zeros."""
    missing = -tokens.shape[-1] % groups
    if missing:
        tokens = F.pad(tokens, (0, missing))
    return tokens.unflatten(-1, (groups, -1)).transpose(1, 2)


def from_groups(grouped: Tensor, features: int) -> Tensor:
    """Undo :func:`to_groups` for tokens of P features."""
    return grouped.transpose(1, 2).flatten(2)[..., :features]


def like_channels_last(images: Tensor, event: Tensor) -> Tensor:
    """Bring images to the memory layout of the event, in which the next convolution will run."""
    if event.ndim != 4 or (not torch.compiler.is_compiling() and in_transform()):
        return images
    if event.is_contiguous(memory_format=torch.channels_last):
        return images.contiguous(memory_format=torch.channels_last)
    return images


def token_layout(
    mask: MaskKind,
    shape: Sequence[int],
    flip: bool,
    patches: Sequence[int],
    groups: int,
    device: torch.device,
) -> TokenLayout:
    """The layout of an event, from the cache where it was built before."""
    return cached_constant(
        _build_layout, mask, tuple(shape), flip, tuple(patches), groups, device=device
    )


def _build_layout(
    mask: MaskKind,
    shape: tuple[int, ...],
    flip: bool,
    patches: tuple[int, ...],
    groups: int,
    device: torch.device,
) -> TokenLayout:
    passing = to_tokens(make_mask(mask, shape[0], shape[1:], flip, device=device)[None], patches)
    # Features that fill up the last group count as passing: they are zero on the way in and out.
    attended = to_groups((~passing).float(), groups)[0]
    coupled = attended @ attended.mT > 0
    return TokenLayout(passing[0], coupled, attended.sum(-1))


def _axis_sizes(patches: Sequence[int]) -> dict[str, int]:
    return {f"n{k + 1}": count for k, count in enumerate(patches)}
