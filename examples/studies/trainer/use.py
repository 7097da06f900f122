"""A trained model at work: samples, reconstructions, interpolations, bits/dim."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.backbones import summary
from trainer.checkpoint import load_model
from trainer.data import ImageData
from trainer.folder import METRICS, read
from trainer.inputs import in_the_middle
from trainer.module import Example
from trainer.options import Device, Options, UsageError
from trainer.run import evaluate, use_gpu
from trainer.schedule import SAMPLES, seeded

BATCH = 64
"""Images that are made at once; with the seed it decides what they are."""


class Trained:
    """The model of a checkpoint, with averaged weights where they are averaged.

    Args:
        path: the folder of a run, or a checkpoint.
        device: as in train.py.
    """

    def __init__(self, path: Path, device: Device = "auto") -> None:
        self.folder = path if path.is_dir() else path.parent
        self.module, self.stored = load_model(path)
        # Densities are in full precision, so that the CPU will do.
        self.options = replace(self.module.options, device=device, bf16=False, out=self.folder)
        self.module.to("cuda" if use_gpu(self.options) else "cpu")
        self.info, self.model = self.module.info, self.module.model
        self.flow = self.module.best_flow

    @property
    def step(self) -> int:
        return self.stored["step"]

    def sample(self, count: int, temperature: float, seed: int, context: Tensor | None) -> Tensor:
        """Images, one for each context if there is one; the same for the same arguments."""
        self._check_trained()

        def sample(rows: slice, context: Tensor | None) -> Tensor:
            number = len(range(count)[rows])
            return self.model.sample(self.flow, number, context, temperature)

        with seeded(self.module.device, seed, SAMPLES):
            return self._in_batches(sample, count, context)

    def reconstruct(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Data to latent to data."""
        self._check_trained()

        def reconstruct(rows: slice, context: Tensor | None) -> Tensor:
            part = x[rows].to(self.module.device)
            latents = self.model.to_latent(self.flow, part, context)
            return self.model.to_data(self.flow, latents, context)

        return self._in_batches(reconstruct, len(x), context)

    def interpolate(self, x: Tensor, context: Tensor | None, count: int) -> Tensor:
        """Images on the straight line between the latents of two, with both at its ends.

        What they are conditioned on goes along; of two classes the nearer one counts.
        """
        self._check_trained()
        device = self.module.device
        x, context = x.to(device), None if context is None else context.to(device)
        latents = self.model.to_latent(self.flow, x, context)
        weights = torch.linspace(0, 1, count, device=device)
        if context is not None:
            context = _between(context, weights)

        def decode(rows: slice, context: Tensor | None) -> Tensor:
            mixed = [_between(latent, weights[rows]) for latent in latents]
            return self.model.to_data(self.flow, mixed, context)

        return self._in_batches(decode, count, context)

    def evaluate(self, data_dir: Path | None) -> float:
        """Bits/dim of all test images, the number that train.py gives at its end."""
        self._check_trained()
        data = self._data(data_dir)
        return evaluate(self.model.likelihood(self.flow), self.module, data)

    def test_images(self, count: int, data_dir: Path | None) -> Example:
        """Test images in the middle of their grey levels, and what they are conditioned on."""
        values, given = self._data(data_dir).shown(count)
        x = in_the_middle(values, self.info.levels)
        return x, self.module.context(x, given, None)

    def describe(self) -> str:
        """What the checkpoint is, in lines."""
        options, info = self.module.options, self.info
        parameters = sum(parameter.numel() for parameter in self.module.flow.parameters())
        lines = [
            summary(options, parameters),
            f"{options.data}: images of shape {info.image_shape} with {info.levels} grey levels, "
            f"conditioned on: {self._condition(options)}",
            f"step {self.step} of {options.all_steps}, "
            + (f"weights averaged with decay {options.ema}" if options.ema else "last weights"),
        ]
        tested = [
            line["test"]
            for line in read(self.folder / METRICS)
            if line["step"] == self.step and line.get("test") is not None
        ]
        if tested:
            lines.append(f"test images: {tested[-1]:.4f} bits/dim, in {METRICS}")
        return "\n".join([*lines, f"again: {options.command()}"])

    def _condition(self, options: Options) -> str:
        if options.context == "label":
            return f"one of {self.info.classes} classes"
        if options.context == "source":
            return f"a source of shape {self.info.source_shape}"
        return {"none": "nothing", "coarse": "the image at 1/4 of its size"}[options.context]

    def _data(self, data_dir: Path | None) -> ImageData:
        """The data set of the checkpoint, and no other."""
        data = ImageData(replace(self.options, data_dir=data_dir or self.options.data_dir))
        if data.fingerprint != self.stored[ImageData.__name__]["fingerprint"]:
            raise UsageError(
                f"--data-dir: the checkpoint was made with other images than those of "
                f"{data.options.data} in {data.options.data_dir} (other files, sizes or split)"
            )
        return data

    def _check_trained(self) -> None:
        if self.step <= self.options.pretrain_steps:
            raise UsageError(
                f"{self.folder}: step {self.step} of {self.options.pretrain_steps} that train the "
                "encoder alone; the flow has learnt nothing yet"
            )

    def _in_batches(
        self, make: Callable[[slice, Tensor | None], Tensor], count: int, context: Tensor | None
    ) -> Tensor:
        """Images on the CPU."""
        parts = []
        for start in range(0, count, BATCH):
            rows = slice(start, start + BATCH)
            part = None if context is None else context[rows].to(self.module.device)
            parts.append(make(rows, part).cpu())
        images = torch.cat(parts)
        if not bool(images.isfinite().all()):
            raise UsageError(f"{self.folder}: the model makes numbers that are not finite")
        return images


def _between(ends: Tensor, weights: Tensor) -> Tensor:
    """Points between two; of whole numbers, which are classes, the nearer one."""
    first, second = ends
    weights = weights.reshape(-1, *[1] * first.dim())
    if not ends.is_floating_point():
        return torch.where(weights < 0.5, first, second)
    return torch.lerp(first, second, weights)
