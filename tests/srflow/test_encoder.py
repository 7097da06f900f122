"""The low-resolution encoder: its maps, its pre-training, its freezing."""

import pytest
import torch
import torch.nn.functional as F

from attnflow_plugin.backbones import RRDBEncoder, encoder_of, pretraining_loss
from attnflow_plugin.backbones.rrdb import level_name
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from tests.srflow.models import batch, build
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)


def small(**options):
    sizes = {"blocks": 3, "channels": 4, "growth_channels": 2, "scale": 4, "levels": 3}
    return RRDBEncoder(**{**sizes, **options})


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_maps_have_the_sizes_of_the_levels(scale, levels, blocks):
    encoder = small(scale=scale, levels=levels, blocks=blocks)
    features = encoder(torch.rand(2, 3, 8, 16))
    assert list(features) == [level_name(level) for level in range(levels)]
    channels = 4 * (1 + min(blocks, 4))
    assert encoder.feature_channels == channels
    for level, maps in enumerate(features.values()):
        height, width = 8 * scale // 2 ** (level + 1), 16 * scale // 2 ** (level + 1)
        assert maps.shape == (2, channels, height, width)


def test_maps_of_every_level_are_those_of_the_definition():
    encoder = small(scale=8, levels=4, blocks=8)
    image = torch.rand(1, 3, 4, 4)
    hidden = shallow = encoder.first(image)
    outputs = []
    for block in encoder.blocks:
        hidden = block(hidden)
        outputs.append(hidden)
    stacked = torch.cat([outputs[index] for index in (1, 3, 5, 7)], 1)
    deep = shallow + encoder.trunk(hidden)
    twice = encoder.up[0](deep.repeat_interleave(2, 2).repeat_interleave(2, 3))
    activated = F.leaky_relu(twice, 0.2)
    four_times = encoder.up[1](activated.repeat_interleave(2, 2).repeat_interleave(2, 3))
    half = F.interpolate(deep, scale_factor=0.5, mode="bilinear", align_corners=False)
    for level, own in enumerate((four_times, twice, deep, half)):
        resized = F.interpolate(stacked, size=own.shape[2:], mode="nearest")
        expected = torch.cat([own, resized], 1)
        torch.testing.assert_close(encoder(image)[level_name(level)], expected)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_pretraining_learns_to_enlarge(scale):
    encoder = small(scale=scale, levels=2, image_head=True)
    low = torch.rand(4, 3, 4, 4)
    high = F.interpolate(low, scale_factor=scale, mode="nearest")
    assert encoder.super_resolve(low).shape == high.shape
    optimiser = torch.optim.Adam(encoder.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = pretraining_loss(encoder, low, high)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_pretraining_needs_a_head_and_images_that_belong_together():
    low = torch.rand(2, 3, 4, 4)
    with pytest.raises(OptionError, match=r"super_resolve: expected .* image_head=True"):
        small().super_resolve(low)
    with pytest.raises(ShapeError, match=r"of shape \(2, 3, 16, 16\), found \(1, 3, 16, 16\)"):
        pretraining_loss(small(image_head=True), low, torch.rand(1, 3, 16, 16))


@each_host
def test_a_frozen_encoder_stays_whatever_the_optimiser_does(host):
    module, model = host_module(host), build(host, "two-levels-split")
    encoder = encoder_of(model)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    loss = module.NegativeLogLikelihood(model)

    def train():
        loss(*batch("two-levels-split", 8)).mean().backward()
        optimiser.step()

    def moved(step):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        step()
        inside = {f"{prefix}{key}" for key in encoder.state_dict()}
        changed = {key for key, value in model.state_dict().items() if (value != before[key]).any()}
        return bool(changed & inside), bool(changed - inside)

    [prefix] = [f"{name}." for name, part in model.named_modules() if part is encoder]
    assert moved(train) == (True, True)
    encoder.freeze()  # With gradients and momentum in place.
    model.train()
    assert moved(train) == (False, True)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    encoder.unfreeze()
    assert moved(train) == (True, True)


def test_a_frozen_encoder_keeps_no_graph():
    encoder = small()
    encoder.freeze()
    assert not any(maps.requires_grad for maps in encoder(torch.rand(1, 3, 4, 4)).values())


def test_encoder_of_looks_into_wrappers_and_refuses_what_has_none():
    model = build("normflows", "plain")
    assert encoder_of(torch.nn.Sequential(model)) is model.embedding
    with pytest.raises(OptionError, match="one RRDBEncoder, found 0 in a Linear"):
        encoder_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("options", "image", "error", "message"),
    [
        ({}, None, MissingContextError, "expected a low-resolution image, found none"),
        ({}, [1.0], ShapeError, r"\(B, 3, h, w\), found list"),
        ({}, torch.rand(3, 4, 4), ShapeError, r"\(B, 3, h, w\), found \(3, 4, 4\)"),
        ({}, torch.rand(1, 1, 4, 4), ShapeError, r"found \(1, 1, 4, 4\)"),
        ({"levels": 4}, torch.rand(1, 3, 6, 4), ShapeError, "divisible by 4, for 4 levels"),
        ({"image_size": (4, 8)}, torch.rand(1, 3, 8, 4), ShapeError, r"\(B, 3, 4, 8\), found"),
    ],
)
def test_refuses_images(options, image, error, message):
    with pytest.raises(error, match=message):
        small(**options)(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1}, "power of two from 2 on, found 1"),
        ({"scale": 6}, "power of two from 2 on, found 6"),
        ({"blocks": 0}, "blocks to be a positive integer, found 0"),
        ({"levels": 0}, "levels to be a positive integer"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(OptionError, match=message):
        small(**options)
