"""The contract of a host library, and imports of optional libraries.

The package is written once, for any host. Its functions take a host as their first argument. `Host`
lists everything that they need of one, and `bound` fills this argument in.
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
from attnflow_plugin.layers import ATTENTIONS, BoundedAttention, InvertibleLayer
from attnflow_plugin.layers.base import Context, MaskedAttention, Role

if TYPE_CHECKING:
    from attnflow_plugin.backbones.multiscale import MultiscalePlan
    from attnflow_plugin.insertion.domains import Domain

#: One way of running a model: a function of a batch and of further arguments, such as a context.
Run = Callable[..., Any]
#: The class of a host's models.
Model = TypeVar("Model", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Common names of users' own layers; the first match counts.
_NAMES: tuple[tuple[str, Role], ...] = (
    (r"coupling|autoregressive|spline", "coupling"),
    (r"norm(?!alizingflow)", "actnorm"),
    (r"perm|1x1|onebyone|linear|rotation|householder|shuffle", "permutation"),
    (r"squeeze|split|merge|reshape|logit|dequant|identity", "other"),
)


class Host(ABC, Generic[Model]):
    """Everything that the package needs of a host library.

    Attributes:
        name: the host's name.
        layer_type: base class of all invertible layers.
        base_type: base class of its distributions.
        roles: the host's classes and their roles; the first match counts. Layers of this package
            have a role as an attribute.
        iterating: classes that run every element of their module lists, in order. New layers can be
            inserted into such a list; elsewhere they are chained to their neighbour.
        to_latent_method: the method of layers that maps data to latent.
        one_way_errors: the errors of layers that cannot run in one of the directions.
        actnorm: its ActNorm, which initialises itself on its first call.
        learning_actnorm: a subclass that initialises itself from the next batch.
        ready_actnorm: a subclass that never does, without the branch that breaks compiled graphs.
        squeeze: its layer that moves pixels to channels.
        keeps_first: whether its multi-scale container passes on the first half of the channels.
        too_large: layers that ``compile_model`` does not compile as a whole.
    """

    name: ClassVar[str]
    layer_type: ClassVar[type[nn.Module]]
    base_type: ClassVar[type[nn.Module]]
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
        # Copies and pickles of models refer to the one instance.
        return self.name.upper()

    @property
    def layers(self) -> ModuleType:
        """The package of the host, which holds this package's layers as classes of the host."""
        return importlib.import_module(f"attnflow_plugin.{self.name}")

    @property
    def attentions(self) -> Mapping[str, type[MaskedAttention]]:
        """The attention layers of the host by name."""
        return {name: getattr(self.layers, kind.__name__) for name, kind in ATTENTIONS.items()}

    @property
    def bounded_attention(self) -> type[BoundedAttention]:
        """The host's layer that replaces them on circles and in boxes."""
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
        """The role of a user's own layer, guessed from its name; ``None`` if no pattern matches."""
        name = type(module).__name__.lower()
        return next((role for pattern, role in _NAMES if re.search(pattern, name)), None)

    @abstractmethod
    def domains(self, layer: nn.Module) -> "tuple[Domain | None, Domain | None]":
        """The domains of events before and after a layer, as far as its class tells them."""

    def is_own(self, module: nn.Module) -> bool:
        """Whether a class is the host's or this package's; such layers keep the size of events."""
        return type(module).__module__.partition(".")[0] in (self.name, "attnflow_plugin")

    @abstractmethod
    def event_size(self, model: nn.Module) -> EventSize | None:
        """The size of the model's data, if its base distributions and layers are known classes."""

    # Running any model.

    @abstractmethod
    def to_latent(self, model: nn.Module) -> Sequence[Run]:
        """Ways to run a model from data to latent; its own ``log_prob`` comes first."""

    def to_data(self, model: nn.Module) -> Sequence[Run]:
        """Ways to run a model from latent to data, for as many rows as a batch has.

        The model's own ``sample`` comes first, then methods that need no base distribution. They
        return samples, or a tuple that begins with samples.
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
        """From a batch to latents and back; ``None`` if the model has no methods for that."""

    # Densities and samples.

    @abstractmethod
    def check_context(
        self, owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
    ) -> None:
        """Raise for a context or labels that a model cannot take.

        Args:
            owner: the function, for errors.
            model: a model of the host.
            context: the context or labels.
            rows: number of rows of data.
            read: also look at the values of labels on accelerators.

        Raises:
            OptionError: a context is given, but the model takes none.
            MissingContextError: no context is given, but the model needs one.
            ShapeError: the context is not a tensor, has another number of rows, or holds labels
                that do not exist.
        """

    @abstractmethod
    def log_prob(self, model: nn.Module, x: Tensor, context: Context) -> Tensor:
        """The model's own log-density; models differ in how they take a context."""

    @abstractmethod
    def draw(
        self, model: nn.Module, num_samples: int, context: Context, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Samples at a temperature, and their log-densities at temperature one, with a graph."""

    @abstractmethod
    def encoder(self, model: nn.Module) -> nn.Module | None:
        """The module that turns the user's context into that of the layers, if there is one."""

    @abstractmethod
    def log_prob_and_encoded(
        self, model: nn.Module, x: Tensor, context: Context
    ) -> tuple[Tensor, Context]:
        """The log-density of a model with an encoder, and the encoded context."""

    # Parts of models.

    @abstractmethod
    def make_actnorm(self, channels: int) -> nn.Module:
        """Its normalization, for images."""

    @abstractmethod
    def is_initialised(self, actnorm: nn.Module) -> bool:
        """Whether one of its normalizations has seen data."""

    @abstractmethod
    def make_permutation(self, channels: int, *, dense: bool) -> nn.Module:
        """Its 1x1 convolution: dense if asked for and available, else by an LU decomposition."""

    @abstractmethod
    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """One layer that runs ``layers``, which are listed in the host's own order."""

    def in_turn(self, layer: nn.Module, kind: type[nn.Module]) -> tuple[nn.Module, ...]:
        """The layers that a layer of this class runs one after the other; by default, itself."""
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
            encoder: turns the user's context into that of the layers, a tensor or a mapping of
                names to tensors; ``nn.Identity()`` if they are the same, ``None`` for a model
                without context.
        """


def bound(
    host: Host[Model], function: Callable[Concatenate[Host[Model], Arguments], Result]
) -> Callable[Arguments, Result]:
    """A function for any host, with its first argument filled in, as a public function of a host.

    It keeps the signature, types and docstring, and is pickled by its name in the host's module.
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
    """Whether a class of the user's defines one of these methods, rather than the host."""
    found = [getattr(type(model), name, None) for name in methods]
    packages = {getattr(each, "__module__", "").partition(".")[0] for each in found if each}
    return bool(packages - {*HOSTS, "attnflow_plugin"})


def methods_of(model: nn.Module, *names: str) -> list[Run]:
    """Those of the named methods that a model has."""
    return [getattr(model, name) for name in names if hasattr(model, name)]


def require(subject: str, module: str, extra: str, also: str = "") -> ModuleType:
    """Import ``module``, or raise an error that tells how to install it.

    Args:
        subject: what needs the module; the error begins with it.
        module: its name.
        extra: the extra of this package that installs it.
        also: further packages to install, with a space before them.

    Raises:
        MissingHostError: the library, or something it needs, is not installed or does not match
            the installed torch.
    """
    try:
        return importlib.import_module(module)
    # torchvision raises one of the other two if it was built for another torch.
    except (ImportError, OSError, RuntimeError) as error:
        library = module.partition(".")[0]
        raise MissingHostError(
            f"{subject} needs {library}, which cannot be imported ({error}). "
            f'Install it with: pip install "attnflow-plugin[{extra}]"{also}'
        ) from error
