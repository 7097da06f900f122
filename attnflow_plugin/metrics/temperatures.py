"""Metrics of a conditional model at several sampling temperatures, and their average."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnflow_plugin.errors import OptionError, ShapeError

Sample = Callable[[Tensor, float], Tensor]
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]

TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class TemperatureTable:
    """Means of metrics over all images, at each temperature.

    Attributes:
        rows: from temperature to the value of each metric.
    """

    rows: Mapping[float, Mapping[str, float]]

    @property
    def average(self) -> dict[str, float]:
        """Each metric, averaged over the temperatures."""
        first = next(iter(self.rows.values()))
        return {
            name: sum(row[name] for row in self.rows.values()) / len(self.rows) for name in first
        }

    def __str__(self) -> str:
        """A table in Markdown, one line for each temperature and one for the average."""
        names = list(self.average)
        lines = [["temperature", *names], ["---"] * (len(names) + 1)]
        for label, row in (*self.rows.items(), ("average", self.average)):
            lines.append([str(label), *(f"{row[name]:.4g}" for name in names)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@torch.no_grad()
def over_temperatures(
    sample: Sample,
    batches: Iterable[tuple[Tensor, Tensor]],
    metrics: Mapping[str, Metric],
    temperatures: Sequence[float] = TEMPERATURES,
) -> TemperatureTable:
    r"""Sample every context once at every temperature, and average each metric over all images.

    The table of super-resolution on faces in the paper, for a model and its ``sample``::

        lpips = LPIPS()
        table = over_temperatures(
            sample,
            batches,
            {
                "SSIM": lambda images, targets, low_resolution: ssim(images, targets),
                "PSNR": lambda images, targets, low_resolution: psnr(images, targets),
                "LR-PSNR": lambda images, targets, low_resolution: lr_psnr(
                    images, low_resolution, 8
                ),
                "LPIPS": lambda images, targets, low_resolution: lpips(images, targets),
            },
        )
        print(table)

    Args:
        sample: takes a batch of contexts and a temperature to images in [0, 1], one for each
            context.
        batches: pairs of targets and contexts; read once.
        metrics: by name, what takes images, targets and contexts to one value for each image.
        temperatures: where to sample; every one weighs the same in the average.

    Returns:
        The means at each temperature, and their average.

    Raises:
        OptionError: no metric, no temperature, or one twice.
        ShapeError: no batch, or a metric that does not give one value for each image.

    References:
        Sukthanker et al., *Generative Flows with Invertible Attentions*, CVPR 2022, Table 4.
    """
    if not metrics or not temperatures or len(set(temperatures)) != len(temperatures):
        raise OptionError(
            "over_temperatures: expected at least one metric and different temperatures, found "
            f"{list(metrics)} and {list(temperatures)}"
        )
    sums = {temperature: dict.fromkeys(metrics, 0.0) for temperature in temperatures}
    count = 0
    for targets, contexts in batches:
        count += len(targets)
        for temperature, row in sums.items():
            images = sample(contexts, temperature)
            if not isinstance(images, Tensor):
                raise ShapeError(
                    f"over_temperatures: expected sample to return images, found "
                    f"{type(images).__name__}; this package's sample returns log-densities as "
                    f"well, so take its first result"
                )
            for name, metric in metrics.items():
                row[name] += _total(name, metric(images, targets, contexts), len(targets))
    if not count:
        raise ShapeError("over_temperatures: expected at least one batch, found none")
    return TemperatureTable(
        {t: {name: total / count for name, total in row.items()} for t, row in sums.items()}
    )


def _total(name: str, values: Tensor, images: int) -> float:
    found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.shape != (images,):
        raise ShapeError(
            f"over_temperatures: expected {name} to give one value for each of {images} images, "
            f"found {found}"
        )
    return float(values.double().sum())
