"""Whether a GPU computes what a CPU does, and how long a training step takes there.

`python -m tests.on_device exact` and `python -m tests.on_device speed`, with `--device cpu` to try
them without a GPU. They print Markdown tables.
"""

import argparse
import copy
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from tests.benchmarks.host_glows import normflows_glow
from tests.full_glow import models as full_glow
from tests.glow import models as glow
from tests.layers.compiled_sweep import model_batch
from tests.marflow import models as marflow
from tests.registry import CASES, PAPER
from tests.srflow import models as srflow
from tests.support import HOSTS, host_module, randomised

Numbers = list[Tensor]
DIRECTIONS = ("to_latent", "to_data")
#: Attentions of the timed models, by what the tables call them.
ARMS: dict[str, tuple[str, dict]] = {
    "IMap": ("imap", {}),
    "ITrans": ("itrans", {}),
    "ITrans, `affine`": ("itrans", {"affine": True}),
    "AttentionCoupling, windows of 8x8": ("coupling", {"window": 8}),
}


def gradients(layer: nn.Module, direction: str, event: Tensor) -> Numbers:
    """Outputs, log-dets, and the gradients of a loss of both."""
    event = event.detach().clone().requires_grad_()
    out, log_det = getattr(layer, direction)(event)
    loss = out.sin().sum() + log_det.sum()
    found = torch.autograd.grad(loss, [event, *layer.parameters()], materialize_grads=True)
    return [out, log_det, *found]


def difference(found: Numbers, expected: Numbers) -> float:
    """The largest one, relative to the largest entry of each tensor or to one."""
    return max(
        (
            float((ours.detach().cpu().double() - theirs.detach().double()).abs().max())
            / max(1.0, float(theirs.detach().abs().max()))
            for ours, theirs in zip(found, expected, strict=True)
            if theirs.numel()
        ),
        default=0.0,
    )


def layer_differences(device: torch.device) -> Iterator[tuple[str, str, float]]:
    """Each layer of the registry in both directions: case, setting and difference to the CPU."""
    for name, case in CASES.items():
        torch.manual_seed(0)
        layer = randomised(case.build(), 0.1 if name in PAPER else 0.3).double().eval()
        event = torch.randn(4, *case.shape, dtype=torch.float64)
        if name.startswith("bounded"):
            event = event.clamp(-3, 3)
        for direction in DIRECTIONS:
            expected = gradients(layer, direction, event)
            for setting, dtype, tf32 in SETTINGS:
                there = copy.deepcopy(layer).to(device, dtype)
                torch.backends.cuda.matmul.allow_tf32 = tf32
                found = gradients(there, direction, event.to(device, dtype))
                yield name, setting, difference(found, expected)
            torch.backends.cuda.matmul.allow_tf32 = False
            yield name, "float32 on the CPU", _on_the_cpu(layer, direction, event, expected)
        yield name, "bf16 autocast, round trip", round_trip(layer, event, device)


SETTINGS = (
    ("float64", torch.float64, False),
    ("float32", torch.float32, False),
    ("float32, TF32", torch.float32, True),
)


def _on_the_cpu(layer: nn.Module, direction: str, event: Tensor, expected: Numbers) -> float:
    return difference(gradients(copy.deepcopy(layer).float(), direction, event.float()), expected)


def round_trip(layer: nn.Module, event: Tensor, device: torch.device) -> float:
    """How far data come back from under autocast, with log-dets that cancel in full precision."""
    there, x = copy.deepcopy(layer).to(device, torch.float32), event.to(device, torch.float32)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        z, log_det = there.to_latent(x)
        back, other = there.to_data(z)
    assert log_det.dtype == torch.float32, log_det.dtype
    scale = max(1.0, float(x.abs().max()))
    return max(float((back - x).abs().max()) / scale, float((log_det + other).abs().max()))


