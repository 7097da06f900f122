"""Initialisation from data, the joint loss, gradients, checkpoints, compilation, insertion."""

import copy

import pytest
import torch
from torch import nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.layers import ConditionalActNorm
from tests.full_glow.models import VARIANTS, build, fresh, pairs, tower
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
each_variant = pytest.mark.parametrize("name", VARIANTS)


def outputs_of(layer, host):
    """What the layer returns on the way to latent, in a list that fills as the model runs."""
    name = "inverse" if host == "normflows" else "forward"
    run, seen = getattr(layer, name), []

    def recorded(*args):
        seen.append(run(*args))
        return seen[-1]

    object.__setattr__(layer, name, recorded)
    return seen


def is_normalised(event):
    values = event.transpose(0, 1).flatten(1)
    return bool(values.mean(1).abs().max() < 1e-3 and (values.std(1) - 1).abs().max() < 1e-2)


@each_host
@pytest.mark.parametrize("conditioning", ["full", "coupling"])
def test_prepare_initialises_both_towers(host, conditioning):
    module = host_module(host)
    model = fresh(host, "plain", conditioning=conditioning)
    target, source = pairs("plain", 64)
    target, source = 3 + 5 * target, 0.1 * source - 7
    module.prepare(model, target, source)
    norms = [m for m in model.modules() if "ActNorm" in type(m).__name__]
    assert len(norms) == 2 * 2 * 2  # Towers, levels, steps.
    own = [m for m in norms if isinstance(m, ConditionalActNorm)]
    assert len(own) == (4 if conditioning == "full" else 0)
    assert all(m.initialised for m in own)
    seen = [outputs_of(layer, host) for layer in norms]
    module.log_prob(model, target, source)
    assert all(is_normalised(outputs[0][0]) for outputs in seen)
    before = copy.deepcopy(model.state_dict())
    module.prepare(model, 10 * target, 10 * source)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_host
def test_a_failed_prepare_leaves_the_model_as_it_was(host):
    model = fresh(host, "plain")
    before = copy.deepcopy(model.state_dict())
    target, source = pairs("plain", 32)
    with pytest.raises(ValueError, match="SourceTower: expected sources of shape"):
        host_module(host).prepare(model, target, source[:, :, :3])
    source[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="expected finite parameters after initialisation"):
        host_module(host).prepare(model, target, source)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_host
@each_variant
def test_the_gradient_of_the_target_reaches_the_tower_of_the_source(host, name):
    model = build(host, name)
    host_module(host).log_prob(model, *pairs(name, 4)).sum().backward()
    steps = tower(model).steps
    parameters = [(key, p) for key, p in steps.named_parameters() if p.grad is None]
    unused = [key for key, _ in parameters]
    assert unused == []
    assert all(step.isfinite().all() for step in (p.grad for p in steps.parameters()))
    assert any(p.grad.any() for p in steps[0][0].parameters())


@each_host
def test_at_the_start_only_last_layers_see_a_gradient_and_after_a_step_all_do(host):
    """The nets of the conditions start at zero, so that the source enters after one step."""
    model, module = fresh(host, "plain"), host_module(host)
    target, source = pairs("plain", 32)
    module.prepare(model, target, source)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        (-module.log_prob(model, target, source).mean()).backward()
        optimizer.step()
        gradients = [p.grad for p in tower(model).steps.parameters()]
        reached.append(any(g is not None and g.any() for g in gradients))
    assert reached == [False, True]


@each_host
def test_the_joint_loss_runs_the_tower_once(host):
    model, module = build(host, "both-kinds"), host_module(host)
    target, source = pairs("both-kinds", 4)
    runs = []
    tower(model).register_forward_hook(lambda *_: runs.append(1))
    of_target, of_source = module.joint_log_prob(model, target, source)
    assert len(runs) == 1
    torch.testing.assert_close(of_target, module.log_prob(model, target, source))
    assert of_source.shape == (4,)
    for weight, options in ((1e-4, {}), (0.5, {"source_weight": 0.5})):
        loss = module.JointNegativeLogLikelihood(model, **options)(target, source)
        torch.testing.assert_close(loss, -of_target - weight * of_source)


