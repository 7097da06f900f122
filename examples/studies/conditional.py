"""Conditional flows that differ in their attention alone: what both comparisons of them share."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, get_args

import harness
import numpy as np
import torch
from harness import PLAIN, Run
from matplotlib.figure import Figure
from torch import Tensor
from trainer import checkpoint
from trainer.data import ImageData, load_data
from trainer.folder import METRICS, locked, read
from trainer.model import evaluation_mode
from trainer.module import SOURCE_LEVELS, NotFiniteError
from trainer.options import Host, Options, UsageError, resumed
from trainer.processes import Interrupted, Interruption
from trainer.run import TrainingRun
from trainer.schedule import SAMPLES, seed_of

from attnflow_plugin import AttnFlowError

QUICK_STEPS = 20
IMAGES = 64
"""Test images for what is measured on samples; bits/dim are over all."""
SHOWN = 6
DRAWS = 4
"""Samples of one input, for the diversity."""

# As in the paper.
_IMAP = {"attention": "imap", "activation": "sigmoid"}
_ITRANS = {"attention": "itrans", "patches": 2}
_SEEING = {"context_in_attention": True}
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {"attention": "none"},
    "imap": _IMAP,
    "itrans": _ITRANS,
    "imap-context": _IMAP | _SEEING,
    "itrans-context": _ITRANS | _SEEING,
}
DEFAULT_ARMS = (PLAIN, "imap", "itrans")


class Shown(NamedTuple):
    """Of one model: images that it made, by temperature, and further text."""

    images: dict[str, np.ndarray]
    text: str = ""


Measured = tuple[dict[str, float], Shown | None]
Columns = Mapping[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """A backbone with and without attention.

    Attributes:
        script: name of the script.
        backbone: what to call the plain arm.
        measure: all numbers of a trained model, and what to show of it.
        inputs: what the pictures show beside what the models make, from the inputs and the truth.
        title: of the picture.
        others: numbers of something else to compare with, by its name.
    """

    script: str
    backbone: str
    measure: Callable[[TrainingRun], Measured]
    inputs: Callable[[Tensor, Tensor], Columns]
    title: Callable[[Options], str]
    others: Callable[[Options], Mapping[str, Mapping[str, float]]] = lambda options: {}

    @property
    def titles(self) -> dict[str, str]:
        """What to call the arms in tables and pictures."""
        return {
            PLAIN: self.backbone,
            "imap": "cAttnFlow, iMap",
            "itrans": "cAttnFlow, iTrans",
            "imap-context": "iMap that sees the context",
            "itrans-context": "iTrans that sees the context",
        }

    def main(self, given: argparse.Namespace, options: Options) -> int:
        """Run, and print the report; mistakes of users take one line.

        Returns:
            The exit status.
        """
        out = given.out
        try:
            with locked(out):
                runs = self.run(options, given.arms, given.seeds, given.workers)
            print(f"\n{self.report(options, runs)}\n\npictures and numbers in {out}")
        except (UsageError, NotFiniteError, AttnFlowError) as error:
            print(f"{self.script}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"\nstopped; the same command goes on from what is in {out}")
            return 130
        return 0

    def run(self, options: Options, arms: Sequence[str], seeds: int, workers: int) -> list[Run]:
        """Train, measure, save numbers and the picture."""
        runs = compare(options, arms, seeds, self.measure, workers)
        harness.write_runs(runs, options.out / "results.json")
        targets, sources = test_images(options, SHOWN)
        drawn = {
            f"{self.titles[run.arm]}\nT = {temperature}": images
            for run in runs
            if run.seed == 0
            for temperature, images in run.shown.images.items()
        }
        given = {name: values.numpy() for name, values in self.inputs(sources, targets).items()}
        columns = {**given, **drawn, "truth": targets.numpy()}
        draw_columns(columns, self.title(options), options.out / "samples.png")
        return runs

    def report(self, options: Options, runs: Sequence[Run]) -> str:
        """What the models of the first seed have to say, and the table of all."""
        first = [run for run in runs if not run.seed and run.shown.text]
        parts = [f"{self.titles[run.arm]}, seed 0\n\n{run.shown.text}" for run in first]
        return "\n\n".join([*parts, table(runs, self.titles, self.others(options))])


def compare(
    options: Options,
    arms: Sequence[str],
    seeds: int,
    measure: Callable[[TrainingRun], Measured],
    workers: int,
) -> list[Run]:
    """Train and measure every arm with every seed, each in a folder of its own in ``options.out``.

    What was stopped goes on from its checkpoint when it is called again.
    """
    jobs = [
        (arm, replace(options, **ARMS[arm], seed=seed, out=options.out / f"{arm}-{seed}"), measure)
        for seed in range(seeds)
        for arm in arms
    ]
    return list(harness.do_all(_run, jobs, workers))


def _run(arm: str, options: Options, measure: Callable[[TrainingRun], Measured]) -> Run:
    training = _trained(options, f"{arm}, seed {options.seed}")
    with evaluation_mode(training.module.best_flow), torch.no_grad():
        torch.manual_seed(seed_of(options.seed, SAMPLES))  # The same latent noise for every arm.
        values, shown = measure(training)
    parameters = harness.count_parameters(training.module.flow)
    return Run(arm, options.seed, parameters, values, shown)


def _trained(options: Options, title: str) -> TrainingRun:
    """A run to its end, from its checkpoint if there is one."""
    data, stored = load_data(options), None
    found = checkpoint.load_newest(options.out)
    if found is not None:
        _, stored, _ = found
        options = resumed(stored["options"], vars(options))
    shown = {"desc": title, "position": harness.line_of_bar(), "leave": False}
    training = TrainingRun(options, data, stored=stored, **shown)
    try:
        with Interruption() as interruption:
            training.train(interruption)
    except Interrupted:
        raise KeyboardInterrupt from None
    return training


def table(
    runs: Sequence[Run],
    titles: Mapping[str, str],
    others: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Means over the seeds in Markdown, and what each arm adds to the plain one of its seed.

    Args:
        runs: all of them.
        titles: what to call the arms.
        others: values of something else to compare with, by its name.
    """
    arms, names = harness.by_arm(runs), list(runs[0].values)
    rows = [["", "parameters", *names]]
    for title, row in (others or {}).items():
        rows.append([title, "", *(_number(row.get(name)) for name in names)])
    for arm, found in arms.items():
        values = [mean(run.values[name] for run in found) for name in names]
        rows.append([titles[arm], f"{found[0].parameters:,}", *map(_number, values)])
    for arm in arms:
        if arm != PLAIN and PLAIN in arms:
            pairs = [[harness.scores(arms[each], n) for each in (arm, PLAIN)] for n in names]
            changes = [harness.paired_difference(*pair).text("+.3g", ".2g") for pair in pairs]
            rows.append([f"{titles[arm]} minus {titles[PLAIN]}", "", *changes])
    return harness.markdown(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def test_images(options: Options, count: int) -> tuple[Tensor, Tensor]:
    """Some without noise, and what they are generated from."""
    data = ImageData(options)
    targets, sources = data.shown(count)
    return targets / (data.info.levels - 1), sources / (SOURCE_LEVELS - 1)


def draw_samples(training: TrainingRun, sources: Tensor, temperature: float) -> Tensor:
    """An image in [0, 1] for each source; what is not finite counts as black."""
    drawn = training.sample(sources, len(sources), temperature)
    return drawn.nan_to_num(0).clamp(0, 1)


def bits_at_the_end(training: TrainingRun) -> float:
    """Bits/dim of all test images."""
    return read(training.options.out / METRICS)[-1]["test"]


def draw_columns(columns: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Write images side by side, an input to a row.

    Args:
        columns: images in [0, 1] by what they are, shape ``(rows, C, H, W)``; sizes may differ.
        title: of the whole.
        path: the file.
    """
    rows = min(len(images) for images in columns.values())
    # A Figure of its own rather than pyplot, which would look for a screen.
    figure = Figure(figsize=(1.5 * len(columns), 1.5 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=9)
        for ax, image in zip(column, images, strict=False):
            pixels = image.transpose(1, 2, 0).clip(0, 1)
            pixels = pixels if pixels.shape[-1] == 3 else pixels[..., 0]
            ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)


def parser(description: str | None, out: str, steps: int) -> argparse.ArgumentParser:
    """What both scripts can be told."""
    found = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    found.add_argument("--host", choices=get_args(Host), default="normflows")
    found.add_argument("--arms", nargs="+", choices=ARMS, default=DEFAULT_ARMS)
    found.add_argument("--seeds", type=int, default=1, help="number of seeds")
    found.add_argument("--steps", type=int, default=steps, help="training steps of a flow")
    found.add_argument("--workers", type=int, default=2, help="models that train at a time")
    found.add_argument("--out", type=Path, default=Path(out))
    found.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps only")
    found.add_argument("--data-dir", type=Path, default=Path("data"), help="of files of your own")
    return found


def small_flow(given: argparse.Namespace, **further: Any) -> Options:
    """The options that both share."""
    small = {"levels": 2, "depth": 4, "hidden": 32, "batch": 16, "checkpoint_every": 250}
    asked = {name: getattr(given, name) for name in ("data", "data_dir", "host", "out", "steps")}
    return Options(context="source", evaluate_every=given.steps, **small, **asked, **further)
