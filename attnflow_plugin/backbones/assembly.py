"""How a host-free builder becomes one of a host."""

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from torch import Tensor, nn

from attnflow_plugin.backbones.multiscale import HostParts, MultiscalePlan
from attnflow_plugin.hosts import Host
from attnflow_plugin.layers.base import Context

__all__ = ["Assembly", "built_by"]

Arguments = ParamSpec("Arguments")
Model = TypeVar("Model")
Model_co = TypeVar("Model_co", covariant=True)


class Assembly(Protocol[Model_co]):
    """What puts the layers of a plan into the containers of a host."""

    @property
    def host(self) -> Host:
        """The host's vocabulary."""

    @property
    def parts(self) -> HostParts:
        """What the host contributes to a step."""

    def to_latent(
        self, layer: nn.Module, event: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Run one layer of the host from data to latent."""

    def flow(self, plan: MultiscalePlan, encoder: nn.Module | None = None) -> Model_co:
        """The model.

        Args:
            plan: what it consists of.
            encoder: turns what the user gives as context into what the layers take, a tensor or a
                mapping of names to tensors; ``nn.Identity()`` if that is the same. ``None`` for a
                model without context.
        """


def built_by(
    assembly: Assembly[Model],
    build: Callable[Concatenate[Assembly[Model], Arguments], Model],
    module: str,
) -> Callable[Arguments, Model]:
    """A builder with its first argument filled in: the signature and docstring are written once."""

    @functools.wraps(build)
    def builder(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Model:
        return build(assembly, *args, **kwargs)

    signature = inspect.signature(build)
    parameters = list(signature.parameters.values())[1:]
    builder.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    builder.__module__ = module
    return builder
