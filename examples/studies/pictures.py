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

import sys
from collections.abc import Sequence

from trainer.options import UsageError
from trainer.picture_options import NAME, check, parse

from attnflow_plugin import AttnFlowError


def main(arguments: Sequence[str] | None = None) -> int:
    title, _, further = (__doc__ or "").partition("\n")
    given = parse(arguments, title, further)
    try:
        check(given)
        # Importing Lightning takes seconds: mistakes are told before.
        from trainer.picture_commands import run  # noqa: PLC0415

        run(given)
    except (UsageError, AttnFlowError, OSError) as error:
        print(f"{NAME}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
