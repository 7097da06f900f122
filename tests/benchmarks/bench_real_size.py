"""What attention costs at real size: the Glow of normflows' example, the paper's models, images.

Steps of the Glow: 4, or as many as in the example by ``--glow-steps 16``.
"""

from functools import partial

import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans, normflows
from attnflow_plugin.backbones.nets import ConvNet
from attnflow_plugin.layers.affine import AffineCoupling
from tests.benchmarks import host_glows
from tests.benchmarks.interleaved import DEVICE, take_turns
from tests.benchmarks.passes import evaluation, kept_for_backward, run, training
from tests.support import host_module, randomised

PLAIN = "without attention"
WINDOWS = "AttentionCoupling, windows of 4"
GLOW = {
    PLAIN: {},
    "IMap": {"attention": "imap"},
    "ITrans, 4 tokens": {"attention": "itrans", "attention_options": {"patches": 2}},
    "ITrans, 4 tokens, 5 heads": {
        "attention": "itrans",
        "attention_options": {"patches": 2, "heads": 5},
    },
    "ITrans": {"attention": "itrans"},
    "ITrans, affine": {"attention": "itrans", "attention_options": {"affine": True}},
    WINDOWS: {"attention": "attention_coupling", "attention_options": {"window": 4}},
}
TASKS = ("training step", "density", "sampling")


def model_tasks(module, model, x, context):
    """What is timed of a model, by name."""

    def step():
        model.zero_grad()
        module.log_prob(model, x, context).mean().backward()

    density = torch.no_grad()(partial(module.log_prob, model, x, context))
    sampling = partial(module.sample, model, len(x), context=context)
    if context is not None and module is not normflows:  # One sample of each context.
        sampling = partial(module.sample, model, 1, context=context)
    return dict(zip(TASKS, (step, density, sampling), strict=True))


def measure(module, models, x, context=None, *, rounds):
    """A row for each model, relative to the plain one; all of them take turns."""
    for model in models.values():
        module.prepare(model.to(DEVICE), x, context)
    tasks = {name: model_tasks(module, model, x, context) for name, model in models.items()}
    turns = {
        task: take_turns({name: each[task] for name, each in tasks.items()}, rounds, warm_up=1)
        for task in TASKS
    }
    memory = {
        name: kept_for_backward(partial(module.log_prob, model, x, context))
        for name, model in models.items()
    }
    return [
        {
            "model": name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **{task: turn.ratio(name, PLAIN) for task, turn in turns.items()},
            "memory": memory[name] / memory[PLAIN],
        }
        for name, model in models.items()
    ]


@pytest.mark.parametrize(("host", "batch"), [("normflows", 16), ("nflows", 16), ("normflows", 64)])
def test_glow(measured, host, batch, request):
    shape, levels, hidden = (3, 32, 32), 3, 256
    steps = request.config.getoption("--glow-steps")
    module, x = host_module(host), torch.rand(batch, *shape, device=DEVICE)
    size = {"levels": levels, "steps": steps, "hidden_channels": hidden}
    models = {name: module.build_glow(shape, **size, **options) for name, options in GLOW.items()}
    own = getattr(host_glows, f"{host}_glow")(shape, levels, steps, hidden)
    models["the host's own layers"] = own
    table = (
        f"Glow in {host}, 3 levels of {steps} steps, 256 hidden channels, {batch} images of 3x32x32"
    )
    measured(table, lambda: measure(module, models, x, rounds=5))


