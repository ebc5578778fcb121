"""The boundary between torch and the kernels: the only module that knows there are two.

CPU tensors use the compiled kernels where numba is installed, everything else plain torch
operations.  Set the environment variable ``CHMM_PYRO_KERNEL=torch`` to choose those on the CPU too.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._kernels import torch_any
from ._kernels.denormals import FlushedDenormals
from ._kernels.interface import Counts, Draws, Forward, Path, Problem
from ._kernels.layout import Layout

try:
    from ._kernels import numba_cpu
except ImportError:  # numba has no wheel for every platform
    numba_cpu = None  # type: ignore[assignment]

__all__ = [
    "expected_counts",
    "forward",
    "gather",
    "kernel_name",
    "log_marginal",
    "sample_paths",
    "scatter",
    "viterbi",
]

_told = False


def kernel_name(device: torch.device) -> str:
    """``"numba"`` or ``"torch"``: which kernel tensors on ``device`` use."""
    return "torch" if _kernel(device) is torch_any else "numba"


def _kernel(device: torch.device) -> ModuleType:
    global _told
    if device.type != "cpu" or os.environ.get("CHMM_PYRO_KERNEL") == "torch":
        return torch_any
    if numba_cpu is None:
        if not _told:
            _told = True
            warnings.warn(
                "numba is not installed: CPU inference uses plain torch operations, which are "
                "10-100 times slower. Install numba, or set CHMM_PYRO_KERNEL=torch to silence "
                "this notice.",
                RuntimeWarning,
                stacklevel=2,
            )
        return torch_any
    return numba_cpu


_compiled: set[torch.dtype] = set()


@contextmanager
def _announce(dtype: torch.dtype) -> Iterator[None]:
    """Say so when the first call on this machine spends its time compiling."""
    if dtype in _compiled:
        yield
        return
    message = f"chmm-pyro: compiling the {dtype} CPU kernels (once on this machine) ...\n"
    # Compiling takes many seconds; loading what is cached takes one on a busy machine.
    timer = threading.Timer(3.0, sys.stderr.write, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
        _compiled.add(dtype)
    finally:
        timer.cancel()


def _arrays(problem: Problem) -> Problem:
    """The same problem on NumPy arrays that share memory with its tensors."""
    evidence = problem.log_evidence
    return problem._replace(
        log_initial=problem.log_initial.detach().contiguous().numpy(),
        log_blocks=problem.log_blocks.detach().contiguous().numpy(),
        log_evidence=None if evidence is None else evidence.detach().contiguous().numpy(),
    )


def _detached(problem: Problem) -> Problem:
    evidence = problem.log_evidence
    return problem._replace(
        log_initial=problem.log_initial.detach(),
        log_blocks=problem.log_blocks.detach(),
        log_evidence=None if evidence is None else evidence.detach(),
    )


def _call(problem: Problem, name: str, *arguments: Any) -> Any:
    """Run a kernel function without gradients; tuples come back with tensors in them."""
    kernel = _kernel(problem.log_blocks.device)
    function = getattr(kernel, name)
    if kernel is torch_any:
        with torch.no_grad():
            return function(_detached(problem), *arguments)
    numpy_arguments = [a.numpy() if isinstance(a, Tensor) else a for a in arguments]
    with _announce(problem.log_blocks.dtype), FlushedDenormals():
        return _tensors(function(_arrays(problem), *numpy_arguments))


def _tensors(result: Any) -> Any:
    if isinstance(result, tuple):
        kind: Any = type(result)
        return kind(*(x if x is None else torch.from_numpy(x) for x in result))
    return torch.from_numpy(result)


def _needs_grad(problem: Problem) -> bool:
    evidence = problem.log_evidence
    return torch.is_grad_enabled() and (
        problem.log_initial.requires_grad
        or problem.log_blocks.requires_grad
        or (evidence is not None and evidence.requires_grad)
    )


def _recomputed(
    ctx: Any, of: Callable[[Problem], tuple[Tensor, ...]], gradients: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients through plain torch operations; differentiable where a graph is recorded."""
    create_graph = torch.is_grad_enabled()
    inputs = ctx.saved_tensors
    needed = ctx.needs_input_grad[: len(inputs)]
    if not create_graph:
        inputs = [
            None if x is None else x.detach().requires_grad_(need)
            for x, need in zip(inputs, needed, strict=True)
        ]
    with torch.enable_grad():
        layout, jobs = ctx.data
        outputs = of(Problem(layout, jobs, *inputs))
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                outputs, wanted, gradients, create_graph=create_graph, allow_unused=True
            )
        )
    return *(next(found) if need else None for need in needed), None, None


