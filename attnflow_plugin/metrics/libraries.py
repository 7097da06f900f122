"""Importing what a metric needs when it is called, so that the core needs none of it."""

import importlib
from types import ModuleType

from attnflow_plugin.errors import MissingHostError

__all__ = ["INSTALL", "require"]

INSTALL = 'pip install "attnflow-plugin[metrics]"'


def require(owner: str, module: str, install: str = INSTALL) -> ModuleType:
    """Import ``module`` for ``owner``, or say how to install it.

    Raises:
        MissingHostError: the library, or something it needs, is not installed, or not for
            this torch.
    """
    try:
        return importlib.import_module(module)
    # A build of torchvision for another build of torch fails with the other two.
    except (ImportError, OSError, RuntimeError) as error:
        library = module.partition(".")[0]
        raise MissingHostError(
            f"{owner}: needs {library}, which cannot be imported ({error}). "
            f"Install it with: {install}"
        ) from error
