"""Train a flow with attention, in either host, on one core or many GPUs.

    python examples/train.py                                      # 8x8 digits, a few minutes
    python examples/train.py --data photographs --attention none --out outputs/plain
    python examples/train.py --data folder --data-dir ~/pictures --size 64 --levels 3 --bf16
    python examples/train.py --out outputs/plain --resume         # go on where it stopped
    python examples/train.py --backbone srflow --data photographs --context source --scale 4
    python examples/train.py --backbone full-glow --data segmentation --context source
    python examples/train.py --preset cifar10-l3k4c96-imap --data-dir ~/data
    torchrun --nproc-per-node 4 examples/train.py --data cifar10 --batch 256

The folder --out gets metrics.jsonl, progress.png and checkpoint.pt. Ctrl-C and SIGTERM finish the
step in hand and save; --resume goes on with the numbers that the run would have had without it.
"""

import sys
from collections.abc import Sequence
from typing import Any

from training import checkpoint
from training.data import load_data
from training.distributed import World, joined_world
from training.interruption import Interruption
from training.loop import NotFiniteError, Trainer
from training.options import Options, UsageError, from_dict, parse, resumed

from attnflow_plugin import AttnFlowError


def main(arguments: Sequence[str] | None = None) -> int:
    given, resume = parse(arguments, (__doc__ or "").split("\n", maxsplit=1)[0])
    try:
        with joined_world() as world, Interruption() as interruption:
            options, stored = world.ask_leader(lambda: start_or_resume(given, resume))
            trainer = Trainer(options, load_data(options), world, stored)
            say(world, describe(trainer))
            trainer.run(interruption)
            say(world, outcome(trainer))
    except (UsageError, NotFiniteError, AttnFlowError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


def start_or_resume(given: dict[str, Any], resume: bool) -> tuple[Options, dict[str, Any] | None]:
    """The options, and the checkpoint to go on from."""
    options = from_dict(given)
    path = options.out / checkpoint.NAME
    stored = checkpoint.load(path)
    if stored is None:
        return options, None
    if not resume:
        raise UsageError(f"{path} exists: --resume goes on from it, another --out keeps it")
    return resumed(stored["options"], given), stored


def describe(trainer: Trainer) -> str:
    options, data = trainer.options, trainer.feed.data
    parameters = sum(parameter.numel() for parameter in trainer.state.model.flow.parameters())
    lines = [
        f"{options.backbone} in {options.host}, attention: {options.attention}, {parameters} "
        f"parameters, on {trainer.device}",
        f"{options.data}: {len(data.train)} images to train on, {len(data.test)} to test on, of "
        f"shape {data.image_shape}; bits/dim are over these {data.dims} dimensions",
    ]
    if options.context == "source":
        lines.append(f"from sources of shape {data.source_shape}: p(image | source)")
    if data.remark:
        lines.append(f"note: {data.remark}")
    return "\n".join(lines)


def outcome(trainer: Trainer) -> str:
    done = (
        f"step {trainer.state.step} of {trainer.options.all_steps}, saved in {trainer.options.out}"
    )
    return done if trainer.finished else f"{done}; --resume goes on from here"


def say(world: World, text: str) -> None:
    if world.leads:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
