"""What the insertion engine has to know about a host library."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

__all__ = ["Host", "Role"]

Role = Literal["actnorm", "permutation", "coupling", "container", "other"]

# How users tend to call layers of their own; the first match counts.
_NAMES: tuple[tuple[str, Role], ...] = (
    (r"coupling|autoregressive|spline", "coupling"),
    (r"norm(?!alizingflow)", "actnorm"),
    (r"perm|1x1|onebyone|linear|rotation|householder|shuffle", "permutation"),
    (r"squeeze|split|merge|reshape|logit|dequant|identity", "other"),
)


class Host(ABC):
    """The vocabulary of one host library.

    Attributes:
        name: the host's name.
        layer_type: base class of all invertible layers.
        attentions: the attention layers by name.
        roles: classes and their roles; the first match counts.
        iterating: classes that run every element of their module lists, in order. A layer can be
            inserted into such a list; anywhere else it is chained to its neighbour.
    """

    name: ClassVar[str]
    layer_type: ClassVar[type[nn.Module]]
    attentions: ClassVar[Mapping[str, type[nn.Module]]]
    roles: ClassVar[tuple[tuple[tuple[type[nn.Module], ...], Role], ...]]
    iterating: ClassVar[tuple[type[nn.Module], ...]]

    def known_role(self, module: nn.Module) -> Role | None:
        """The role of a class of the host, or of a user's subclass of one."""
        if getattr(module, "is_prior", False):
            return "other"
        for types, role in self.roles:
            if isinstance(module, types):
                return role
        return None

    def guessed_role(self, module: nn.Module) -> Role:
        """The role of a user's own layer, by its name; what has none is the step's transform."""
        name = type(module).__name__.lower()
        return next((role for pattern, role in _NAMES if re.search(pattern, name)), "coupling")

    @abstractmethod
    def run_to_latent(self, model: nn.Module, example: Tensor, context: Tensor | None) -> None:
        """Run ``model`` from data to latent, without the base distribution where possible."""

    @abstractmethod
    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """One layer that runs ``layers``, listed in the host's own order."""
