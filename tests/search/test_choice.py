"""What a search keeps: what is needed, where it is needed, and nothing else."""

import copy
import math

import pytest
import torch
from scipy import stats

from attnflow_plugin.errors import NonFiniteError
from attnflow_plugin.search.greedy import Gain, paired_gain
from tests.search.planted import NEEDED, conditional, gaussian, planted
from tests.support import HOSTS, host_module

pytestmark = pytest.mark.slow
each_host = pytest.mark.parametrize("host", HOSTS)


@each_host
def test_a_planted_need_is_found_where_it_is(host):
    result = planted(host).search()
    first, *others = result.chosen
    assert first.placement.candidate == "imap"
    assert first.placement.neighbour == NEEDED[host]
    assert first.gain.bits_per_dim > 0.1
    assert all(trial.gain.nats < 0.3 * first.gain.nats for trial in others)
    assert result.stopped == "nothing more pays"


@each_host
def test_nothing_is_kept_where_nothing_helps(host):
    problem = gaussian(host)
    result = problem.search(["imap", "itrans", "coupling"])
    assert (result.chosen, result.gain.nats) == ((), 0)
    before = copy.deepcopy(problem.model.state_dict())
    assert result.apply(problem.model).layers == ()
    assert problem.model.state_dict().keys() == before.keys()


@each_host
def test_a_context_is_used_if_it_pays(host):
    candidates = {"blind": "imap", "seeing": ("imap", {"context_channels": 1})}
    problem = conditional(host)
    result = problem.search(candidates)
    assert result.chosen[0].placement.candidate == "seeing"
    before = problem.log_prob()
    assert len(result.apply(problem.model).layers) == 2 * len(result.chosen)
    torch.testing.assert_close(problem.log_prob(), before)


@each_host
def test_layers_that_take_gradients_while_they_run_are_scored(host):
    def to_latent(self, x, context=None):
        weights = torch.zeros_like(x).requires_grad_()
        z = torch.autograd.grad((x @ self.matrix.T * weights).sum(), weights, create_graph=True)[0]
        return z, x.new_zeros(len(x))

    problem = planted(host)
    layer = problem.model.get_submodule(NEEDED[host])
    method = {"normflows": "inverse", "nflows": "forward"}[host]
    layer.__class__ = type("ByGradient", (type(layer),), {method: to_latent})
    position = type(layer)
    result = problem.search("imap", position=position, steps=5, budget=50)
    assert result.trials[0].gain.finite


@each_host
def test_gains_are_over_a_baseline_that_is_trained_as_long(host):
    """Of wide data normflows' base learns the scale as well as attention; nflows' has none."""
    result = gaussian(host, scale=2.0).search()
    assert bool(result.chosen) == (host == "nflows")


@pytest.mark.parametrize("host", ["nflows"])
def test_a_total_gain_is_the_sum_of_what_was_kept(host):
    """The best trial of a round is the baseline of the next."""
    # One sigmoid scale, below two, is not enough for what is planted.
    sigmoid = {"sigmoid": ("imap", {"activation": "sigmoid", "gain_bound": 0.95})}
    result = planted(host).search(sigmoid, max_layers=2, standard_errors=0, least_gain=0)
    assert len(result.chosen) == 2
    assert result.gain.nats == pytest.approx(sum(trial.gain.nats for trial in result.chosen))


@each_host
def test_only_new_layers_are_trained_if_asked(host):
    sizes = []

    def optimizer(parameters):
        parameters = list(parameters)
        sizes.append(sum(parameter.numel() for parameter in parameters))
        return torch.optim.Adam(parameters, lr=0.03)

    problem = planted(host)
    result = problem.search("imap", optimizer=optimizer, train="new", steps=20, max_layers=1)
    plain = sum(parameter.numel() for parameter in problem.model.parameters())
    assert set(sizes) - {1} == {50} | ({plain} if plain else set())
    assert result.chosen[0].placement.neighbour == NEEDED[host]


@pytest.mark.parametrize("host", ["nflows"])
def test_an_optimizer_that_evaluates_the_loss_several_times_in_a_step(host):
    problem = planted(host)
    result = problem.search("imap", optimizer=torch.optim.LBFGS, steps=2, max_layers=1)
    assert result.chosen[0].placement.neighbour == NEEDED[host]


