"""What an insertion did, for people and for programs."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["InsertedLayer", "InsertionReport"]


@dataclass(frozen=True)
class InsertedLayer:
    """One inserted layer.

    Attributes:
        name: its name in the model, as in ``model.get_submodule(name)``.
        layer: the layer itself.
        position: the position that asked for it.
        neighbour: name, before the insertion, of the layer it stands beside.
        neighbour_type: class name of that layer.
        event_shape: shape of the events there, ``(C, *S)``.
    """

    name: str
    layer: nn.Module
    position: str
    neighbour: str
    neighbour_type: str
    event_shape: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the layer."""
        return sum(parameter.numel() for parameter in self.layer.parameters())


@dataclass(frozen=True)
class InsertionReport:
    """All inserted layers, in the order of the model's modules; ``print`` shows a table."""

    inserted: tuple[InsertedLayer, ...]

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The inserted layers."""
        return tuple(entry.layer for entry in self.inserted)

    @property
    def num_parameters(self) -> int:
        """Number of parameters that were added to the model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameters(self) -> Iterator[nn.Parameter]:
        """The new parameters, for ``optimizer.add_param_group({"params": report.parameters()})``.

        An optimizer made before the insertion does not know them.
        """
        return nn.ModuleList(self.layers).parameters()

    def __str__(self) -> str:
        rows = [("layer", "class", "event", "params", "where")]
        for entry in self.inserted:
            flip = " (flipped)" if getattr(entry.layer, "flip", False) else ""
            rows.append(
                (
                    entry.name,
                    type(entry.layer).__name__ + flip,
                    "x".join(map(str, entry.event_shape)),
                    f"{entry.num_parameters:,}",
                    f"{entry.position}: {entry.neighbour} ({entry.neighbour_type})",
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [
            "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)])
            + f"  {row[4]}"
            for row in rows
        ]
        total = f"{len(self.inserted)} layers with {self.num_parameters:,} parameters inserted"
        return "\n".join([total, *lines])