def wrong_rows(device: torch.device) -> list[str]:
    """Layers where a row that is not finite has a log-det, or touches another row."""
    found = []
    for name, case in CASES.items():
        torch.manual_seed(0)
        layer = randomised(case.build(), 0.1).to(device).eval()
        good = torch.randn(4, *case.shape, device=device).clamp(-3, 3)
        bad = good.clone()
        bad[1].flatten()[0] = float("nan")
        for direction in DIRECTIONS:
            with torch.no_grad():
                _, expected = getattr(layer, direction)(good)
                out, log_det = getattr(layer, direction)(bad)
            others = [0, 2, 3]
            alone = torch.allclose(log_det[others], expected[others], atol=1e-5)
            if not (alone and bool(log_det[1].isnan()) and bool(out[others].isfinite().all())):
                found.append(f"{name} {direction}")
    return found


def model_differences(device: torch.device) -> Iterator[tuple[str, float]]:
    """Models of every builder of both hosts in float64: log-densities against the CPU."""
    for host in HOSTS:
        log_prob = host_module(host).log_prob
        for module in (glow, marflow, srflow, full_glow):
            for variant in module.VARIANTS:
                torch.manual_seed(0)
                model = module.build(host, variant).double().eval()
                event, context = model_batch(module, variant, 3)
                event, context = event.double(), glow.in_double(context)
                expected = log_prob(model, event, context)
                context = None if context is None else context.to(device)
                found = log_prob(model.to(device), event.to(device), context)
                family = module.__name__.split(".")[1]
                yield f"{family} {variant} of {host}", difference([found], [expected])


def synchronisations(device: torch.device) -> dict[str, int]:
    """How often a layer's forward and backward pass wait for the GPU, where they do."""
    counts = {}
    for name, case in CASES.items():
        layer = randomised(case.build(), 0.1).to(device)
        event = torch.randn(4, *case.shape, device=device).clamp(-3, 3)
        for direction in DIRECTIONS:
            gradients(layer, direction, event)  # Constants are copied once.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                gradients(layer, direction, event)
                torch.cuda.set_sync_debug_mode("default")
            waits = sum("synchronizing" in str(each.message) for each in caught)
            if waits:
                counts[f"{name} {direction}"] = waits
    return counts


