"""From a feature map to a vector of parameters: the nets of Full-Glow's conditional layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from attnflow_plugin.errors import ShapeError

__all__ = ["ConditionTrunk"]


class ConditionTrunk(nn.Module):
    """Three small convolutions, then four linear layers, of which the last one starts at zero.

    By default the convolutions keep the size and their outputs are averaged over positions, so that
    the trunk serves every size. With ``size`` it is that of Full-Glow: the convolutions shrink the
    map by four positions along each axis and the first linear layer sees all of what is left, which
    at high resolutions is most of the parameters of the model.

    Args:
        inputs: channels of the map.
        outputs: parameters for each sample.
        size: the only size of maps to accept, height and width of at least five.

    Raises:
        ShapeError: a size that is too small, or maps of another size.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    def __init__(self, inputs: int, outputs: int, *, size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.size = None if size is None else tuple(size)
        if self.size is None:
            convolutions, features = _convolutions(inputs, 16, 32, padding=1), 32
            reduction: nn.Module = nn.AdaptiveAvgPool2d(1)
        else:
            height, width = self.size
            if min(self.size) < 5:
                raise ShapeError(
                    f"{type(self).__name__}: expected a size of at least 5x5, found "
                    f"{height}x{width}"
                )
            convolutions, features = _convolutions(inputs, 4, 2), 2 * (height - 4) * (width - 4)
            reduction = nn.Identity()
        last = nn.Linear(48, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            *convolutions,
            reduction,
            nn.Flatten(),
            *(nn.Linear(features, 32), nn.ReLU()),
            *(nn.Linear(32, 64), nn.ReLU()),
            *(nn.Linear(64, 48), nn.ReLU()),
            last,
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs)``."""
        if self.size is not None and maps.shape[2:] != self.size:
            raise ShapeError(
                f"{type(self).__name__}: expected maps of the size {self.size} that it is tied to, "
                f"found {tuple(maps.shape[2:])}; a trunk that pools takes any"
            )
        return self.net(maps)


def _convolutions(inputs: int, middle: int, outputs: int, padding: int = 0) -> list[nn.Module]:
    return [
        *(nn.Conv2d(inputs, 8, 1), nn.ReLU()),
        *(nn.Conv2d(8, middle, 3, padding=padding), nn.ReLU()),
        *(nn.Conv2d(middle, outputs, 3, padding=padding), nn.ReLU()),
    ]
