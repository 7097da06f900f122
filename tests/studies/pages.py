"""Parts of pages of the documentation, and the tables in them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def rows_below(text, head):
    """The cells of the first table below a head, by the first one of each row."""
    lines = re.split(r"\| ?--- ?\|", text[text.index(head) :], maxsplit=1)[1].split("\n\n")[0]
    lines = lines.splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in cells}


def between(text, start, end=None):
    """A part of a page."""
    part = text[text.index(start) :]
    return part[: part.index(end)] if end else part
