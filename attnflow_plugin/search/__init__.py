"""Searching for the places of a trained model where attention pays, for any host.

``placement`` reads candidates and batches, and inserts candidates at places. ``trial`` trains and
scores one such model, and stores the scores. ``greedy`` decides which trials to run and which
placement to keep. ``search_attention`` puts these together.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from os import PathLike
from typing import get_args

import torch
from torch import nn

from attnflow_plugin.errors import OptionError, non_negative_int, one_of, positive_int
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion import InsertionReport
from attnflow_plugin.insertion.choice import as_list
from attnflow_plugin.insertion.places import Position
from attnflow_plugin.search.greedy import Gain, Greedy, Limits, Progress, SearchResult, Trial
from attnflow_plugin.search.placement import (
    DEFAULT_CANDIDATES,
    Batch,
    Batches,
    Candidates,
    Inserter,
    Placement,
    read_batches,
    read_candidates,
)
from attnflow_plugin.search.trial import MakeOptimizer, Storage, Train, Trainer, digest

__all__ = [
    "DEFAULT_CANDIDATES",
    "Candidates",
    "Gain",
    "Placement",
    "SearchResult",
    "Trial",
    "search_attention",
]

_OWNER = "search_attention"
#: Rows with which candidates are tried: few, but enough to see whether events leave a box.
_EXAMPLES = 16
_ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3)


def search_attention(  # noqa: D417
    host: Host,
    model: nn.Module,
    batches: Batches,
    candidates: Candidates | None = None,
    budget: int = 10_000,
    *,
    held_out: Batches,
    position: Position | Sequence[Position] = "after_coupling",
    both_masks: bool = True,
    steps: int = 100,
    train: Train = "all",
    optimizer: MakeOptimizer = _ADAM,
    standard_errors: float = 3.0,
    least_gain: float = 0.001,
    max_layers: int | None = None,
    max_parameters: int | None = None,
    seed: int = 0,
    check_domain: bool = True,
    path: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    r"""Search for the places of a trained model where attention pays.

    The search is greedy and paired. In every round, each candidate is tried at each place: it is
    inserted, as the identity, into a copy of the model, which is trained for ``steps`` steps. The
    **baseline**, the model without the new layer, is trained for as many steps. It sees the same
    batches and the same noise as all trials, so that a gain is more than the gain of training on.
    The best trial is kept if its gain on ``held_out`` is large enough,

    $$
    \begin{aligned}
    \bar d > k \sqrt{\tfrac{1}{N} \mathrm{var}(d)}, \qquad
            d_n = \log p_{new}(x_n) - \log p_{base}(x_n),
    \end{aligned}
    $$

    and the next round searches on top of it. The search ends when no trial is good enough.

    Only `apply` changes the model. Random states are restored, except for what ``batches`` and
    ``held_out`` draw themselves.

    **Cost**: ``steps`` training steps for the baseline, and in each round as many for each
    candidate at each place. Memory for a copy of the model in training, and for ``steps`` batches.

    Args:
        model: the model, trained already.
        batches: training batches, tensors or pairs of data and context. Every trial uses the first
            ``steps``, in this order; if there are fewer, it starts again from the first.
        candidates: what may go to a place, as in ``insert_attention``: a name, a function from
            channels to a layer, a sequence of these, or a mapping of labels to them or to pairs
            ``(attention, options)``. By default iMap with exponential scales, iTrans and
            attention coupling.
        budget: training steps over all trials. No round starts that it does not cover.
        held_out: batches that trials are only scored on; at least two examples.
        position: the places, as in ``insert_attention``.
        both_masks: candidates by name are pairs of layers with complementary masks.
        steps: training steps of a trial.
        train: what a trial trains: ``"all"`` parameters, or only those of the ``"new"`` layers,
            which is cheaper. The baseline is always trained as a whole.
        optimizer: makes an optimizer from parameters; Adam with 1e-3 by default.
        standard_errors: k.
        least_gain: bits per dimension that a gain has to exceed as well.
        max_layers: largest number of placements to keep; a pair of masks counts as one.
        max_parameters: largest number of new parameters.
        seed: seed of the new layers' weights and of the noise in training.
        check_domain: as in ``insert_attention``.
        path: a file for the results of trials. The same call continues where it stopped; budget,
            limits and thresholds may differ.
        progress: called with each `Trial` that was run.

    Returns:
        All trials, and the placements that were kept.

    Raises:
        OptionError: there are no batches, an option or a candidate is wrong, the budget does not
            cover one round, or the file belongs to another search.
        InsertionError: there is no such place, or a candidate fits nowhere.
        ShapeError: batches have the wrong shape.
        NonFiniteError: data are not finite, or the baseline does not stay finite. A trial that
            does not is recorded and never kept.
    """
    limits = _limits(budget, standard_errors, least_gain, max_layers, max_parameters)
    positive_int(_OWNER, "steps", steps)
    non_negative_int(_OWNER, "seed", seed)
    one_of(_OWNER, "train", train, get_args(Train))
    training, scoring = _data(batches, held_out, steps)
    known = read_candidates(_OWNER, host, candidates, both_masks)
    example = training[0].head(_EXAMPLES)
    inserter = Inserter(host, known, as_list(position), example, seed, check_domain)
    fitting, others = inserter.placements(model)
    trainer = Trainer(inserter, training, scoring, steps, optimizer, train)
    storage = Storage(path, _fingerprint(model, trainer, fitting))
    dims = training[0].x[0].numel()
    sizes = {placement: report.num_parameters for placement, report in fitting.items()}
    greedy = Greedy(model, sizes, trainer, storage, limits, progress, dims)
    stopped = greedy.run()
    return SearchResult(
        trials=tuple(greedy.trials),
        chosen=tuple(greedy.kept),
        gain=greedy.total_gain(),
        steps=greedy.spent,
        stopped=stopped,
        skipped=others,
        _inserter=inserter,
    )


def _data(
    batches: Batches, held_out: Batches, steps: int
) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    if held_out is batches:
        raise OptionError(
            f"{_OWNER}: expected held_out to be other data than batches, found the same object; "
            f"split the data first"
        )
    training = read_batches(_OWNER, "batches", batches, steps)
    scoring = read_batches(_OWNER, "held_out", held_out)
    if sum(len(batch.x) for batch in scoring) < 2:
        raise OptionError(f"{_OWNER}: expected at least two held-out examples, found one")
    return training, scoring


def _limits(
    budget: int,
    standard_errors: float,
    least_gain: float,
    max_layers: int | None,
    max_parameters: int | None,
) -> Limits:
    positive_int(_OWNER, "budget", budget)
    for name, value in (("standard_errors", standard_errors), ("least_gain", least_gain)):
        if not 0 <= value < math.inf:
            raise OptionError(f"{_OWNER}: expected {name} of at least zero, found {value!r}")
    for name, most in (("max_layers", max_layers), ("max_parameters", max_parameters)):
        if most is not None:
            positive_int(_OWNER, name, most)
    return Limits(budget, standard_errors, least_gain, max_layers, max_parameters)


def _fingerprint(
    model: nn.Module, trainer: Trainer, fitting: Mapping[Placement, InsertionReport]
) -> dict[str, str]:
    """Everything that the scores of a trial depend on."""
    inserter = trainer.inserter
    optimizer = trainer.optimizer([nn.Parameter(torch.zeros(1))])
    layers = chain.from_iterable(report.layers for report in fitting.values())
    return {
        "model": digest(_identity(model)),
        "batches": digest(chain.from_iterable(trainer.batches)),
        "held_out": digest(chain.from_iterable(trainer.held_out)),
        "candidates": str({label: str(each) for label, each in inserter.candidates.items()}),
        "layers": digest(chain.from_iterable(map(_identity, layers))),
        "places": str(list(map(str, fitting))),
        "settings": (
            f"steps={trainer.steps}, train={trainer.train}, seed={inserter.seed}, "
            f"{type(optimizer).__name__}({optimizer.defaults})"
        ),
    }


def _identity(module: nn.Module) -> Iterator[object]:
    """What a module computes and trains: its structure, state and trainable parameters."""
    # Addresses of functions differ from process to process.
    yield re.sub(r" at 0x[0-9a-f]+", "", repr(module))
    yield from chain.from_iterable(module.state_dict().items())
    yield from (name for name, p in module.named_parameters() if p.requires_grad)
