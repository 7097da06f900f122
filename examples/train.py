"""Train a Glow with attention on a folder of pictures. A file to copy and to change.

    python train.py ~/pictures
    python train.py ~/pictures --host nflows --size 64 --out outputs/larger
    python train.py ~/pictures --resume outputs/mine/last.ckpt

The folder outputs/mine, or --out, gets the best and the last checkpoint, samples.png and the bits
per dimension in logs/. It needs `pip install -e ".[examples]"` in a checkout of the package, and
uses a GPU if there is one. studies/train.py does more: other flows and data, conditions, exact
resuming.
"""

import argparse
import warnings
from importlib import import_module
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from attnflow_plugin.metrics import bits_per_dim, dequantize

# Change these. Which attention is good for what: docs/choosing.md.
GLOW = {"levels": 3, "steps": 4, "hidden_channels": 64}
ATTENTION = {"attention": "itrans", "affine": True}
BATCH, LEARNING_RATE, LARGEST_GRADIENT = 32, 1e-3, 10.0
VALIDATE_EVERY, TEMPERATURE = 500, 0.7

# Both hosts call these two inside their 1x1 convolutions; their users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")


class Pictures(Dataset[Tensor]):
    """The pictures in a folder and below, cut to squares: values from 0 to 255, (3, size, size)."""

    def __init__(self, folder: Path, size: int) -> None:
        endings = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = ImageOps.exif_transpose(Image.open(self.paths[index])).convert("RGB")
        return torch.from_numpy(np.array(ImageOps.fit(image, (self.size,) * 2))).permute(2, 0, 1)


class FlowModule(pl.LightningModule):
    """A Glow of either host, trained for the bits per dimension of the pictures."""

    def __init__(self, host: str, size: int) -> None:
        super().__init__()
        self.save_hyperparameters()  # FlowModule.load_from_checkpoint needs the file alone.
        self.host = import_module(f"attnflow_plugin.{host}")
        self.flow = self.host.build_glow((3, size, size), **GLOW, **ATTENTION)

    def bits(self, pictures: Tensor, noise: torch.Generator | None = None) -> Tensor:
        x = dequantize(pictures, generator=noise)
        return bits_per_dim(self.host.log_prob(self.flow, x), x.shape[1:]).mean()

    def training_step(self, pictures: Tensor, index: int) -> Tensor:
        bits = self.bits(pictures)
        self.log("train", bits, prog_bar=True)
        return bits

    def validation_step(self, pictures: Tensor, index: int) -> None:
        noise = torch.Generator(self.device).manual_seed(index)  # The same in every validation.
        self.log("validation", self.bits(pictures, noise), prog_bar=True, batch_size=len(pictures))

    @torch.no_grad()
    def on_validation_end(self) -> None:  # Six rows of six samples.
        samples, _ = self.host.sample(self.flow, 36, temperature=TEMPERATURE)
        levels = (samples.nan_to_num() * 256).floor().clamp(0, 255).byte().unflatten(0, (6, 6))
        grid = levels.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        Image.fromarray(grid.cpu().numpy()).save(Path(self.trainer.default_root_dir, "samples.png"))

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.Adam(self.parameters(), LEARNING_RATE)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return [optimizer], [{"scheduler": rate, "interval": "step"}]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="pictures; a tenth of them is held out")
    parser.add_argument("--host", choices=("normflows", "nflows"), default="normflows")
    parser.add_argument("--size", type=int, default=32, help="height and width (default: 32)")
    parser.add_argument("--steps", type=int, default=5000, help="(default: 5000)")
    parser.add_argument("--out", type=Path, default=Path("outputs/mine"))
    parser.add_argument("--resume", metavar="CHECKPOINT", help="go on from it")
    given = parser.parse_args(arguments)
    pictures = Pictures(given.folder, given.size)
    if len(pictures) < 10:
        parser.error(f"expected at least 10 pictures in {given.folder}, found {len(pictures)}")

    pl.seed_everything(0)
    train, held_out = random_split(pictures, [0.9, 0.1])
    training = DataLoader(train, BATCH, shuffle=True, drop_last=len(train) > BATCH)
    module = FlowModule(given.host, given.size)
    # The flow starts from the mean and the scale of a batch.
    module.host.prepare(module.flow, dequantize(next(iter(training))))
    kept = pl.callbacks.ModelCheckpoint(given.out, "best", monitor="validation", save_last=True)
    trainer = pl.Trainer(
        default_root_dir=given.out,
        max_steps=given.steps,
        gradient_clip_val=LARGEST_GRADIENT,
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        callbacks=kept,
        logger=pl.loggers.CSVLogger(given.out, name="logs"),
    )
    trainer.fit(module, training, DataLoader(held_out, BATCH), ckpt_path=given.resume)


if __name__ == "__main__":
    main()
