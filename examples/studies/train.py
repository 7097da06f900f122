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

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from trainer.backbones import check_options
from trainer.command_line import parse
from trainer.folder import has_checkpoint, locked
from trainer.options import Options, UsageError, from_dict


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


if __name__ == "__main__":
    sys.exit(main())
