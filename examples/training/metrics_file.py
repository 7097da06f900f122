"""metrics.jsonl: one JSON object to a line, in the order of the steps."""

import json
from pathlib import Path
from typing import Any

from training.checkpoint import write_atomically

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines. A continued run first removes what lies behind its checkpoint.

    Args:
        path: the file.
        start: last step whose lines stay.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        kept = [json.dumps(line) + "\n" for line in read(path) if 0 < line["step"] <= start]
        write_atomically(path, lambda file: file.write("".join(kept).encode()))

    def write(self, **values: Any) -> None:
        """Add a line; it is in the file when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a killed run may leave half of one at the end."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
