"""What the package has to know about a host library, and importing what is needed on use only.

The package is written once, free of hosts; :class:`Host` is all that it asks of one.
"""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from attnflow_plugin.errors import MissingHostError
from attnflow_plugin.inputs import EventSize
from attnflow_plugin.layers import InvertibleLayer
from attnflow_plugin.layers.attentions import ATTENTIONS
from attnflow_plugin.layers.base import Role
from attnflow_plugin.layers.masked_attention import MaskedAttention

if TYPE_CHECKING:
    from attnflow_plugin.insertion.domains import Domain

__all__ = ["Host", "Role", "Run", "attentions_of", "is_users_own", "methods_of", "require"]

#: One way of running a model: a function of a batch and of what else the user gives with it.
Run = Callable[..., Any]

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
        base_type: base class of its distributions.
        attentions: the attention layers by name, see :func:`attentions_of`.
        roles: the host's classes and their roles; the first match counts. Layers of this package
            have a role of their own.
        iterating: classes that run every element of their module lists, in order. A layer can be
            inserted into such a list; anywhere else it is chained to its neighbour.
        to_latent_method: the method of layers that maps data to latent.
        one_way_errors: what layers raise that cannot run in one of the directions.
    """

    name: ClassVar[str]
    layer_type: ClassVar[type[nn.Module]]
    base_type: ClassVar[type[nn.Module]]
    attentions: ClassVar[Mapping[str, type[MaskedAttention]]]
    roles: ClassVar[tuple[tuple[tuple[type[nn.Module], ...], Role], ...]]
    iterating: ClassVar[tuple[type[nn.Module], ...]]
    to_latent_method: ClassVar[str]
    one_way_errors: ClassVar[tuple[type[Exception], ...]]

    def known_role(self, module: nn.Module) -> Role | None:
        """The role of a class of the host, or of a user's subclass of one."""
        if getattr(module, "is_prior", False):
            return "other"
        if isinstance(module, InvertibleLayer) and module.role is not None:
            return module.role
        for types, role in self.roles:
            if isinstance(module, types):
                return role
        return None

    def guessed_role(self, module: nn.Module) -> Role | None:
        """The role of a user's own layer, by its name; ``None`` if that says nothing."""
        name = type(module).__name__.lower()
        return next((role for pattern, role in _NAMES if re.search(pattern, name)), None)

    @abstractmethod
    def to_latent(self, model: nn.Module) -> Sequence[Run]:
        """Ways to run a model from data to latent, that of the user first."""

    def to_data(self, model: nn.Module) -> Sequence[Run]:
        """Ways to run a model from latent to data, for as many rows as a batch has.

        They return samples, or a tuple that begins with them: the user's ``sample``, and then what
        runs without a base distribution.
        """
        own: list[Run] = [partial(self.sample, model)] if hasattr(model, "sample") else []
        both = self.there_and_back(model)
        return own if both is None else [*own, both]

    @staticmethod
    @abstractmethod
    def sample(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
        """One sample for each row of a batch, by the model's own method."""

    @abstractmethod
    def there_and_back(self, model: nn.Module) -> Run | None:
        """From a batch to latents and back, where a model has methods for that."""

    @abstractmethod
    def domains(self, layer: nn.Module) -> "tuple[Domain | None, Domain | None]":
        """What a class of the host says of events on its side of the data and of the latents."""

    @abstractmethod
    def event_size(self, model: nn.Module) -> EventSize | None:
        """What the base distributions say of the data, where they and the layers are known."""

    @abstractmethod
    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """One layer that runs ``layers``, listed in the host's own order."""


def attentions_of(layers: ModuleType) -> dict[str, type[MaskedAttention]]:
    """The attention layers among the layers of a host, by name."""
    return {name: getattr(layers, kind.__name__) for name, kind in ATTENTIONS.items()}


def is_users_own(model: nn.Module, *methods: str) -> bool:
    """Whether a class of the user's defines one of these methods, and not a host."""
    found = [getattr(type(model), name, None) for name in methods]
    packages = {getattr(each, "__module__", "").partition(".")[0] for each in found if each}
    return bool(packages - {"normflows", "nflows", "attnflow_plugin"})


def methods_of(model: nn.Module, *names: str) -> list[Run]:
    """Those of some methods that a model has."""
    return [getattr(model, name) for name in names if hasattr(model, name)]


def require(subject: str, module: str, extra: str, also: str = "") -> ModuleType:
    """Import ``module``, or say how to install it.

    Args:
        subject: who needs it; the error begins with it.
        module: what to import.
        extra: the extra of this package that brings it.
        also: what to install beside.

    Raises:
        MissingHostError: the library, or something it needs, is not installed, or not for this
            torch.
    """
    try:
        return importlib.import_module(module)
    # A build of torchvision for another build of torch fails with the other two.
    except (ImportError, OSError, RuntimeError) as error:
        library = module.partition(".")[0]
        raise MissingHostError(
            f"{subject} needs {library}, which cannot be imported ({error}). "
            f'Install it with: pip install "attnflow-plugin[{extra}]"{also}'
        ) from error