@pytest.mark.parametrize("host", ["normflows"])
def test_limits(host):
    problem = conditional(host)
    candidates = {"blind": "imap", "seeing": ("imap", {"context_channels": 1})}
    one = problem.search(candidates, max_layers=1)
    assert (len(one.chosen), one.stopped) == (1, "max_layers reached")
    small = problem.search(candidates, max_parameters=50)
    assert {trial.placement.candidate for trial in small.trials} == {"blind"}
    assert (small.num_parameters, small.stopped) == (50, "nothing is left to try")
    short = problem.search(candidates, budget=5 * 25 + 2 * 25)
    assert (len(short.chosen), len(short.trials), short.steps) == (1, 4, 125)
    assert short.stopped == "the budget does not suffice for another round"


@pytest.mark.parametrize("host", ["nflows"])
def test_thresholds(host):
    problem = planted(host)
    gain = problem.search("imap", steps=20, max_layers=1).gain
    options = {"steps": 20, "max_layers": 1}
    sure = gain.nats / gain.standard_error
    assert not problem.search("imap", standard_errors=sure * 1.01, **options).chosen
    assert problem.search("imap", standard_errors=sure * 0.99, **options).chosen
    assert not problem.search("imap", least_gain=gain.bits_per_dim * 1.01, **options).chosen


@pytest.mark.parametrize(
    ("host", "failure"),
    [("normflows", "nan"), ("nflows", "one row"), ("normflows", "raised"), ("nflows", "exploding")],
)
def test_a_trial_that_is_not_finite_is_recorded_and_never_kept(host, failure):
    """Its log-densities would be the best, were they not infinite."""
    imap = host_module(host).IMap

    class Broken(imap):
        def _to_latent(self, x, context):
            z, log_det = super()._to_latent(x, context)
            if not self.scale.any():
                return z, log_det
            if failure == "raised":
                raise NonFiniteError("found infinity")
            if failure == "one row":
                return super()._to_latent(x.index_fill(0, torch.tensor([1]), math.inf), context)
            return z, log_det + (math.inf if failure == "exploding" else math.nan)

    result = planted(host).search({"broken": Broken, "imap": "imap"}, steps=20)
    assert {trial.placement.candidate for trial in result.chosen} == {"imap"}
    for trial in result.trials:
        assert trial.gain.finite == (trial.placement.candidate == "imap")
    assert "not finite" in str(result)


@pytest.mark.parametrize("host", ["nflows"])
def test_gains_and_standard_errors_are_those_of_a_paired_test(host):
    problem = planted(host)
    result = problem.search("imap", steps=3, max_layers=1)
    random = torch.Generator().manual_seed(0)
    scores, baseline = torch.randn(2, 50, dtype=torch.float64, generator=random)
    gain = paired_gain(scores, baseline, dims=4)
    expected = stats.ttest_rel(scores, baseline)
    assert gain.nats / gain.standard_error == pytest.approx(expected.statistic)
    assert gain.bits_per_dim == pytest.approx(gain.nats / (4 * math.log(2)))
    assert {trial.gain.dims for trial in result.trials} == {4}
    assert not paired_gain(None, baseline, 4).finite
    assert not Gain(math.nan, math.nan, 4).exceeds(0, 0)


@pytest.mark.parametrize("host", ["normflows"])
def test_the_best_of_those_that_are_sure_is_kept(host):
    """A larger gain that rests on a few examples alone does not end the search."""
    imap = host_module(host).IMap

    class Gambler(imap):
        """Claims a large gain on a single example."""

        def _to_latent(self, x, context):
            z, log_det = super()._to_latent(x, context)
            if torch.is_grad_enabled():
                return z, log_det
            return z, log_det + 1e6 * (x.norm(dim=1) > 0.999999 * largest)

    problem = planted(host)
    largest = max(float(x.norm(dim=1).max()) for x in problem.held_out)
    result = problem.search({"gambler": Gambler, "imap": "imap"}, max_layers=1)
    best = max(result.trials, key=lambda trial: trial.gain.nats)
    assert best.placement.candidate == "gambler"
    assert best.gain.bits_per_dim > 100 * result.chosen[0].gain.bits_per_dim
    assert result.chosen[0].placement.candidate == "imap"
