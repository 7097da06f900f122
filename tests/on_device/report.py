"""Tables in Markdown: whether a GPU computes what a CPU does, and how long a step takes there."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from tests.on_device import exactness, timing

PARTS = ("exact", "speed", "training")
#: Where only whether all of it runs is to be seen: layers, and variants of models.
FEW_LAYERS = ("imap-image", "itrans-rank-all-options", "coupling-windows", "actnorm")
FEW_MODELS = exactness.MODELS[::21]
COMPILER = "inductor"


def lines(part: str, device: torch.device, few: bool) -> Iterator[str]:
    """The report, line by line as it is measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield f"{name}, torch {torch.__version__}"
    sizes = timing.FEW if few else timing.Sizes()
    if part in ("all", "exact"):
        yield from _of_layers(device, FEW_LAYERS if few else exactness.NAMES)
        yield from _of_models(device, FEW_MODELS if few else exactness.MODELS)
        yield from _of_compiled(device, FEW_LAYERS[:1] if few else exactness.COMPILED, few)
    if part in ("all", "speed"):
        yield from _of_times(device, sizes)
        yield from _of_compiled_times(device, sizes, few)
    if part in ("all", "training"):
        yield from _of_training(device, sizes)


def worst(found: Iterable[tuple[str, str, float]]) -> Iterator[str]:
    """A table of the largest difference of each setting, and where it was; NaN is the largest."""
    largest: dict[str, tuple[float, str]] = {}
    for name, setting, value in found:
        if setting not in largest or _beside(value) > _beside(largest[setting][0]):
            largest[setting] = (value, name)
    yield from _table(
        ["", "largest difference", "where"],
        [[setting, f"{value:.1e}", name] for setting, (value, name) in largest.items()],
    )


def _beside(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _of_layers(device: torch.device, names: Sequence[str]) -> Iterator[str]:
    yield f"\n{len(names)} layers and options in both directions, gradients included\n"
    yield from worst(exactness.layer_differences(device, names))
    rows = exactness.wrong_rows(device, [name for name in names if name in exactness.CASES])
    yield f"\nrows that are not finite and do not stay alone: {', '.join(rows) or 'none'}"
    if device.type == "cuda":
        waits = exactness.waits(device, names)
        yield f"waits for the GPU: {waits or 'none'}"


def _of_models(device: torch.device, models: Sequence[tuple]) -> Iterator[str]:
    yield f"\n{len(models)} models of both hosts\n"
    yield from worst(exactness.model_differences(device, models))


def _of_compiled(device: torch.device, names: Sequence[str], few: bool) -> Iterator[str]:
    yield "\ncompiled layers in float32, gradients included\n"
    found = exactness.compiled_differences(device, names, "aot_eager" if few else COMPILER)
    yield from _table(
        ["", "compiled against eager", "eager against float64"],
        ([name, f"{value:.1e}", f"{rounding:.1e}"] for name, value, rounding in found),
    )


def _of_times(device: torch.device, sizes: timing.Sizes) -> Iterator[str]:
    depth = f"L = {sizes.levels}, K = {sizes.steps}"
    yield f"\nGlow of normflows, {depth}, hidden {sizes.hidden}, 3x32x32\n"
    yield from _ratios(timing.ARMS, timing.rows(device, sizes))


def _of_compiled_times(device: torch.device, sizes: timing.Sizes, few: bool) -> Iterator[str]:
    yield f"\nthe same with K = {sizes.compiled_steps}, compiled and not\n"
    rows = timing.compiled_rows(device, sizes, "aot_eager" if few else COMPILER)
    yield from _ratios(sizes.compiled[1:], rows)


def _ratios(
    arms: Iterable[str], rows: Iterable[tuple[int, str, dict[str, float]]]
) -> Iterator[str]:
    """Milliseconds of a step of the plain model, and what the others take of that."""
    arms = list(arms)
    yield from _table(
        ["batch", "", timing.PLAIN, *arms],
        (
            [
                str(count),
                label,
                f"{found[timing.PLAIN]:.1f}",
                *(f"{found[arm] / found[timing.PLAIN]:.2f}" for arm in arms),
            ]
            for count, label, found in rows
        ),
    )


def _of_training(device: torch.device, sizes: timing.Sizes) -> Iterator[str]:
    yield f"\nbits/dim of 8x8 digits after {sizes.training} steps from the same start\n"
    found = timing.paired_training(device, sizes)
    yield from _table(list(found), [[f"{value:.4f}" for value in found.values()]])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head)):
        yield "| " + " | ".join(row) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