class _LogMarginal(torch.autograd.Function):
    """``log p(obs | actions)`` of all jobs; its gradient is the expected counts.

    Fisher's identity: the gradient of a log-marginal with respect to a log-potential is the
    posterior expectation of how often that potential is used.
    """

    @staticmethod
    def forward(ctx, log_initial, log_blocks, log_evidence, layout, jobs):
        problem = Problem(layout, jobs, log_initial, log_blocks, log_evidence)
        kernel = _kernel(log_blocks.device)
        ctx.save_for_backward(log_initial, log_blocks, log_evidence)
        ctx.data = layout, jobs
        if kernel is torch_any:
            ctx.sweep = kernel.sweep(_detached(problem))
            # An output that is also kept would be a cycle that only the collector frees.
            return ctx.sweep.log_z.clone()
        with _announce(log_blocks.dtype), FlushedDenormals():
            ctx.sweep = kernel.sweep(_arrays(problem))
        return torch.from_numpy(ctx.sweep.log_z)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # create_graph=True: the gradient must be differentiable
            return _recomputed(ctx, _finite_log_z, (grad,))
        log_blocks = ctx.saved_tensors[1]
        marginals = ctx.needs_input_grad[2]
        kernel = _kernel(log_blocks.device)
        if kernel is torch_any:
            counts = kernel.weigh(ctx.sweep, grad, marginals)
        else:
            with FlushedDenormals():
                counts = _tensors(kernel.weigh(ctx.sweep, grad.double().numpy(), marginals))
        return counts.initial_counts, counts.block_counts, counts.marginals, None, None


def _finite_log_z(problem: Problem) -> tuple[Tensor, ...]:
    log_z = torch_any.forward(problem).log_z
    return (torch.where(torch.isfinite(log_z), log_z, 0.0),)


class _Filter(torch.autograd.Function):
    """The three fields of :class:`Forward`.

    Filters are rarely differentiated, so the tape over time is recorded only when a gradient is
    asked for, at the price of a second pass.
    """

    @staticmethod
    def forward(ctx, log_initial, log_blocks, log_evidence, layout, jobs):
        ctx.save_for_backward(log_initial, log_blocks, log_evidence)
        ctx.data = layout, jobs
        return tuple(_call(Problem(layout, jobs, log_initial, log_blocks, log_evidence), "forward"))

    @staticmethod
    def backward(ctx, *gradients):
        return _recomputed(ctx, lambda problem: tuple(torch_any.forward(problem)), gradients)


def _differentiated(function: type[torch.autograd.Function], problem: Problem) -> Any:
    potentials = problem.log_initial, problem.log_blocks, problem.log_evidence
    return function.apply(*potentials, problem.layout, problem.jobs)


class _Gather(torch.autograd.Function):
    """Compiled :func:`gather`; its adjoint is :func:`scatter`."""

    @staticmethod
    def forward(ctx, table, layout):
        ctx.data = layout, table.shape[1]
        with _announce(table.dtype):
            blocks = _kernel(table.device).gather(table.detach().contiguous().numpy(), layout)
        return torch.from_numpy(blocks)

    @staticmethod
    def backward(ctx, grad):
        return scatter(grad, *ctx.data), None


class _Scatter(torch.autograd.Function):
    """Compiled :func:`scatter`; its adjoint is :func:`gather`."""

    @staticmethod
    def forward(ctx, blocks, layout, num_actions):
        ctx.layout = layout
        arrays = blocks.detach().contiguous().numpy()
        with _announce(blocks.dtype):
            table = _kernel(blocks.device).scatter(arrays, layout, num_actions)
        return torch.from_numpy(table)

    @staticmethod
    def backward(ctx, grad):
        return gather(grad, ctx.layout), None, None


def gather(table: Tensor, layout: Layout) -> Tensor:
    """``(K, F)`` flat blocks of ``(K, A, S, S)`` tables, differentiable."""
    if _kernel(table.device) is torch_any:
        return torch_any.gather(table, layout)
    return _Gather.apply(table, layout)


def scatter(blocks: Tensor, layout: Layout, num_actions: int) -> Tensor:
    """``(K, A, S, S)`` sums of ``(K, F)`` flat blocks where they belong, differentiable."""
    if _kernel(blocks.device) is torch_any:
        return torch_any.scatter(blocks, layout, num_actions)
    return _Scatter.apply(blocks, layout, num_actions)


def log_marginal(problem: Problem) -> Tensor:
    """``(J,)`` float64 log-likelihoods, differentiable (also twice) in all potentials."""
    if _needs_grad(problem):
        return _differentiated(_LogMarginal, problem)
    return _call(problem, "forward", False).log_z


def forward(problem: Problem) -> Forward:
    """Filtered messages and per-step terms, differentiable (also twice) in all potentials.

    A gradient goes through plain torch operations and costs far more than the value.
    """
    if _needs_grad(problem):
        return Forward(*_differentiated(_Filter, problem))
    return _call(problem, "forward")


def expected_counts(problem: Problem, *, marginals: bool = False) -> Counts:
    """Expected counts with weight one for every job; no gradients."""
    return _call(problem, "forward_backward", None, marginals)


def viterbi(problem: Problem, generator_seed: int | None = None) -> Path:
    """Most probable paths as positions within each support."""
    return _call(problem, "viterbi", generator_seed)


def sample_paths(problem: Problem, uniforms: Tensor) -> Draws:
    """Posterior paths as positions within each support."""
    return _call(problem, "ffbs", uniforms)
