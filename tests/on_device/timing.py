"""How long models with attention take on a device, beside the plain one, and what they learn."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attnflow_plugin.metrics import bits_per_dim, dequantize
from attnflow_plugin.normflows import NegativeLogLikelihood, insert_attention, prepare
from tests.benchmarks.host_glows import normflows_glow

#: Attentions of the models, by what the tables call them.
ARMS: dict[str, tuple[str, dict]] = {
    "IMap": ("imap", {}),
    "ITrans": ("itrans", {}),
    "ITrans, `affine`": ("itrans", {"affine": True}),
    "AttentionCoupling, windows of 8x8": ("attention_coupling", {"window": 8}),
}
PLAIN = "plain"
SHAPE = (3, 32, 32)

Step = Callable[[], object]
Models = dict[str, nn.Module]
Loss = Callable[[Tensor], Tensor]


class Sizes(NamedTuple):
    """Of what is measured.

    Attributes:
        levels: L of the timed Glow.
        steps: its K.
        compiled_steps: K where it is compiled, which takes a minute for each model.
        compiled: what is compiled.
        hidden: channels of the coupling nets.
        batches: rows.
        repeats: of each measurement.
        training: steps of the paired training.
    """

    levels: int = 3
    steps: int = 16
    compiled_steps: int = 1
    compiled: tuple[str, ...] = (PLAIN, "ITrans", "AttentionCoupling, windows of 8x8")
    hidden: int = 256
    batches: tuple[int, ...] = (16, 128)
    repeats: int = 10
    training: int = 300


#: Where only whether all of it runs is to be seen.
FEW = Sizes(levels=1, steps=1, compiled=(PLAIN,), hidden=4, batches=(2,), repeats=1, training=2)


def glows(device: torch.device, steps: int, hidden: int, shape: tuple, levels: int) -> Models:
    """The same prepared Glow of normflows, plain and with each attention."""
    torch.manual_seed(0)
    plain = normflows_glow(shape, levels, steps, hidden)
    example = torch.rand(64, *shape) - 0.5
    prepare(plain, example)
    models = {PLAIN: plain}
    for arm, (kind, options) in ARMS.items():
        models[arm] = copy.deepcopy(plain)
        torch.manual_seed(0)
        insert_attention(models[arm], kind, example=example[:2], **options)
    return {arm: model.to(device) for arm, model in models.items()}


def training_step(
    model: nn.Module, batch: Tensor, inside: AbstractContextManager, loss: Loss | None = None
) -> Step:
    """One step, by the mean of the negative log-likelihood."""
    on_gpu = batch.is_cuda
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=on_gpu, capturable=on_gpu)
    of_rows = NegativeLogLikelihood(model) if loss is None else loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with inside:
            value = of_rows(batch).mean()
        value.backward()
        optimizer.step()

    return step


def as_a_graph(step: Step) -> Step:
    """The step recorded by CUDA and replayed, which takes no time of the CPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def interleaved(steps: Mapping[str, Step], device: torch.device, repeats: int) -> dict[str, float]:
    """Medians in milliseconds, each repeat with all of them."""
    times: dict[str, list[float]] = {arm: [] for arm in steps}
    for repeat in range(repeats + 2):
        for arm, step in steps.items():
            taken = milliseconds(step, device)
            if repeat > 1:
                times[arm].append(taken)
    return {arm: statistics.median(found) for arm, found in times.items()}


def milliseconds(step: Step, device: torch.device) -> float:
    """By events of the GPU, or by the clock of this process on the CPU."""
    if device.type != "cuda":
        start = time.process_time()
        step()
        return 1e3 * (time.process_time() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    step()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def peaks(steps: Mapping[str, Step]) -> dict[str, float]:
    """Memory in MiB that a step takes beside the model."""
    found = {}
    for arm, step in steps.items():
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        found[arm] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def rows(device: torch.device, sizes: Sizes) -> Iterable[tuple[int, str, dict[str, float]]]:
    """Batch size, what is measured, and for every model milliseconds or MiB."""
    for count in sizes.batches:
        models = glows(device, sizes.steps, sizes.hidden, SHAPE, sizes.levels)
        batch = torch.rand(count, *SHAPE, device=device) - 0.5
        times = partial(interleaved, device=device, repeats=sizes.repeats)
        for label, inside in (
            ("float32", nullcontext()),
            ("bf16 autocast", torch.autocast(device.type, torch.bfloat16)),
        ):
            yield count, label, times(_steps(models, batch, inside))
        if device.type == "cuda":
            yield count, "peak memory, MiB", peaks(_steps(models, batch))
            graphs = {arm: as_a_graph(step) for arm, step in _steps(models, batch).items()}
            yield count, "CUDA graph", times(graphs)
        yield count, "sampling", times({a: partial(_sample, m, count) for a, m in models.items()})


def compiled_rows(
    device: torch.device, sizes: Sizes, backend: str = "inductor"
) -> Iterable[tuple[int, str, dict[str, float]]]:
    """The same of a smaller Glow, compiled and not."""
    models = glows(device, sizes.compiled_steps, sizes.hidden, SHAPE, sizes.levels)
    models = {arm: models[arm] for arm in sizes.compiled}
    for count in sizes.batches:
        batch = torch.rand(count, *SHAPE, device=device) - 0.5
        yield count, "eager", interleaved(_steps(models, batch), device, sizes.repeats)
        torch.compiler.reset()
        steps = {
            arm: training_step(
                model,
                batch,
                nullcontext(),
                torch.compile(NegativeLogLikelihood(model), fullgraph=True, backend=backend),
            )
            for arm, model in models.items()
        }
        yield count, "compiled", interleaved(steps, device, sizes.repeats)


def _steps(
    models: Models, batch: Tensor, inside: AbstractContextManager | None = None
) -> dict[str, Step]:
    inside = inside or nullcontext()
    return {arm: training_step(model, batch, inside) for arm, model in models.items()}


@torch.no_grad()
def _sample(model: nn.Module, count: int) -> None:
    model.sample(count)  # type: ignore[operator]


def paired_training(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """Bits/dim of 360 digits after short trainings from one start on the same batches."""
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
    data = dequantize(digits, levels=17, generator=torch.Generator().manual_seed(0)).to(device)
    training, testing = data[:-360], data[-360:]
    found = {}
    for arm, model in glows(device, 4, 32, (1, 8, 8), levels=2).items():
        random = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        loss = NegativeLogLikelihood(model)
        for _ in range(sizes.training):
            chosen = torch.randint(len(training), (64,), generator=random)
            optimizer.zero_grad()
            loss(training[chosen.to(device)]).mean().backward()
            optimizer.step()
        with torch.no_grad():
            found[arm] = float(bits_per_dim(-loss(testing), (1, 8, 8), levels=17).mean())
    return found
