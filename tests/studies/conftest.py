"""The studies are scripts: their folder is not on the path by itself."""

import sys
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
sys.path.insert(0, str(STUDIES))
