"""Measurements as pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.tables import Row

Tables = Mapping[str, Sequence[Row]]


def models(tables: Tables, path: Path) -> None:
    """Ratios of training and sampling, a panel for each host."""
    figure = Figure(figsize=(4.5 * len(tables), 4.2), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        for shift, task in ((-0.2, "training step"), (0.2, "sampling")):
            _bars(axes, [row[task] for row in rows], shift, task)
        axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
        axes.axvline(1, color="0.3", linewidth=1)
        axes.set(title=title, xlabel="time relative to build_glow")
    panels[0].invert_yaxis()
    panels[-1].legend()
    _save(figure, path)


def layers(tables: Tables, path: Path) -> None:
    """What both layers of a kind add to a training step, by the size of the event."""
    behind = {name: rows for name, rows in tables.items() if "behind" in name}
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    names = [row["two layers"] for row in max(behind.values(), key=len)]
    for number, (title, rows) in enumerate(behind.items()):
        ratios = {row["two layers"]: row["training step"] for row in rows}
        values = [ratios.get(name, (float("nan"),) * 3) for name in names]
        _bars(axes, values, 0.25 * (number - 1), title.split(", ")[-1], height=0.25)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set(xscale="log", xlabel="training step with both layers, relative to the coupling alone")
    axes.invert_yaxis()
    axes.legend()
    _save(figure, path)


def depth(tables: Tables, path: Path) -> None:
    """Errors of stacks against their number of layers."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    (rows,) = tables.values()
    for axes, quantity in zip(panels, ("round trip", "log-det per dimension"), strict=True):
        for name in dict.fromkeys(row["stack"] for row in rows):
            points = [
                (row["layers"], row[quantity])
                for row in rows
                if row["stack"] == name and isinstance(row.get(quantity), float)
            ]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axes.set(xscale="log", yscale="log", xlabel="layers", ylabel=f"error of the {quantity}")
        axes.set_xticks([16, 64, 256], ["16", "64", "256"])
        axes.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    _save(figure, path)


def estimate(tables: Tables, path: Path) -> None:
    """Errors of single log-dets, from exact to useless."""
    rows = next(rows for rows in tables.values() if "error of a log-det" in rows[0])
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["layer"] for row in rows))
    for number, scale in enumerate(sorted({row["deviation of x"] for row in rows})):
        for row in (row for row in rows if row["deviation of x"] == scale):
            # An error of zero has no place on the axis.
            median, low, high = (min(max(value, 1e-17), 1e9) for value in row["error of a log-det"])
            height = names.index(row["layer"]) + 0.22 * (number - 1)
            label = f"x ~ N(0, {scale:g}²)" if row["layer"] == names[0] else None
            error = [[median - low], [high - median]]
            axes.errorbar(median, height, xerr=error, fmt="o", color=f"C{number}", label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlabel="error of one log-det in nats, with quartiles (cut at 1e9)")
    axes.invert_yaxis()
    axes.legend()
    _save(figure, path)


def tokens(tables: Tables, path: Path) -> None:
    """Time against the number of tokens."""
    rows = [row for each in tables.values() for row in each]
    times = [name for name in rows[0] if ", ms" in name]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        chosen = [row for row in rows if row["task"] == task]
        for name in times:
            label = name.partition(", ms")[0]
            axes.plot(
                [row["tokens"] for row in chosen],
                [row[name] for row in chosen],
                marker="o",
                label=label,
            )
        axes.set(xscale="log", yscale="log", title=task, xlabel="tokens")
    panels[0].set_ylabel("ms an event")
    panels[0].legend()
    _save(figure, path)


def _bars(
    axes: Axes, values: Sequence[Sequence[float]], shift: float, label: str, height: float = 0.4
) -> None:
    medians, low, high = zip(*values, strict=True)
    error = [
        [median - each for median, each in zip(medians, low, strict=True)],
        [each - median for median, each in zip(medians, high, strict=True)],
    ]
    heights = [number + shift for number in range(len(values))]
    axes.barh(heights, medians, height, xerr=error, label=label, error_kw={"linewidth": 1})


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})


PICTURES: dict[str, Callable[[Tables, Path], None]] = {
    "bench_glow": models,
    "bench_layers": layers,
    "bench_tokens": tokens,
    "bench_depth": depth,
    "bench_estimate": estimate,
}
