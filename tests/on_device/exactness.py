"""What a device computes, beside what a CPU does in float64."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.full_glow import models as full_glow
from tests.glow import models as glow
from tests.layers.compiled_sweep import model_batch
from tests.layers.nets import LAYERS
from tests.marflow import models as marflow
from tests.registry import CASES, PAPER
from tests.srflow import models as srflow
from tests.support import HOSTS, host_module, randomised

Numbers = list[Tensor]
DIRECTIONS = ("to_latent", "to_data")
#: Of every layer with and without a net inside.
NAMES = (*CASES, *LAYERS)
#: Of every builder: host, module of its tests, and variant.
MODELS = [
    (host, module, variant)
    for host in HOSTS
    for module in (glow, marflow, srflow, full_glow)
    for variant in module.VARIANTS
]
TEMPERATURE = 0.7
SETTINGS = (
    ("float64", torch.float64, False),
    ("float32", torch.float32, False),
    ("float32, TF32", torch.float32, True),
)


class Given(NamedTuple):
    """A layer in float64 and what it is given."""

    layer: nn.Module
    event: Tensor
    context: Tensor | None = None

    @classmethod
    def of(cls, name: str) -> "Given":
        torch.manual_seed(0)
        if name in LAYERS:
            event, context = torch.randn(4, 3, 4, 4).double(), torch.randn(4, 2, 4, 4).double()
            return cls(randomised(LAYERS[name], 0.2).double().eval(), event, context)
        layer = randomised(CASES[name].build(), 0.1 if name in PAPER else 0.3).double().eval()
        event = torch.randn(4, *CASES[name].shape, dtype=torch.float64)
        # The intervals of events on circles and in boxes are wider.
        return cls(layer, event.clamp(-3, 3) if name.startswith("bounded") else event)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Given":
        context = None if self.context is None else self.context.to(device, dtype)
        return Given(
            copy.deepcopy(self.layer).to(device, dtype), self.event.to(device, dtype), context
        )

    def run(self, direction: str, event: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(self.layer, direction)(event, self.context)

    def gradients(self, direction: str, run: Callable | None = None) -> Numbers:
        """Outputs, log-dets, and the gradients of a loss of both."""
        event = self.event.detach().clone().requires_grad_()
        out, log_det = (run or self.run)(direction, event)
        inputs = [event, *self.layer.parameters()]
        loss = out.sin().sum() + log_det.sum()
        return [out, log_det, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def difference(found: Numbers, expected: Numbers) -> float:
    """The largest one, relative to the largest entry of each tensor or to one."""
    return max(
        (
            float((ours.detach().cpu().double() - theirs.detach().cpu().double()).abs().max())
            / max(1.0, float(theirs.detach().abs().max()))
            for ours, theirs in zip(found, expected, strict=True)
            if theirs.numel()
        ),
        default=0.0,
    )


def layer_differences(
    device: torch.device, names: Iterable[str] = NAMES
) -> Iterator[tuple[str, str, float]]:
    """Layers in both directions: name, setting and difference to the CPU."""
    for name in names:
        given = Given.of(name)
        for direction in DIRECTIONS:
            expected = given.gradients(direction)
            for setting, dtype, tf32 in SETTINGS:
                with tensor_cores(tf32):
                    found = given.to(device, dtype).gradients(direction)
                yield name, setting, difference(found, expected)
            on_the_cpu = given.to(torch.device("cpu"), torch.float32).gradients(direction)
            yield name, "float32 on the CPU", difference(on_the_cpu, expected)
        if name in CASES:
            yield name, "bf16 autocast, round trip", round_trip(given.to(device, torch.float32))


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Products of matrices in TF32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@torch.no_grad()
def round_trip(given: Given) -> float:
    """How far data come back from under autocast, with log-dets that cancel in full precision."""
    with torch.autocast(given.event.device.type, torch.bfloat16):
        z, log_det = given.run("to_latent", given.event)
        back, other = given.run("to_data", z)
    assert log_det.dtype == torch.float32, log_det.dtype
    scale = max(1.0, float(given.event.abs().max()))
    return max(
        float((back - given.event).abs().max()) / scale, float((log_det + other).abs().max())
    )


@torch.no_grad()
def wrong_rows(device: torch.device, names: Iterable[str] = tuple(CASES)) -> list[str]:
    """Layers where a row that is not finite has a log-det, or touches another row."""
    found = []
    for name in names:
        given = Given.of(name).to(device, torch.float32)
        bad = given.event.clone()
        bad[1].flatten()[0] = float("nan")
        for direction in DIRECTIONS:
            _, expected = given.run(direction, given.event)
            out, log_det = given.run(direction, bad)
            others = [0, 2, 3]
            alone = torch.allclose(log_det[others], expected[others], atol=1e-4)
            if not (alone and bool(log_det[1].isnan()) and bool(out[others].isfinite().all())):
                found.append(f"{name} {direction}")
    return found


class SameNoise(TorchFunctionMode):
    """Normal numbers that do not depend on the device."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function is not torch.randn:
            return function(*args, **kwargs)
        drawn = torch.randn(*args, generator=self.generator, dtype=torch.float64)
        return drawn.to(kwargs.get("device"), kwargs.get("dtype") or torch.get_default_dtype())


