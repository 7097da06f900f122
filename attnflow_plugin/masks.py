r"""The binary patterns that split an event into a passing and an attended half.

A mask $M$ is ``True`` where the event passes, $x_1 = M x$, and ``False`` where it is attended,
$x_2 = (1 - M) x$ (Figure 2 of the paper). Layers do not store a mask. It is made for the spatial
size of the input, so that one layer works at every resolution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.errors import ShapeError, one_of, positive_int

__all__ = ["PATTERNS", "MaskKind", "Pattern", "make_mask", "require_positions"]

MaskKind = Literal["spatial-channel", "spatial", "channel", "random"]


class Pattern(NamedTuple):
    """A kind of mask: how it is built, and its period along the axes."""

    build: Callable[[tuple[int, ...], torch.device | str | None], Tensor]  # for a shape (C, *S)
    channel_period: int | None  # along the channels; None if it does not repeat
    spatial_period: int | None  # along every spatial axis

    @property
    def repeats(self) -> bool:
        """Whether a few patterns of channels repeat over all positions."""
        return self.spatial_period is not None

    def is_same_in_patches(self, shape: Sequence[int], patches: Sequence[int]) -> bool:
        """Whether the sizes guarantee that every patch has the same pattern.

        Args:
            shape: shape of the event, ``(C, *S)``.
            patches: number of patches along every axis of S, or along C if there is no other.
        """
        if math.prod(patches) == 1:
            return True
        period = self.spatial_period if len(shape) > 1 else self.channel_period
        sizes = zip(shape[1:] or shape, patches, strict=True)
        edges = [size // count for size, count in sizes if count > 1]
        return period is not None and all(edge % period == 0 for edge in edges)


def pattern_of(kind: MaskKind) -> Pattern:
    """The pattern of a kind; graphs of torch 2.4 cannot take a table from several modules."""
    return PATTERNS[kind]


def make_mask(
    kind: MaskKind,
    channels: int,
    spatial: Sequence[int],
    flip: bool = False,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Binary pattern over an event of shape ``(channels, *spatial)``.

    | ``kind``            | ``True`` (passes) where                                    |
    |---------------------|------------------------------------------------------------|
    | ``spatial-channel`` | $(c + i + j) \bmod 2 = 1$, the paper's 3-D checkerboard    |
    | ``spatial``         | $(i + j) \bmod 2 = 1$                                      |
    | ``channel``         | the first half of the channels (the larger one if odd)     |
    | ``random``          | a fixed random half of the entries, the same in every call |

    Without spatial axes $i + j$ is an empty sum, so that ``spatial`` is the same everywhere.

    Args:
        kind: the pattern.
        channels: number of channels, C.
        spatial: sizes of the 0 to 3 spatial axes.
        flip: swap the two halves.
        device: device of the mask.

    Returns:
        Boolean tensor, shape ``(C, *spatial)``.

    Raises:
        OptionError: ``kind`` is unknown, or a size is below one.
        ShapeError: there are more than three spatial axes.

    Reference:
        Sukthanker et al., *Generative Flows with Invertible Attentions*, CVPR 2022, Figure 2.

    Examples:
        >>> make_mask("spatial-channel", 1, (2, 3)).int().tolist()
        [[[0, 1, 0], [1, 0, 1]]]
    """
    one_of("make_mask", "kind", kind, PATTERNS)
    if len(spatial) > 3:
        raise ShapeError(f"make_mask: expected 0 to 3 spatial axes, found {tuple(spatial)}")
    shape = tuple(positive_int("make_mask", "every size", size) for size in (channels, *spatial))
    mask = PATTERNS[kind].build(shape, device)
    return ~mask if flip else mask


def require_positions(owner: str, shape: Sequence[int]) -> None:
    """Check that an event ``(C, *S)`` is not empty.

    Args:
        owner: class name for errors.
        shape: shape of the event.

    Raises:
        ShapeError: a size is zero.
    """
    if 0 in shape:
        raise ShapeError(
            f"{owner}: expected events with at least one position, found {tuple(shape)}; check "
            f"whether the data are cropped before this layer"
        )


def _parity(sizes: tuple[int, ...], device: torch.device | str | None) -> Tensor:
    axes = [
        torch.arange(size, device=device).reshape(-1, *[1] * (len(sizes) - 1 - axis))
        for axis, size in enumerate(sizes)
    ]
    return reduce(torch.add, axes) % 2 == 1


def _spatial(shape: tuple[int, ...], device: torch.device | str | None) -> Tensor:
    # A channel axis of size one adds nothing to the sum of the indices.
    return _parity((1, *shape[1:]), device).expand(shape).clone()


def _channel(shape: tuple[int, ...], device: torch.device | str | None) -> Tensor:
    first_half = 2 * torch.arange(shape[0], device=device) < shape[0]
    return first_half.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def _random(shape: tuple[int, ...], device: torch.device | str | None) -> Tensor:
    # A hash of the index instead of a random generator: it uses no global state, gives the same
    # pattern on every device, and can be traced by torch.compile.
    count = reduce(lambda a, b: a * b, shape)
    index = torch.arange(count, device=device)
    hashed = (index + 1) * 2654435761 % 4294967296
    hashed = (hashed ^ (hashed >> 15)) * 2246822519 % 4294967296
    hashed = (hashed ^ (hashed >> 13)) * 3266489917 % 4294967296
    mask = torch.zeros(count, dtype=torch.bool, device=device)
    mask[hashed.argsort()[: count // 2]] = True
    return mask.reshape(shape)


PATTERNS: Mapping[MaskKind, Pattern] = {
    "spatial-channel": Pattern(_parity, channel_period=2, spatial_period=2),
    "spatial": Pattern(_spatial, channel_period=1, spatial_period=2),
    "channel": Pattern(_channel, channel_period=None, spatial_period=1),
    "random": Pattern(_random, channel_period=None, spatial_period=None),
}