@pytest.mark.slow
@each_host
def test_the_joint_loss_goes_down(host):
    module = host_module(host)
    model = module.build_full_glow(
        (1, 4, 4), levels=1, steps=2, hidden_channels=8, attention="imap"
    )
    source = torch.randn(64, 1, 4, 4)
    target = source.flip(3) + 0.1 * torch.randn(64, 1, 4, 4)
    module.prepare(model, target, source)
    loss = module.JointNegativeLogLikelihood(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(target, source).mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] - 6
    # Only the right source tells where the target is.
    with torch.no_grad():
        shuffled = loss(target, source.roll(1, 0)).mean()
    assert shuffled > losses[-1] + 6


@each_host
@each_variant
def test_a_checkpoint_needs_no_data(host, name, tmp_path):
    model = build(host, name)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = fresh(host, name)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    batches = pairs(name, 2)
    found, expected = (host_module(host).log_prob(m, *batches) for m in (other, model))
    assert torch.equal(found, expected)
    copied = host_module(host).log_prob(copy.deepcopy(model), *batches)
    assert torch.equal(copied, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name"), [("normflows", "itrans-sees-the-source"), ("nflows", "prior")]
)
def test_the_joint_loss_compiles_to_one_graph(host, name):
    torch.compiler.reset()
    model = build(host, name, steps=1, both_masks=False)
    loss = host_module(host).JointNegativeLogLikelihood(model)
    batches = pairs(name, 4)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batches), loss(*batches), atol=1e-4, rtol=1e-5)


@each_host
@pytest.mark.parametrize(
    "position", ["before_actnorm", "after_actnorm", "after_permutation", "after_coupling"]
)
def test_insertion_reaches_both_towers_like_the_builder(host, position):
    module = host_module(host)
    model = build(host, "coupling", attention=None)
    target, source = pairs("coupling", 4)
    before = module.joint_log_prob(model, target, source)
    report = module.insert_attention(
        model, "imap", example=target, context=source, position=position
    )
    after = module.joint_log_prob(model, target, source)
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a, b)
    inside = [layer for layer in tower(model).modules() if isinstance(layer, module.IMap)]
    assert inside
    towers, levels, steps, masks = 2, 2, 2, 2
    assert len(report.layers) == masks * towers * levels * steps
    assert len(inside) == len(report.layers) // 2


@each_host
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditioning": "none"}, "expected conditioning to be one of"),
        ({"trunk": "mean"}, "expected trunk to be one of"),
        ({"trunk": "tied"}, "size of at least 5x5, found 2x2"),
        ({"scale_map": "linear"}, "expected scale_map to be one of"),
        ({"hidden_channels": 0}, "hidden_channels to be a positive integer"),
        ({"levels": 3}, "divisible by 8"),
        ({"attention": {2: "imap"}}, "attention for levels 0 to 1"),
        ({"attention": "imap", "position": "after"}, "expected position to be one of"),
        ({"attention": lambda c: nn.Identity(), "context_in_attention": True}, "no layer of"),
    ],
)
def test_bad_options(host, options, message):
    options = {"levels": 2, "steps": 1, "hidden_channels": 4, **options}
    with pytest.raises(ValueError, match=message):
        host_module(host).build_full_glow((1, 4, 4), **options)


@each_host
def test_bad_input(host):
    module, model = host_module(host), build(host, "plain")
    target, source = pairs("plain", 2)
    with pytest.raises(ValueError, match="expected a context, found none"):
        module.log_prob(model, target)
    with pytest.raises(ValueError, match="expected a context"):
        module.joint_log_prob(model, target, source[:1])
    for wrong in (source.repeat(1, 3, 1, 1), source[:, :, :3], source[:, 0]):
        with pytest.raises(ValueError, match=r"SourceTower: expected sources of shape \(batch, 1"):
            module.joint_log_prob(model, target, wrong)
    glow = module.build_glow((1, 4, 4), levels=1, steps=1, hidden_channels=4)
    with pytest.raises(OptionError, match="made by build_full_glow, found a"):
        module.joint_log_prob(glow, target, source)
    with pytest.raises(OptionError, match="source_weight of at least zero, found -1"):
        module.JointNegativeLogLikelihood(model, -1)
