"""What the package has to know about a host library, and importing what is needed on use only.

Everything is written once, free of hosts, with a host as its first argument. `Host` is all that is
asked of one, and `bound` makes a function of any host one of this host.
"""

import functools
import importlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

from torch import Tensor, nn

from attnflow_plugin.errors import MissingHostError
from attnflow_plugin.inputs import HOSTS, EventSize
from attnflow_plugin.layers import BoundedAttention, InvertibleLayer
from attnflow_plugin.layers.attentions import ATTENTIONS
from attnflow_plugin.layers.base import Context, MaskedAttention, Role

if TYPE_CHECKING:
    from attnflow_plugin.backbones.multiscale import MultiscalePlan
    from attnflow_plugin.insertion.domains import Domain

#: One way of running a model: a function of a batch and of what else the user gives with it.
Run = Callable[..., Any]
#: What a host's models are.
Model = TypeVar("Model", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# How users tend to call layers of their own; the first match counts.
_NAMES: tuple[tuple[str, Role], ...] = (
    (r"coupling|autoregressive|spline", "coupling"),
    (r"norm(?!alizingflow)", "actnorm"),
    (r"perm|1x1|onebyone|linear|rotation|householder|shuffle", "permutation"),
    (r"squeeze|split|merge|reshape|logit|dequant|identity", "other"),
)


class Host(ABC, Generic[Model]):
    """What the package asks of one host library.

    Attributes:
        name: the host's name.
        layer_type: base class of all invertible layers.
        base_type: base class of its distributions.
        layers: the module with this package's layers as classes of the host.
        roles: the host's classes and their roles; the first match counts. Layers of this package
            have a role of their own.
        iterating: classes that run every element of their module lists, in order. A layer can be
            inserted into such a list; anywhere else it is chained to its neighbour.
        to_latent_method: the method of layers that maps data to latent.
        one_way_errors: what layers raise that cannot run in one of the directions.
        actnorm: its normalization, which initialises itself on some first call.
        learning_actnorm: a subclass that initialises itself from the next batch.
        ready_actnorm: a subclass that never does, without the branch that breaks compiled graphs.
        squeeze: its layer that moves pixels to channels.
        keeps_first: whether its multi-scale container passes on the first half of the channels.
        too_large: layers that hold others and are no graph of their own in ``compile_model``.
    """

    name: ClassVar[str]
    layer_type: ClassVar[type[nn.Module]]
    base_type: ClassVar[type[nn.Module]]
    layers: ClassVar[ModuleType]
    roles: ClassVar[tuple[tuple[tuple[type[nn.Module], ...], Role], ...]]
    iterating: ClassVar[tuple[type[nn.Module], ...]]
    to_latent_method: ClassVar[str]
    one_way_errors: ClassVar[tuple[type[Exception], ...]]
    actnorm: ClassVar[type[nn.Module]]
    learning_actnorm: ClassVar[type[nn.Module]]
    ready_actnorm: ClassVar[type[nn.Module]]
    squeeze: ClassVar[type[nn.Module]]
    keeps_first: ClassVar[bool]
    too_large: ClassVar[tuple[type[nn.Module], ...]]

    def __reduce__(self) -> str:
        # The only one of its class, in copies and pickles of models too.
        return self.name.upper()

    @property
    def attentions(self) -> Mapping[str, type[MaskedAttention]]:
        """The attention layers of the host by name."""
        return {name: getattr(self.layers, kind.__name__) for name, kind in ATTENTIONS.items()}

    @property
    def bounded_attention(self) -> type[BoundedAttention]:
        """The layer of the host that takes their place on circles and in boxes."""
        return getattr(self.layers, BoundedAttention.__name__)

    # The vocabulary.

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
    def domains(self, layer: nn.Module) -> "tuple[Domain | None, Domain | None]":
        """What a class of the host says of events on its side of the data and of the latents."""

    def is_own(self, module: nn.Module) -> bool:
        """Whether a class is of the host or this package, so that it keeps the size of events."""
        return type(module).__module__.partition(".")[0] in (self.name, "attnflow_plugin")

    @abstractmethod
    def event_size(self, model: nn.Module) -> EventSize | None:
        """What the base distributions say of the data, where they and the layers are known."""

    # Running any model.

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

    # Densities and samples.

    @abstractmethod
    def check_context(
        self, owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
    ) -> None:
        """Raise for a context or labels that a model cannot take.

        Args:
            owner: the function, for errors.
            model: a model of the host.
            context: what was given.
            rows: number of rows of data.
            read: look at labels on accelerators too.

        Raises:
            OptionError: a context for a model that has no use for one.
            MissingContextError: none for a model that needs one.
            ShapeError: a context that is no tensor, for other rows, or labels of no class.
        """

    @abstractmethod
    def log_prob(self, model: nn.Module, x: Tensor, context: Context) -> Tensor:
        """The model's own log-density, however it takes its context."""

    @abstractmethod
    def draw(
        self, model: nn.Module, num_samples: int, context: Context, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Samples at a temperature, and their log-densities at temperature one, with a graph."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> nn.Module | None:
        """What turns the context of a model that was built with one into that of its layers."""

    @abstractmethod
    def log_prob_and_encoded(
        self, model: nn.Module, x: Tensor, context: Context
    ) -> tuple[Tensor, Context]:
        """The log-density of a model with an encoder, and what that made of the context."""

    # Parts of models.

    @abstractmethod
    def make_actnorm(self, channels: int) -> nn.Module:
        """Its normalization, for images."""

    @abstractmethod
    def is_initialised(self, actnorm: nn.Module) -> bool:
        """Whether one of its normalizations has seen data."""

    @abstractmethod
    def make_permutation(self, channels: int, *, dense: bool) -> nn.Module:
        """Its 1x1 convolution, dense where it has both kinds, or of an LU decomposition."""

    @abstractmethod
    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """One layer that runs ``layers``, listed in the host's own order."""

    def in_turn(self, layer: nn.Module, kind: type[nn.Module]) -> tuple[nn.Module, ...]:
        """What a layer of a class runs one after the other by ``forward``; it is itself that."""
        del kind
        return (layer,)

    @abstractmethod
    def step(self, layers: list[nn.Module]) -> list[nn.Module]:
        """The layers of one step, from data to latent, as its models list them."""

    @abstractmethod
    def layer_to_latent(
        self, layer: nn.Module, event: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Run one layer from data to latent."""

    @abstractmethod
    def assemble(self, plan: "MultiscalePlan", encoder: nn.Module | None = None) -> Model:
        """The model of a plan.

        Args:
            plan: what it consists of.
            encoder: turns what the user gives as context into what the layers take, a tensor or a
                mapping of names to tensors; ``nn.Identity()`` if that is the same. ``None`` for a
                model without context.
        """


def bound(
    host: Host[Model], function: Callable[Concatenate[Host[Model], Arguments], Result]
) -> Callable[Arguments, Result]:
    """A function of any host as a public one of this host: its first argument is filled in.

    Signature, types and docstring are those of the function, and it is pickled by its name.
    """

    @functools.wraps(function)
    def of_host(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return function(host, *args, **kwargs)

    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    of_host.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    of_host.__annotations__ = {
        name: kind for name, kind in function.__annotations__.items() if name != first.name
    }
    of_host.__module__ = f"attnflow_plugin.{host.name}"
    return of_host


def is_users_own(model: nn.Module, *methods: str) -> bool:
    """Whether a class of the user's defines one of these methods, and not a host."""
    found = [getattr(type(model), name, None) for name in methods]
    packages = {getattr(each, "__module__", "").partition(".")[0] for each in found if each}
    return bool(packages - {*HOSTS, "attnflow_plugin"})


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
