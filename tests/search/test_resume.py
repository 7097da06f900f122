"""A search that was stopped goes on where it was, and ends as if it had not been stopped."""

from functools import cache

import pytest
import torch

from attnflow_plugin.errors import OptionError
from tests.insertion.test_untouched import Snapshot, random_states
from tests.search.planted import FAST_ADAM, TURNS, gaussian, planted
from tests.support import HOSTS, host_module

pytestmark = pytest.mark.slow
each_host = pytest.mark.parametrize("host", HOSTS)
#: Files know nothing of hosts.
one_host = pytest.mark.parametrize("host", HOSTS[1:])
OPTIONS = {"steps": 10}


@cache
def uninterrupted(host):
    """What every search of the planted problem has to end with."""
    return planted(host).search(**OPTIONS)


class Stop:
    """Interrupts after a number of trials."""

    def __init__(self, after):
        self.left, self.seen = after, []

    def __call__(self, trial):
        self.seen.append(trial)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def assert_same(result, expected):
    for name in ("trials", "chosen", "gain", "steps", "stopped", "skipped"):
        assert getattr(result, name) == getattr(expected, name)
    assert str(result) == str(expected)


@each_host
@pytest.mark.parametrize("after", [1, 4, 5])
def test_resumed_is_uninterrupted(host, tmp_path, after):
    expected = uninterrupted(host)
    problem, path = planted(host), tmp_path / "search.pt"
    before, states = Snapshot.of(problem.model), random_states()
    stop = Stop(after)
    with pytest.raises(KeyboardInterrupt):
        problem.search(path=path, progress=stop, **OPTIONS)
    before.assert_unchanged(problem.model, ())
    assert random_states() == states
    rest = Stop(-1)
    assert_same(problem.search(path=path, progress=rest, **OPTIONS), expected)
    assert (*stop.seen, *rest.seen) == expected.trials
    again = Stop(-1)
    assert_same(problem.search(path=str(path), progress=again, **OPTIONS), expected)
    assert again.seen == []


@each_host
@pytest.mark.parametrize("at_step", [3, 15, 27])
def test_an_interruption_within_a_trial_loses_that_trial_only(host, tmp_path, at_step):
    steps = []

    class Interrupted(torch.optim.Adam):
        def step(self, closure=None):
            steps.append(0)
            if len(steps) == at_step:
                raise KeyboardInterrupt
            return super().step(closure)

    def optimizer(parameters):
        return Interrupted(parameters, lr=0.03)

    expected = uninterrupted(host)
    problem, path = planted(host), tmp_path / "search.pt"
    before, states = Snapshot.of(problem.model), random_states()
    with pytest.raises(KeyboardInterrupt):
        problem.search(path=path, optimizer=optimizer, **OPTIONS)
    before.assert_unchanged(problem.model, ())
    assert random_states() == states
    assert len(torch.load(path, weights_only=True)["scores"]) == at_step // 10 + (host == "nflows")
    assert_same(problem.search(path=path, optimizer=optimizer, **OPTIONS), expected)


@one_host
def test_an_interruption_while_writing_leaves_the_file_valid(host, tmp_path, monkeypatch):
    problem, path = planted(host), tmp_path / "search.pt"
    with pytest.raises(KeyboardInterrupt):
        problem.search(path=path, progress=Stop(2), **OPTIONS)
    save = torch.save

    def half(content, target):
        if getattr(target, "name", None) == str(path.with_name("search.pt.partial")):
            target.write(b"half")
            raise KeyboardInterrupt
        save(content, target)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            problem.search(path=path, **OPTIONS)
    assert_same(problem.search(path=path, **OPTIONS), uninterrupted(host))


