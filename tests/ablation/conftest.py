"""The ablation is one of the examples, whose folder is put on the path there."""

from tests.examples.conftest import EXAMPLES

assert EXAMPLES.is_dir()