def model_differences(
    device: torch.device, models: Iterable[tuple[str, ModuleType, str]] = MODELS
) -> Iterator[tuple[str, str, float]]:
    """Log-densities, and samples with a temperature, of models of every builder of both hosts."""
    for host, module, variant in models:
        torch.manual_seed(0)
        name = f"{module.__name__.split('.')[1]} {variant} of {host}"
        model = module.build(host, variant).eval()
        event, context = model_batch(module, variant, 3)
        expected = _density_and_samples(host, model, event, context, torch.float64)
        model.to(device)
        event, context = event.to(device), None if context is None else context.to(device)
        for dtype in (torch.float64, torch.float32):
            found = _density_and_samples(host, model, event, context, dtype)
            what = str(dtype).removeprefix("torch.")
            yield name, f"log-density, {what}", difference(found[:1], expected[:1])
            yield name, f"samples, {what}", difference(found[1:], expected[1:])


@torch.no_grad()
def _density_and_samples(
    host: str, model: nn.Module, event: Tensor, context: Tensor | None, dtype: torch.dtype
) -> Numbers:
    library, model = host_module(host), copy.deepcopy(model).to(dtype=dtype)
    if context is not None and context.is_floating_point():
        context = context.to(dtype)
    log_prob = library.log_prob(model, event.to(dtype), context)
    rows = 1 if host == "nflows" and context is not None else len(event)
    with SameNoise():
        samples, densities = library.sample(model, rows, context=context, temperature=TEMPERATURE)
    assert samples.device == log_prob.device == event.device
    return [log_prob, samples, densities]


def waits(device: torch.device, names: Iterable[str] = NAMES) -> dict[str, int]:
    """How often a layer's forward and backward pass wait for the GPU, where they do."""
    counts = {}
    for name in names:
        given = Given.of(name).to(device, torch.float32)
        for direction in DIRECTIONS:
            given.gradients(direction)  # Constants are copied once.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                given.gradients(direction)
                torch.cuda.set_sync_debug_mode("default")
            found = sum("synchronizing" in str(each.message) for each in caught)
            if found:
                counts[f"{name} {direction}"] = found
    return counts


COMPILED = ("imap-image", "itrans-image", "itrans-affine", "coupling-image", "itrans-rank")


def compiled_differences(
    device: torch.device, names: Iterable[str] = COMPILED, backend: str = "inductor"
) -> Iterator[tuple[str, float, float]]:
    """Compiled against eager gradients in float32, and eager against float64."""
    for name in names:
        exact = Given.of(name)
        single = exact.to(device, torch.float32)
        for direction in DIRECTIONS:
            torch.compiler.reset()
            run = torch.compile(
                partial(single.run, direction), fullgraph=True, dynamic=False, backend=backend
            )
            found = single.gradients(direction, lambda _, event, run=run: run(event))
            eager = single.gradients(direction)
            rounding = difference(eager, exact.gradients(direction))
            yield f"{name} {direction}", difference(found, eager), rounding
