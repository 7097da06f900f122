"""Rows of measurements as text."""

from collections.abc import Mapping, Sequence

Value = str | int | float | Sequence[float] | None
Row = Mapping[str, Value]


def markdown(rows: Sequence[Row]) -> str:
    """A table with the columns of all rows, in the order in which they appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(entries)} |" for entries in lines)


def line(row: Row) -> str:
    """A row for the screen."""
    return "  ".join(
        f"{cell(value):28s}" if isinstance(value, str) else f"{name} {cell(value)}"
        for name, value in row.items()
    )


def cell(value: Value) -> str:
    """A number with what its size asks for, a spread with its quartiles."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return _number(value)
    median, low, high = value
    if low == high:
        return _number(median)
    return f"{_number(median)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:.0e}"