@one_host
def test_budget_limits_and_thresholds_may_differ(host, tmp_path):
    problem, path = planted(host), tmp_path / "search.pt"
    short = problem.search(budget=50, path=path, **OPTIONS)
    assert short.steps == 50
    new = Stop(-1)
    result = problem.search(path=path, progress=new, **OPTIONS)
    assert_same(result, uninterrupted(host))
    assert tuple(new.seen) == result.trials[len(short.trials) :]
    strict = problem.search(path=path, standard_errors=1e6, progress=(none := Stop(-1)), **OPTIONS)
    assert (strict.chosen, none.seen) == ((), [])


OTHERS = {
    "settings": {"steps": 9},
    "seed": {"seed": 1},
    "train": {"train": "new"},
    "optimizer": {"optimizer": torch.optim.SGD},
    "candidates": {"candidates": ["itrans", "imap", "coupling"]},
    "options": {"candidates": {"imap": ("imap", {"activation": "exp"}), "itrans": "itrans"}},
}


@one_host
def test_a_file_of_another_search_is_refused(host, tmp_path):
    problem, path = planted(host), tmp_path / "search.pt"
    problem.search(path=path, budget=50, **OPTIONS)
    stored = path.read_bytes()
    for name, other in OTHERS.items():
        part = {"candidates": "candidates", "options": "candidates"}.get(name, "settings")
        with pytest.raises(OptionError, match=f"which differs in: .*{part}"):
            problem.search(**{"path": path, **OPTIONS, **other})
        assert path.read_bytes() == stored, name


@one_host
def test_a_file_of_other_data_or_another_model_is_refused(host, tmp_path):
    problem, path = planted(host), tmp_path / "search.pt"
    problem.search(path=path, budget=50, **OPTIONS)
    with pytest.raises(OptionError, match=r"differs in: batches, held_out$"):
        gaussian(host).search(path=path, **OPTIONS)
    copies = [batch.clone() for batch in problem.held_out]
    assert problem.search(path=path, budget=50, held_out=copies, **OPTIONS).steps == 50
    with pytest.raises(OptionError, match=r"differs in: held_out$"):
        problem.search(path=path, held_out=problem.held_out[:1], **OPTIONS)
    layer = next(m for m in problem.model.modules() if type(m).__name__ == "Rotation")
    layer.matrix.neg_()
    with pytest.raises(OptionError, match=r"differs in: model$"):
        problem.search(path=path, **OPTIONS)


@one_host
def test_a_file_of_other_layers_behind_the_same_name_is_refused(host, tmp_path):
    problem, path = planted(host), tmp_path / "search.pt"
    layers = host_module(host)
    for _ in range(2):
        problem.search({"x": lambda c: layers.IMap(c, flip=False)}, 50, path=path, **OPTIONS)
    with pytest.raises(OptionError, match=r"differs in: layers$"):
        problem.search({"x": lambda c: layers.IMap(c, flip=True)}, path=path, **OPTIONS)


@one_host
def test_a_file_of_a_model_that_trains_other_parameters_is_refused(host, tmp_path):
    problem, path = planted(host), tmp_path / "search.pt"
    layer = next(m for m in problem.model.modules() if type(m).__name__ == "Rotation")
    del layer.matrix
    layer.matrix = torch.nn.Parameter(TURNS[0].clone())
    problem.search(budget=50, path=path, **OPTIONS)
    problem.model.requires_grad_(False)
    with pytest.raises(OptionError, match=r"differs in: model$"):
        problem.search(path=path, **OPTIONS)


@one_host
@pytest.mark.parametrize("content", [b"", b"no file of torch", None])
def test_another_file_is_refused_and_kept(host, tmp_path, content):
    path = tmp_path / "model.pt"
    if content is None:
        torch.save(planted(host).model.state_dict(), path)
    else:
        path.write_bytes(content)
    stored = path.read_bytes()
    with pytest.raises(OptionError, match="found another file"):
        planted(host).search(path=path, optimizer=FAST_ADAM)
    assert path.read_bytes() == stored


@one_host
def test_a_path_that_cannot_be_written_fails_before_the_first_trial(host, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        planted(host).search(path=tmp_path / "missing" / "search.pt", progress=Stop(1))
