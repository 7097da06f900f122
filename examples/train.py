"""Train a Glow with attention, in either host, on one core or many GPUs.

    python examples/train.py                                      # 8x8 digits, a few minutes
    python examples/train.py --data photographs --attention none --out outputs/plain
    python examples/train.py --data folder --data-dir ~/pictures --size 64 --levels 3 --bf16
    python examples/train.py --out outputs/plain --resume         # go on where it stopped
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
    parameters = sum(parameter.numel() for parameter in trainer.state.glow.flow.parameters())
    return (
        f"{options.host} Glow, attention: {options.attention}, {parameters} parameters, on "
        f"{trainer.device}\n{options.data}: {len(data.train)} images to train on, "
        f"{len(data.test)} to test on, of shape {data.image_shape}"
    )


def outcome(trainer: Trainer) -> str:
    done = f"step {trainer.state.step} of {trainer.options.steps}, saved in {trainer.options.out}"
    return done if trainer.finished else f"{done}; --resume goes on from here"


def say(world: World, text: str) -> None:
    if world.leads:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
