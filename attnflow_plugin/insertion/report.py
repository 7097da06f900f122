"""What an insertion did, for people and for programs."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from attnflow_plugin.insertion.optimizers import extend


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
    """All inserted layers, in the order of the model's modules; ``print`` shows a table.

    Attributes:
        inserted: the layers with their places.
        left_out: sentences on layers that could have had no effect at a place.
        kept_inside: sentences on attention that stands in for other attention, so that events stay
            on their circles or in their boxes.
    """

    inserted: tuple[InsertedLayer, ...]
    left_out: tuple[str, ...] = ()
    kept_inside: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The inserted layers."""
        return tuple(entry.layer for entry in self.inserted)

    @property
    def num_parameters(self) -> int:
        """Number of parameters that were added to the model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameters(self) -> Iterator[nn.Parameter]:
        """The new parameters, for an optimizer of their own.

        One made before the insertion does not know them; `add_to` puts them into it.
        """
        return nn.ModuleList(self.layers).parameters()

    def add_to(self, optimizer: Optimizer, group: int = 0) -> None:
        """Put the new parameters into a group of an optimizer that was made before the insertion.

        They get the settings of the group. What the optimizer knows of the other parameters stays
        as it is, and so do the groups, which schedulers count: every scheduler goes on. Parameters
        that the optimizer has already are left where they are.

        A checkpoint of the optimizer lists parameters in the order of its groups: load it into an
        optimizer that was made before an insertion and extended after it in the same way.

        Args:
            optimizer: an optimizer of ``torch.optim``, or of a class derived from one.
            group: number of the group in ``optimizer.param_groups``.

        Raises:
            OptionError: the group does not exist, or the optimizer cannot take these parameters, as
                LBFGS; the optimizer is untouched.
        """
        named: dict[nn.Parameter, str] = {}
        for entry in self.inserted:
            for name, parameter in entry.layer.named_parameters(entry.name):
                named.setdefault(parameter, name)
        extend(optimizer, group, {name: parameter for parameter, name in named.items()})

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
        left_out = [f"left out: {sentence}" for sentence in self.left_out]
        inside = [f"kept inside: {sentence}" for sentence in self.kept_inside]
        return "\n".join([total, *lines, *inside, *left_out])