def compiled_differences(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Compiled against eager gradients in float32, and eager against float64."""
    for name in ("imap-image", "itrans-image", "itrans-affine", "coupling-image", "itrans-rank"):
        case = CASES[name]
        torch.manual_seed(0)
        layer = randomised(case.build(), 0.3).to(device)
        event = torch.randn(16, *case.shape, device=device)
        for direction in DIRECTIONS:
            eager = gradients(layer, direction, event)
            exact = gradients(copy.deepcopy(layer).double(), direction, event.double())
            exact = [number.detach().cpu() for number in exact]
            torch.compiler.reset()
            there = copy.deepcopy(layer)
            run = torch.compile(partial(_run, there, direction), fullgraph=True, dynamic=False)
            x = event.detach().clone().requires_grad_()
            out, log_det = run(x)
            inputs = [x, *there.parameters()]
            loss = out.sin().sum() + log_det.sum()
            found = torch.autograd.grad(loss, inputs, materialize_grads=True)
            eager_on_cpu = [number.detach().cpu() for number in eager]
            compiled = difference([out, log_det, *found], eager_on_cpu)
            yield f"{name} {direction}", compiled, difference(eager, exact)


def _run(layer: nn.Module, direction: str, event: Tensor) -> tuple[Tensor, Tensor]:
    return getattr(layer, direction)(event)


def exact(device: torch.device) -> None:
    """Print how far the device is from the CPU."""
    worst: dict[str, tuple[float, str]] = {}
    for name, setting, found in layer_differences(device):
        if not found <= worst.get(setting, (-1.0, ""))[0]:
            worst[setting] = (found, name)
    print(f"{len(CASES)} layers and options in both directions, gradients included\n")
    print("| | largest difference | where |\n|---|---|---|")
    for setting, (found, name) in worst.items():
        print(f"| {setting} | {found:.1e} | `{name}` |")
    print("\nrows that are not finite and do not stay alone:", wrong_rows(device) or "none")
    models = list(model_differences(device))
    name, found = max(models, key=lambda each: each[1])
    print(f"{len(models)} models, float64: at most {found:.1e} ({name})", flush=True)
    if device.type == "cuda":
        print("waits for the GPU:", synchronisations(device) or "none", flush=True)
    for name, found, rounding in compiled_differences(device):
        print(f"compiled {name}: {found:.1e}; eager float32 against float64 {rounding:.1e}")


def training_step(model: nn.Module, batch: Tensor, autocast: bool) -> Callable[[], None]:
    """One step of a model of normflows, by its own loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=batch.is_cuda)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        inside = torch.autocast(batch.device.type, torch.bfloat16) if autocast else nullcontext()
        with inside:
            loss = model.forward_kld(batch)  # type: ignore[operator]
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Between two moments when the device had nothing to do."""
    _finished(device)
    start = time.perf_counter()
    step()
    _finished(device)
    return time.perf_counter() - start


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def speed(device: torch.device, steps: int, hidden: int, repeats: int) -> None:
    """Print times of the training step of the host's example Glow, plain and with attention."""
    insert = importlib.import_module("attnflow_plugin.normflows").insert_attention
    print(f"Glow of normflows, L = 3, K = {steps}, hidden {hidden}, 3x32x32\n")
    print("| batch | | plain, ms | " + " | ".join(ARMS) + " |")
    print("|---|---|---|" + "---|" * len(ARMS))
    for rows in (16, 128):
        torch.manual_seed(0)
        batch = torch.rand(rows, 3, 32, 32, device=device) - 0.5
        plain = normflows_glow((3, 32, 32), 3, steps, hidden).to(device)
        with torch.no_grad():
            plain.forward_kld(batch)
        models = {"plain": plain}
        for arm, (kind, options) in ARMS.items():
            models[arm] = copy.deepcopy(plain)
            insert(models[arm], kind, example=batch[:2], **options)
        for label, autocast in (("float32", False), ("bf16 autocast", True)):
            made = {arm: training_step(model, batch, autocast) for arm, model in models.items()}
            times = interleaved(made, device, repeats)
            print(f"| {rows} | {label} | " + _row(times), flush=True)
        if device.type == "cuda":
            print(f"| {rows} | peak memory | " + _row(_peaks(models, batch)), flush=True)
        sampling = {arm: partial(_sample, model, rows) for arm, model in models.items()}
        print(f"| {rows} | sampling | " + _row(interleaved(sampling, device, repeats)), flush=True)


def _sample(model: nn.Module, rows: int) -> None:
    with torch.no_grad():
        model.sample(rows)  # type: ignore[operator]


def interleaved(
    steps: dict[str, Callable[[], None]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Medians in milliseconds, each repeat with all of them."""
    times: dict[str, list[float]] = {arm: [] for arm in steps}
    for repeat in range(repeats + 2):
        for arm, step in steps.items():
            taken = seconds(step, device)
            if repeat > 1:
                times[arm].append(1e3 * taken)
    return {arm: statistics.median(found) for arm, found in times.items()}


def _peaks(models: dict[str, nn.Module], batch: Tensor) -> dict[str, float]:
    peaks = {}
    for arm, model in models.items():
        step = training_step(model, batch, autocast=False)
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peaks[arm] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return peaks


def _row(times: dict[str, float]) -> str:
    plain = times["plain"]
    return f"{plain:.1f} | " + " | ".join(f"{times[arm] / plain:.2f}" for arm in ARMS) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("exact", "speed"))
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--steps", type=int, default=16, help="K of the timed Glow")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if given.device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    if given.part == "exact":
        exact(given.device)
    else:
        speed(given.device, given.steps, given.hidden, given.repeats)


if __name__ == "__main__":
    main()
