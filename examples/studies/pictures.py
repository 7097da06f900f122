"""Pictures and numbers from a checkpoint of train.py: a file, or the folder of a run.

examples:
    python examples/studies/pictures.py info outputs/train
    python examples/studies/pictures.py sample outputs/train --count 64 --temperature 0.8
    python examples/studies/pictures.py sample outputs/classes --class 3 --out threes.png --separate
    python examples/studies/pictures.py sample outputs/srflow --context small.png
    python examples/studies/pictures.py reconstruct outputs/mine cat.jpg ~/pictures
    python examples/studies/pictures.py interpolate outputs/mine cat.jpg dog.jpg
    python examples/studies/pictures.py evaluate outputs/mine --data-dir ~/pictures

Images are read as train.py reads them: the largest part of the shape of the model's images around
the centre, resized. The data set is needed by evaluate, and by reconstruct and interpolate if they
are given no images. A grid magnifies small images; --separate writes each as it is.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from trainer.options import COUNT, NATURAL, POSITIVE, Device, From, UsageError

from attnflow_plugin import AttnFlowError

NAME = "pictures.py"
_LIMITS = {"temperature": POSITIVE, "seed": NATURAL}
_CONTEXT = (
    "what to make the images from, for a model of --context source or coarse, or a picture to "
    "reduce to that"
)


def main(arguments: Sequence[str] | None = None) -> int:
    title, _, further = (__doc__ or "").partition("\n")
    given = parse(arguments, title, further)
    try:
        check(given)
        # Importing Lightning takes seconds: mistakes are told before.
        from trainer.commands import run  # noqa: PLC0415

        run(given)
    except (UsageError, AttnFlowError, OSError) as error:
        print(f"{NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        text = re.sub(r"^argument (--[\w-]+)", r"\1", message)
        self.exit(2, f"{self.prog}: {text} (--help lists all options)\n")


def parse(
    arguments: Sequence[str] | None, description: str = "", examples: str = ""
) -> argparse.Namespace:
    """The command and its options; only those that it has."""
    parser = _Parser(
        prog=NAME,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> _Parser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("checkpoint", type=Path, help="checkpoint, or the folder of a run")
        command.add_argument(
            "--device", choices=get_args(Device), default="auto", help="where to compute"
        )
        return command

    sample = add("sample", "draw images")
    _add_picture(sample, 36)
    sample.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    sample.add_argument(
        "--seed", type=int, default=0, help="the same gives the same images (default: 0)"
    )
    reconstruct = add("reconstruct", "images beside data -> latent -> data")
    _add_picture(reconstruct, 8)
    _add_images(reconstruct)
    interpolate = add("interpolate", "a row of images between two, in latent space")
    _add_picture(interpolate, 9, From(2))
    _add_images(interpolate)
    _add_data_dir(add("evaluate", "bits/dim of all test images, as train.py prints at its end"))
    add("info", "what the checkpoint is")
    return parser.parse_args(arguments)


def check(given: argparse.Namespace) -> None:
    """Mistakes that can be found without the model."""
    for name, value in vars(given).items():
        limits = given.limits if name == "count" else _LIMITS.get(name)
        if limits is not None:
            limits.check(name, value)
    out = getattr(given, "out", None)
    if out is None:
        return
    if out.suffix.lower() != ".png" or out.is_dir():
        found = "a folder of that name" if out.is_dir() else "another ending"
        raise UsageError(f"--out: expected a file to write that ends in .png, found {found}: {out}")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UsageError(f"--out: expected a file in a folder, found the file {above} above it")


def _add_picture(command: _Parser, count: int, limits: From = COUNT) -> None:
    command.set_defaults(limits=limits)
    command.add_argument("--count", type=int, default=count, help=f"images (default: {count})")
    command.add_argument(
        "--class", dest="label", type=int, metavar="NUMBER", help="for a model of --context label"
    )
    command.add_argument("--context", type=Path, metavar="FILE", help=_CONTEXT)
    command.add_argument("--out", type=Path, help="PNG to write (default: in the run's folder)")
    command.add_argument(
        "--separate",
        action="store_true",
        help="also write each image, to a folder named like --out",
    )


def _add_images(command: _Parser) -> None:
    command.add_argument(
        "images", type=Path, nargs="*", help="files and folders; without any, test images"
    )
    _add_data_dir(command)


def _add_data_dir(command: _Parser) -> None:
    command.add_argument("--data-dir", type=Path, help="of the data set (default: as trained)")


if __name__ == "__main__":
    sys.exit(main())
