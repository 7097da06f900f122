"""Putting attention into a model that the user already has; host-free.

The steps, in their order, which ``engine`` puts together:

* ``request`` reads the example, and says what to do with what is no model;
* ``copying`` copies the model, and says what runs of copies share;
* ``probe`` runs a copy and records what its layers are called with, ``sight`` tells what they do;
* ``places`` finds the places that a position names;
* ``building`` makes the layers for these; where events are on circles or in boxes (``domains``, and
  ``regions`` at a place), attention stays inside, or the place is refused;
* ``trial`` runs another copy with the new layers inside, in both directions;
* ``transaction`` changes the model, at once or not at all; ``report`` tells what was done.

A ``Host`` knows what the layers of one library are called and how its models run.
"""

from attnflow_plugin.hosts import Host, Role
from attnflow_plugin.insertion.choice import Attention
from attnflow_plugin.insertion.engine import insert_attention
from attnflow_plugin.insertion.report import InsertedLayer, InsertionReport

__all__ = [
    "Attention",
    "Host",
    "InsertedLayer",
    "InsertionReport",
    "Role",
    "insert_attention",
]
