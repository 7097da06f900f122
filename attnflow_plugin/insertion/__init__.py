"""Putting attention into a model that the user already has; host-free.

The steps, in their order, which ``engine`` puts together:

* ``request`` reads the example; ``copying`` copies the model, and says what runs of copies share;
* ``probe`` runs a copy and records what its layers are called with;
* ``places`` finds the places that a position names, and ``factories`` what goes to each;
* ``building`` makes the layers; where events are on circles or in boxes (``domains``), ``regions``
  has attention stay inside, or refuses the place; ``checks`` refuses wrappers;
* ``trial`` runs another copy with the new layers inside, in both directions;
* ``transaction`` changes the model, at once or not at all; ``report`` tells what was done.

A ``Host`` knows what the layers of one library are called and how its models run.
"""

from attnflow_plugin.hosts import Host, Role
from attnflow_plugin.insertion.engine import insert_attention
from attnflow_plugin.insertion.factories import Attention
from attnflow_plugin.insertion.report import InsertedLayer, InsertionReport

__all__ = [
    "Attention",
    "Host",
    "InsertedLayer",
    "InsertionReport",
    "Role",
    "insert_attention",
]
