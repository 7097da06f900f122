"""Putting attention into a model that the user already has; host-free.

The steps, one per module: ``probe`` runs a copy of the model and records every layer's shapes,
``places`` finds the places that a position names, ``engine`` builds the layers, tries them in the
copy and only then touches the model, ``report`` tells what was done. A ``Host`` (``host``) knows
what the layers of one library are called.
"""

from attnflow_plugin.insertion.engine import insert
from attnflow_plugin.insertion.factories import Attention
from attnflow_plugin.insertion.host import Host, Role
from attnflow_plugin.insertion.report import InsertedLayer, InsertionReport

__all__ = [
    "Attention",
    "Host",
    "InsertedLayer",
    "InsertionReport",
    "Role",
    "insert",
]
