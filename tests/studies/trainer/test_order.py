"""Which images a step sees."""

import pytest
from trainer.options import UsageError
from trainer.schedule import EvenOrder, TrainingOrder


def joined(batches):
    return [index for batch in batches for index in batch]


def test_every_pass_has_every_image_once():
    order = TrainingOrder(12, 4, 0, start=0, stop=6)
    steps = list(order)
    passes = [joined(steps[:3]), joined(steps[3:])]
    assert [sorted(one) for one in passes] == [list(range(12))] * 2
    assert passes[0] != passes[1]
    assert len(order) == 6


def test_the_order_can_be_entered_anywhere():
    whole = list(TrainingOrder(10, 4, 0, start=0, stop=9))
    assert list(TrainingOrder(10, 4, 0, start=5, stop=9)) == whole[5:]


def test_seeds_differ():
    first, second = (TrainingOrder(100, 8, seed).indices(0) for seed in (0, 1))
    assert first != second


def test_processes_share_a_step():
    whole = TrainingOrder(100, 12, 0).indices(3)
    parts = [TrainingOrder(100, 12, 0, rank, 3).indices(3) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert sorted(joined(parts)) == sorted(whole)
    assert len(set(whole)) == 12


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(UsageError, match="multiple of the 3 processes, found 64"):
        TrainingOrder(100, 64, 0, 0, 3)


def test_a_set_smaller_than_a_batch():
    assert len(TrainingOrder(3, 8, 0).indices(0)) == 8


def test_the_first_images_are_not_the_only_ones():
    order = EvenOrder(1000, 4, limit=10)
    chosen = joined(order)
    assert chosen[0] == 0
    assert chosen[-1] == 999
    assert order.images == len(set(chosen)) == 10