#: The builder, its options, the sizes of data and context, and the paper's ratios of training and
#: test time for IMap and ITrans: those of mARFlow on CIFAR-10, those of SRFlow on CelebA.
MARFLOW = ("mARFlow", normflows.build_marflow, {"levels": 3, "dropout": 0.0})
SRFLOW = ("SRFlow", normflows.build_srflow, {"scale": 8})
FULL_GLOW = ("Full-Glow", normflows.build_full_glow, {})
PAPERS = [
    (*MARFLOW, {"steps": 4, "hidden_channels": 96}, (4, 3, 32, 32), None, "5 heads"),
    (*SRFLOW, {"levels": 1, "steps": 1}, (4, 3, 80, 80), (4, 3, 10, 10), "5 heads"),
    (*SRFLOW, {"levels": 2, "steps": 8}, (4, 3, 80, 80), (4, 3, 10, 10), "5 heads"),
    (*FULL_GLOW, {"levels": 2, "steps": 8}, (2, 3, 32, 32), (2, 3, 32, 32), "1 head"),
]
PUBLISHED = {
    ("mARFlow", "IMap"): {"paper, training": 1.2, "paper, test": 1.04},
    ("mARFlow", "ITrans"): {"paper, training": 2.0, "paper, test": 1.27},
    ("SRFlow", "IMap"): {"paper, training": 1.5, "paper, test": 1.35},
    ("SRFlow", "ITrans"): {"paper, training": 2.0, "paper, test": 4.1},
}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: f"{paper[0]} {paper[3]}")
def test_models_of_the_paper(measured, paper):
    name, build, options, size, shape, context_shape, heads = paper
    build = partial(build, shape[1:], **options, **size)
    published = {"init": "paper"}
    itrans = {**published, "heads": int(heads[0])}
    models = {
        PLAIN: build(),
        "IMap": build(attention="imap", attention_options=published),
        f"ITrans, {heads}": build(attention="itrans", attention_options=itrans),
    }
    torch.manual_seed(0)
    x = torch.rand(shape, device=DEVICE)
    context = None if context_shape is None else torch.rand(context_shape, device=DEVICE)
    label = ", ".join([name, *(f"{key} {value}" for key, value in size.items())])
    label = label.replace("hidden_channels", "hidden")

    def rows():
        found = measure(normflows, models, x, context, rounds=3)
        return [
            {**row, "model": f"{label}: {row['model']}", **PUBLISHED.get(_key(name, row), {})}
            for row in found
        ]

    measured('The paper\'s models in normflows, init="paper"', rows)


def _key(name, row):
    return (name, row["model"].partition(",")[0])


#: Attention for events of any size; without windows or a rank, all pairs of positions are too many.
LAYERS = {
    "IMap": IMap,
    "ITrans, 4 tokens": partial(ITrans, patches=2),
    "ITrans, 4 tokens, 5 heads": partial(ITrans, patches=2, heads=5),
    "ITrans": ITrans,
    "ITrans, affine": partial(ITrans, affine=True),
    WINDOWS: partial(AttentionCoupling, window=4),
}


@pytest.mark.parametrize(("size", "batch"), [(64, 4), (256, 1)])
def test_layers(measured, size, batch):
    shape = (12, size, size)
    coupling = AffineCoupling(shape[0], partial(ConvNet, hidden_channels=256)).to(DEVICE)
    candidates = {PLAIN: [coupling]}
    for name, kind in LAYERS.items():
        both = [randomised(kind(shape[0], flip=flip), 0.1).to(DEVICE) for flip in (False, True)]
        candidates[name] = [coupling, *both]
    x = torch.randn(batch, *shape, device=DEVICE)
    timed = zip(TASKS, (training, evaluation, evaluation), strict=True)
    directions = ("to_latent", "to_latent", "to_data")

    def rows():
        turns = {
            task: take_turns(
                {name: make(layers, direction, x) for name, layers in candidates.items()},
                rounds=5,
                warm_up=1,
            )
            for (task, make), direction in zip(timed, directions, strict=True)
        }
        memory = {
            name: kept_for_backward(partial(run, layers, "to_latent", x))
            for name, layers in candidates.items()
        }
        return [
            {
                "two layers behind a coupling": name,
                **{task: turn.ratio(name, PLAIN) for task, turn in turns.items()},
                "memory": memory[name] / memory[PLAIN],
            }
            for name in candidates
        ]

    measured(f"Layers for events of 12x{size}x{size}, behind a coupling of 256 channels", rows)
