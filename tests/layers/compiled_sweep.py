"""How far gradients of compiled layers and models are from eager ones, over all there are.

Too slow for a test, at ten seconds and more for each graph. It is for a new version of torch or a
new layer: ``python -m tests.layers.compiled_sweep RESULTS.jsonl [MINUTES]`` adds a line for each
graph, begins with what tells most, goes on where it stopped and ends with the worst.
"""

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.full_glow import models as full_glow
from tests.glow import models as glow
from tests.layers.nets import LAYERS
from tests.marflow import models as marflow
from tests.registry import CASES
from tests.srflow import models as srflow
from tests.support import HOSTS, host_module, randomised

#: Direction, rows and whether the input needs a gradient. All cases run the first and some others.
FIRST = ("to_latent", 3, True)
OTHERS = [
    ("to_data", 3, True),
    ("to_latent", 16, False),
    ("to_latent", 1, True),
    ("to_data", 16, False),
    ("to_data", 1, True),
    ("to_latent", 16, True),
    ("to_data", 1, False),
]
#: Models of every builder, by the module of the tests that makes them.
MODELS = [
    (glow, "imap-everywhere"),
    (marflow, "itrans"),
    (srflow, "imap"),
    (full_glow, "both-kinds"),
    (glow, "context-in-itrans"),
    (marflow, "plain"),
    (srflow, "features-in-itrans"),
    (full_glow, "itrans-sees-the-source"),
    (glow, "map"),
    (srflow, "plain"),
    (full_glow, "plain"),
    (glow, "both-kinds"),
    (glow, "classes"),
    (full_glow, "prior"),
]

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


class Subject(NamedTuple):
    """A module, what of it runs, and on what.

    Attributes:
        module: whose parameters count.
        run: the outputs of a module, an event and a context.
        event: batch.
        context: for the batch, if it takes one.
        needs_gradient: whether the event does.
    """

    module: nn.Module
    run: Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    event: Tensor
    context: Tensor | None
    needs_gradient: bool

    def twin(self, dtype: torch.dtype) -> "Subject":
        """The same in another precision, or a copy."""
        context = self.context
        if context is not None and context.is_floating_point():
            context = context.to(dtype)
        module = copy.deepcopy(self.module).to(dtype)
        return self._replace(module=module, event=self.event.to(dtype), context=context)

    def gradients(self, compiled: bool = False) -> list[Tensor]:
        """Of a loss that no gradient is constant in, the event's first."""
        event = self.event.clone().requires_grad_(self.needs_gradient)
        run = partial(self.run, self.module)
        if compiled:
            torch.compiler.reset()
            run = torch.compile(run, fullgraph=True, dynamic=False)
        out, log_det = run(event, self.context)
        inputs = [event] * self.needs_gradient + list(self.module.parameters())
        loss = out.sin().sum() + log_det.sum()
        return list(torch.autograd.grad(loss, inputs, materialize_grads=True))


def layer_subjects() -> dict[str, Callable[[str, int, bool], Subject]]:
    """Makers of subjects by direction, rows and need of a gradient."""

    def registered(name: str, direction: str, rows: int, needs_gradient: bool) -> Subject:
        case = CASES[name]
        event = torch.randn(rows, *case.shape)
        return _layer(randomised(case.build(), 0.3), direction, event, None, needs_gradient)

    def with_net(name: str, direction: str, rows: int, needs_gradient: bool) -> Subject:
        event, context = torch.randn(rows, 3, 4, 4), torch.randn(rows, 2, 4, 4)
        layer = randomised(LAYERS[name], 0.2)
        return _layer(layer, direction, event, context, needs_gradient)

    return {
        **{name: partial(registered, name) for name in CASES},
        **{name: partial(with_net, name) for name in LAYERS},
    }


def _layer(
    layer: nn.Module, direction: str, event: Tensor, context: Tensor | None, needs_gradient: bool
) -> Subject:
    def run(module: nn.Module, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return getattr(module, direction)(event, context)

    return Subject(layer, run, event, context, needs_gradient)


def model_subject(module: ModuleType, variant: str, host: str) -> Subject:
    """A prepared model and the log-density of a batch of four."""
    event, context = model_batch(module, variant, 4)
    log_prob = host_module(host).log_prob

    def run(model: nn.Module, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return event, log_prob(model, event, context)

    return Subject(module.build(host, variant).eval(), run, event, context, True)


def model_batch(module: ModuleType, variant: str, rows: int) -> tuple[Tensor, Tensor | None]:
    """Random events and contexts that a variant of a builder takes."""
    if module is srflow:
        return srflow.batch(variant, rows)
    if module is full_glow:
        return full_glow.pairs(variant, rows)
    if module is glow:
        options = glow.VARIANTS[variant]
        return torch.randn(rows, *options.shape), glow.context_for(options, rows)
    return torch.randn(rows, *marflow.VARIANTS[variant].shape), None


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of any gradient, relative to the largest entry of that gradient.

    Gradients that are zero but for rounding are measured by the largest of all.
    """
    largest = max(float(gradient.abs().max()) for gradient in expected)
    return max(
        float((ours.double() - theirs.double()).abs().max())
        / max(float(theirs.abs().max()), 1e-3 * largest)
        for ours, theirs in zip(found, expected, strict=True)
    )


def compare(subject: Subject) -> dict[str, float | str]:
    """Compiled against eager, and eager float32 against float64."""
    eager = subject.twin(torch.float32).gradients()
    rounding = worst(eager, subject.twin(torch.float64).gradients())
    try:
        return {"compiled": worst(subject.gradients(compiled=True), eager), "eager": rounding}
    except Exception as error:  # A backend may fail in any way, and the sweep goes on.
        return {"error": f"{type(error).__name__}: {str(error)[:300]}", "eager": rounding}


def plan() -> Iterator[tuple[str, Callable[[], Subject]]]:
    """What to compare, in order, by name."""
    makers = layer_subjects()
    yield from ((_label(name, *FIRST), partial(make, *FIRST)) for name, make in makers.items())
    for (module, variant), host in product(MODELS, HOSTS):
        family = module.__name__.split(".")[1]
        yield f"{family} {variant} of {host}", partial(model_subject, module, variant, host)
    for turn in range(len(OTHERS)):
        for index, (name, make) in enumerate(makers.items()):
            setting = OTHERS[(index + turn) % len(OTHERS)]
            yield _label(name, *setting), partial(make, *setting)


def _label(name: str, direction: str, rows: int, needs_gradient: bool) -> str:
    return f"{name} {direction} of {rows}{', input with gradient' * needs_gradient}"


def main(path: Path, minutes: float = 1e9) -> None:
    """Compare until the time is over, and print the worst."""
    warnings.simplefilter("ignore")
    stop = time.monotonic() + 60 * minutes
    lines = path.read_text().splitlines() if path.exists() else []
    results = {record["name"]: record for record in map(json.loads, lines)}
    for name, make in plan():
        if time.monotonic() > stop:
            break
        if name not in results:
            torch.manual_seed(0)
            results[name] = {"name": name, **compare(make())}
            with path.open("a") as file:
                file.write(json.dumps(results[name]) + "\n")
    failed = [record for record in results.values() if "error" in record]
    compared = [record for record in results.values() if "error" not in record]
    print(f"{len(compared)} graphs compared, {len(failed)} not compiled")
    by_difference = sorted(compared, key=lambda record: -record["compiled"])
    for record in failed + by_difference[:10]:
        print(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:3]))
