"""Train a flow with attention, in either host, on one core or many GPUs.

examples:
    python examples/studies/train.py                              # 8x8 digits, a few minutes
    python examples/studies/train.py --data photographs --attention none --out outputs/plain
    python examples/studies/train.py --data folder --data-dir ~/pictures --size 64 --levels 3 --bf16
    python examples/studies/train.py --out outputs/plain --resume  # go on where it stopped
    python examples/studies/train.py --backbone srflow --data photographs --context source --scale 4
    python examples/studies/train.py --backbone full-glow --data segmentation --context source
    python examples/studies/train.py --preset cifar10-l3k4c96-imap --data-dir ~/data
    python examples/studies/train.py --config run.yaml            # lines such as "data_dir: data"
    torchrun --nproc-per-node 4 examples/studies/train.py --data cifar10 --batch 256

The folder --out gets metrics.jsonl, progress.png and the last two checkpoints. Ctrl-C, SIGTERM,
SIGHUP and SIGUSR1 finish the step in hand and save; --resume goes on with the numbers that the run
would have had without it.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import jsonargparse
from trainer.backbones import PRESETS, check_options
from trainer.folder import has_checkpoint, locked
from trainer.options import Options, UsageError, flag, from_dict, hints


def main(arguments: Sequence[str] | None = None) -> int:
    title, _, further = (__doc__ or "").partition("\n")
    leads = os.environ.get("RANK", "0") == "0"
    try:
        given, resume = parse(arguments, title, further)
        options = from_dict(given)
        if not resume:
            check_options(options)
        if leads:
            check_folder(options, resume)
        with locked(options.out) if leads else nullcontext():
            # Importing Lightning takes seconds: mistakes are told, and the folder is taken, before.
            from trainer.session import train  # noqa: PLC0415

            return train(given, resume)
    except UsageError as error:
        if leads:
            print(f"train.py: {error}", file=sys.stderr)
        return 1


def check_folder(options: Options, resume: bool) -> None:
    """Neither start where there is a run, nor go on where there is none."""
    found = has_checkpoint(options.out)
    if found and not resume:
        raise UsageError(
            f"{options.out} has a checkpoint: --resume goes on from it, another --out keeps it"
        )
    if resume and not found:
        raise UsageError(
            f"--resume: expected a checkpoint to go on from in {options.out}, found none"
        )


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split())
        text = re.sub(r'Parser key "(\w+)":', lambda match: f"{flag(match[1])}:", text)
        text = re.sub(r"^argument (--[\w-]+)", r"\1", text)
        text = text.replace(
            "Expected a <class 'int'>. Got value:", "expected a whole number, found"
        )
        text = text.replace("Expected a <class 'float'>. Got value:", "expected a number, found")
        print(f"{self.prog}: {text} (--help lists all options)", file=sys.stderr)
        sys.exit(2)


def parse(
    arguments: Sequence[str] | None, description: str = "", examples: str = ""
) -> tuple[dict[str, Any], bool]:
    """The options that were given, by themselves, a file or a preset, and whether to resume."""
    parser = _Parser(
        prog="train.py",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python examples/studies/train.py [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of options, as data_dir: x")
    parser.add_argument("--preset", metavar="NAME", help="options of a row of the paper's tables")
    parser.add_argument("--list-presets", action="store_true", help="list these and exit")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out, as it was set"
    )
    for base in reversed(Options.__mro__[1:-1]):
        group = parser.add_argument_group((base.__doc__ or "").lower())
        for each in fields(base):
            group.add_argument(flag(each.name), **_settings(each))
    given = parser.parse_args(arguments, defaults=False).as_dict()
    given.pop("config", None)
    if given.pop("list_presets", False):
        print("\n".join(f"{name:24} {_described(PRESETS[name])}" for name in PRESETS))
        sys.exit(0)
    resume, preset = given.pop("resume", False), given.pop("preset", None)
    return _preset(preset, given) | given, resume


def _described(options: dict[str, Any]) -> str:
    return " ".join(f"{flag(name)} {value}" for name, value in options.items())


def _preset(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Its options; the size of the images belongs to its own data."""
    if name is not None and name not in PRESETS:
        raise UsageError(f"--preset: expected a name from --list-presets, found {name}")
    options = PRESETS[name] if name else {}
    return {k: v for k, v in options.items() if k != "size" or "data" not in given}


def _number_or(pattern: str, expected: str) -> Callable[[object], int | str]:
    """A type of option: a number, or words that match."""

    def parsed(value: object) -> int | str:
        text = str(value)
        if re.fullmatch(r"-?\d+", text):
            return int(text)
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}, found {text}")
        return text

    return parsed


_WITH_WORDS = {
    "patches": _number_or("auto|none", "a number, auto or none"),
    "size": _number_or(r"\d+x\d+", "a height, or height and width as in 64x128"),
}


def _settings(each: "Field[Any]") -> dict[str, Any]:
    """What the parser is told: the type and the help from the annotation, choices of a Literal."""
    assert each.default is not MISSING
    kind, text, *_ = hints()[each.name]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if each.name in _WITH_WORDS:
        return {"type": _WITH_WORDS[each.name], "metavar": "INT", "help": text}
    if each.default is None:
        kind = next(kind for kind in get_args(kind) if kind is not NoneType)
    else:
        text += f" (default: {each.default})"
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "help": text}
    return {"type": kind, "metavar": kind.__name__.upper(), "help": text}


if __name__ == "__main__":
    sys.exit(main())
