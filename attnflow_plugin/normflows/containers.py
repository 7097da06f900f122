"""Containers: flows made of flows, and a multi-scale model whose layers get a context."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import normflows as nf
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError, non_negative_int
from attnflow_plugin.inputs import (
    context_rows,
    require_context,
    require_labels,
    require_rows,
    require_temperature,
)
from attnflow_plugin.layers.base import Context


class Chain(nf.flows.Flow):
    r"""Several flows in a row, listed latent to data: $x = f_n(\dots f_1(z))$.

    Unlike ``normflows.flows.Composite``, it accumulates the log-det in the dtype and on the device
    of its input. Further arguments, such as a context, go to every flow.

    Args:
        flows: the flows, latent to data.
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, z: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Latent to data; the log-det has shape ``(B,)``."""
        log_det = z.new_zeros(z.shape[0])
        for flow in self.flows:
            z, step = flow(z, *args, **kwargs)
            log_det = log_det + step
        return z, log_det

    def inverse(self, z: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Data to latent; the log-det has shape ``(B,)``."""
        log_det = z.new_zeros(z.shape[0])
        for flow in reversed(self.flows):
            z, step = flow.inverse(z, *args, **kwargs)  # type: ignore[operator]
            log_det = log_det + step
        return z, log_det


class GlowStep(nf.flows.Flow):
    r"""The layers of one step, listed latent to data; those that take a context get it.

    It is a ``normflows.flows.GlowBlock`` with a context. The log-dets of some layers have no batch
    axis; their sum has the shape ``(B,)``.

    Args:
        flows: the flows, latent to data.
    """

    takes_context = True

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return _run_in_turn(self.flows, "forward", z, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return _run_in_turn(reversed(self.flows), "inverse", z, context)


def _run_in_turn(
    flows: Iterable[nn.Module], direction: str, event: Tensor, context: Context
) -> tuple[Tensor, Tensor]:
    log_det = event.new_zeros(event.shape[0])
    for flow in flows:
        event, step = run_with_context(flow, direction, event, context)
        log_det = log_det + step
    return event, log_det


# The host's flows that have a `context` argument.
_HOST_FLOWS_WITH_CONTEXT = (
    nf.flows.AutoregressiveRationalQuadraticSpline,
    nf.flows.CircularAutoregressiveRationalQuadraticSpline,
    nf.flows.CoupledRationalQuadraticSpline,
    nf.flows.CircularCoupledRationalQuadraticSpline,
    nf.flows.InvertibleAffine,
    nf.flows.LULinearPermute,
    nf.flows.MaskedAffineAutoregressive,
    nf.flows.Permute,
)


def run_with_context(
    flow: nn.Module, direction: str, event: Tensor, context: Context
) -> tuple[Tensor, Tensor]:
    """Call ``forward`` or ``inverse`` of a flow, with the context if it takes one.

    Most flows of the host have no such argument and would raise. A user's own flow gets it if it
    has an attribute ``takes_context = True``.
    """
    if isinstance(flow, Chain):
        # Its own methods would pass the context to all flows, including those that raise.
        in_order = flow.flows if direction == "forward" else reversed(flow.flows)
        return _run_in_turn(in_order, direction, event, context)
    run = flow if direction == "forward" else flow.inverse
    if getattr(flow, "takes_context", isinstance(flow, _HOST_FLOWS_WITH_CONTEXT)):
        return run(event, context)  # type: ignore[operator]
    return run(event)  # type: ignore[operator]


class ConditionalMultiscaleFlow(nf.MultiscaleFlow):
    r"""A ``MultiscaleFlow`` whose layers get a context: the density $p(x | context)$.

    It has the methods of ``normflows.ConditionalNormalizingFlow``. Latents are lists from the
    coarsest level to the finest, as in ``MultiscaleFlow``.

    Args:
        q0: base distributions, from the coarsest level.
        flows: list of flows for each level, latent to data.
        merges: merge operations between levels.
        embedding: turns the user's context into that of the layers, a tensor or a mapping of names
            to tensors; for instance an ``nn.Embedding`` for class labels. Without one, the user may
            give a mapping; each layer then takes the tensor that is called by its ``context_name``.
    """

    def __init__(
        self,
        q0: list[nn.Module],
        flows: list[list[nn.Module]],
        merges: list[nn.Module],
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(q0, flows, merges, class_cond=False)
        self.embedding = nn.Identity() if embedding is None else embedding

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Negative log-likelihood of each row, shape ``(B,)``."""
        return -self.log_prob(x, context)

    def forward_kld(self, x: Tensor, context: Context = None) -> Tensor:
        """Mean negative log-likelihood, the training loss."""
        return -self.log_prob(x, context).mean()

    def log_prob(self, x: Tensor, context: Context = None) -> Tensor:
        """Log-density of each row given its context, shape ``(B,)``."""
        return self._log_prob(x, self._embedded(context, plain_shape(x)[0]))

    def inverse_and_log_det(
        self, x: Tensor, context: Context = None
    ) -> tuple[list[Tensor], Tensor]:
        """Data to latents, with the log-det of shape ``(B,)``."""
        return self._to_latent(x, self._embedded(context, plain_shape(x)[0]))

    def forward_and_log_det(
        self, z: list[Tensor], context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Latents to data, with the log-det of shape ``(B,)``."""
        return self._to_data(z, self._embedded(context, plain_shape(z[0])[0]))

    def _log_prob(self, x: Tensor, embedded: Context) -> Tensor:
        z, log_prob = self._to_latent(x, embedded)
        for base, latent in zip(self.q0, z, strict=True):
            log_prob = log_prob + base.log_prob(latent)
        return log_prob

    def _to_latent(self, x: Tensor, embedded: Context) -> tuple[list[Tensor], Tensor]:
        log_det = x.new_zeros(x.shape[0])
        latents = []
        for level in range(len(self.q0) - 1, -1, -1):
            for flow in reversed(self.flows[level]):
                x, step = run_with_context(flow, "inverse", x, embedded)
                log_det = log_det + step
            if level > 0:
                (x, factored), step = self.merges[level - 1].inverse(x)
                log_det = log_det + step
                latents.append(factored)
        return [x, *latents[::-1]], log_det

    def _to_data(self, z: list[Tensor], embedded: Context) -> tuple[Tensor, Tensor]:
        x = z[0]
        log_det = x.new_zeros(x.shape[0])
        for level, flows in enumerate(self.flows):
            if level > 0:
                x, step = self.merges[level - 1]([x, z[level]])
                log_det = log_det + step
            for flow in flows:
                x, step = run_with_context(flow, "forward", x, embedded)
                log_det = log_det + step
        return x, log_det

    def sample(
        self,
        num_samples: int = 1,
        context: Context = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Draw one sample for each row of the context.

        Args:
            num_samples: number of samples; the context has as many rows, or one row for all.
            context: the contexts.
            temperature: factor on the standard deviation of the base distributions.

        Returns:
            Samples, and their log-densities under the model itself, at temperature one.

        Raises:
            MissingContextError: there is no context.
            ShapeError: the context has another number of rows.
            OptionError: the temperature is not positive, a base has no temperature, or the number
                of samples is not a whole number.
        """
        num_samples = non_negative_int("sample", "num_samples", num_samples)
        require_temperature(temperature)
        if context is None:
            raise MissingContextError("sample: expected a context, found none")
        require_context("sample", context, num_samples)
        rows = context_rows("sample", context)
        if rows not in (1, num_samples):
            raise ShapeError(
                f"sample: expected one context, or one for each of {num_samples} samples, found "
                f"{rows}"
            )
        embedded = _repeated(self._embedded(context, rows), num_samples)
        with tempered(list(self.q0), temperature):
            z = [base(num_samples)[0] for base in self.q0]
        x, log_det = self._to_data(z, embedded)
        log_probs = [base.log_prob(latent) for base, latent in zip(self.q0, z, strict=True)]
        return x, sum(log_probs) - log_det

    def _embedded(self, context: Context, rows: int) -> Context:
        name = type(self).__name__
        if context is None:
            raise MissingContextError(f"{name}: expected a context, found none")
        require_context(name, context, rows)
        require_rows(name, context, rows)
        if isinstance(self.embedding, nn.Embedding):
            require_labels(name, context, self.embedding.num_embeddings, rows, one_hot=False)
        return self.embedding(context)


def _repeated(context: Context, rows: int) -> Context:
    """One context for all rows, or one for each, embedded before it is repeated."""
    if isinstance(context, Mapping):
        return {name: entry.expand(rows, *entry.shape[1:]) for name, entry in context.items()}
    assert context is not None
    return context.expand(rows, *context.shape[1:])


@contextmanager
def tempered(bases: Sequence[nn.Module], temperature: float) -> Iterator[None]:
    """A context in which the standard deviations of all bases are multiplied by a temperature.

    Raises:
        OptionError: the temperature is not 1, and a base has no attribute for it.
    """
    if temperature == 1:
        yield
        return
    for base in bases:
        if not hasattr(base, "temperature"):
            raise OptionError(
                f"sample: expected a base distribution with a temperature, found "
                f"{type(base).__name__}"
            )
    kept = [base.temperature for base in bases]
    try:
        for base in bases:
            base.temperature = temperature  # type: ignore[assignment]
        yield
    finally:
        for base, previous in zip(bases, kept, strict=True):
            base.temperature = previous
