"""Layers that are right almost everywhere: each is wrong in one circumstance only.

All derive from :class:`Sound`. A mutant changes what one direction returns, and names the words
with which the conformance kit must reject it.
"""

from tests.subtle_mutants import calls, draws, gradients
from tests.subtle_mutants.sound import MUTANTS, Sound, SoundLabels

__all__ = ["MUTANTS", "Sound", "SoundLabels", "calls", "draws", "gradients"]
