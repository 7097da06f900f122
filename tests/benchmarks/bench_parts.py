"""Where the time of a training step goes."""

from tests.benchmarks.bench_glow import TWO_ACTNORMS, TrainingStep, models
from tests.benchmarks.interleaved import spread, take_turns

PLAIN = "build_glow"
ARMS = (PLAIN, "IMap", "ITrans, 4 tokens", TWO_ACTNORMS)
PARTS = TrainingStep.PARTS


def test_parts(measured):
    module, found = models("normflows")

    def rows():
        steps = {arm: TrainingStep(module, found[arm]) for arm in ARMS}
        seconds = take_turns(
            {(arm, part): getattr(steps[arm], part) for arm in ARMS for part in PARTS}
        ).seconds
        whole = {arm: sum(seconds[arm, part] for part in PARTS) for arm in ARMS}
        return [
            {
                "model": arm,
                "parameter tensors": len(list(found[arm].parameters())),
                **{part: spread(seconds[arm, part] / whole[PLAIN]) for part in PARTS},
                "all": spread(whole[arm] / whole[PLAIN]),
            }
            for arm in ARMS
        ]

    measured("Parts of a training step in normflows, relative to that of build_glow", rows)
