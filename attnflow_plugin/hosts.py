"""What the two host modules share: importing a host on use."""

import importlib

from attnflow_plugin.errors import MissingHostError

__all__ = ["require_host"]


def require_host(name: str, module: str) -> None:
    """Import ``module`` of the host ``name``, or say how to install it.

    Raises:
        MissingHostError: the host, or something the host needs, is not installed.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingHostError(
            f"attnflow_plugin.{name} needs {name}, which cannot be imported ({error}). "
            f'Install it with: pip install "attnflow-plugin[{name}]"'
        ) from error
