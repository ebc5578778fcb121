"""CPU kernels: scaled probabilities, one pass over ragged blocks, threads over jobs and blocks.

Sums run in the dtype of the potentials on messages normalised at every step; normalisers are
accumulated in float64.  A job whose normaliser, or whose overlap of forward and backward message,
falls below :func:`_floor` is repeated in log space in float64, so underflow never turns an
improbable sequence into an impossible one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from .denormals import flush_denormals
from .interface import Counts, Draws, Forward, Path, Problem
from .layout import IntArray
from .numba_log_space import log_backward, log_counts, log_draw, log_forward
from .numba_loops import (
    backward_jobs,
    block_counts,
    draw_jobs,
    forward_jobs,
    job_counts,
    overlaps,
    scale_evidence,
    score_jobs,
    state_marginals,
    transpose,
    viterbi_jobs,
)

__all__ = ["Sweep", "ffbs", "forward", "forward_backward", "sweep", "viterbi", "weigh"]

# Below this many multiply-adds a second thread costs more than it saves.
_PARALLEL_WORK = 300_000

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget_pool)


def _run(tasks: Sequence[Callable[[], Any]]) -> None:
    """Run tasks at the same time (numba releases the GIL), the last one on this thread."""
    global _pool
    if len(tasks) > 1 and _pool is None:
        _pool = ThreadPoolExecutor(
            numba.config.NUMBA_NUM_THREADS, "chmm-kernel", initializer=flush_denormals
        )
    futures = [_pool.submit(task) for task in tasks[:-1]] if _pool is not None else []
    tasks[-1]()
    for future in futures:
        future.result()


def _floor(dtype: np.dtype) -> float:
    # Entries lost to underflow are below finfo.tiny; against a normaliser of at least
    # sqrt(tiny) they are far below rounding.
    return float(np.sqrt(np.finfo(dtype).tiny))


def _chunks(work: NDArray[Any]) -> list[tuple[int, int]]:
    """Cut ``range(len(work))`` into one run per thread with about equal work."""
    # Torch's setting is the one users know; asking numba for its own would overwrite torch's.
    threads = torch.get_num_threads()
    total = float(work.sum())
    if threads == 1 or len(work) < 2 or total < _PARALLEL_WORK:
        return [(0, len(work))]
    cuts = np.searchsorted(np.cumsum(work), total * np.arange(1, threads) / threads) + 1
    bounds = np.unique(np.concatenate([[0], cuts, [len(work)]])).clip(max=len(work)).tolist()
    return [(lo, hi) for lo, hi in itertools.pairwise(bounds) if hi > lo]


class _Steps(NamedTuple):
    """The integer arrays of a layout that the compiled loops read."""

    step_start: IntArray
    support_start: IntArray
    support_size: IntArray
    message_start: IntArray
    block_index: IntArray
    block_start: IntArray
    initial: IntArray
    blocks: IntArray


def _steps(problem: Problem) -> _Steps:
    layout, jobs = problem.layout, problem.jobs
    return _Steps(
        layout.step_start,
        layout.support_start,
        layout.support_size,
        layout.message_start,
        layout.block_index,
        layout.block_start,
        jobs.initial,
        jobs.blocks,
    )


def _work(problem: Problem) -> NDArray[np.float64]:
    """Rough multiply-adds of one pass, for each job."""
    layout = problem.layout
    size = layout.support_size.astype(np.float64)
    squares = np.concatenate([[0.0], np.cumsum(size * size + 40)])
    return squares[layout.step_start[1:]] - squares[layout.step_start[:-1]]


class Sweep(NamedTuple):
    """Forward and backward messages of a problem, ready to be weighed into counts.

    Attributes:
        problem: what was swept.
        blocks: ``(K, F)`` potentials, scaled by block.
        evidence: ``(messages,)`` likelihoods scaled by step, or an empty array.
        log_z: ``(J,)``.
        log_steps: ``(Q,)``.
        scale: ``(Q,)`` normaliser of the scaled recursion.
        forward: ``(messages,)``.
        backward: ``(messages,)``.
        scaled: ``(J,)`` False where the job has to be done in log space.
    """

    problem: Problem
    blocks: NDArray[Any]
    evidence: NDArray[Any]
    log_z: NDArray[np.float64]
    log_steps: NDArray[np.float64]
    scale: NDArray[np.float64]
    forward: NDArray[Any]
    backward: NDArray[Any]
    scaled: NDArray[np.bool_]


_EMPTY: dict[np.dtype, NDArray[Any]] = {}


def _empty(dtype: np.dtype) -> NDArray[Any]:
    return _EMPTY.setdefault(dtype, np.empty(0, dtype))


class _Scaled(NamedTuple):
    """Potentials taken out of log space, every block and step scaled by its largest entry."""

    initial: NDArray[Any]
    blocks: NDArray[Any]
    shift: NDArray[Any]
    evidence: NDArray[Any]
    evidence_shift: NDArray[Any]


def _take_exp(problem: Problem, steps: _Steps) -> _Scaled:
    layout, log_blocks = problem.layout, problem.log_blocks
    dtype = log_blocks.dtype
    if layout.num_blocks:
        shift = np.maximum.reduceat(log_blocks, layout.block_start[:-1], axis=1)
        shift[np.isneginf(shift)] = 0
        blocks = log_blocks - np.repeat(shift, np.diff(layout.block_start), axis=1)
        np.exp(blocks, out=blocks)
    else:
        shift = np.zeros((len(log_blocks), 1), dtype)
        blocks = np.zeros((len(log_blocks), 0), dtype)
    evidence, evidence_shift = _empty(dtype), _empty(dtype)
    if problem.log_evidence is not None:
        evidence = np.empty_like(problem.log_evidence)
        evidence_shift = np.empty(layout.num_steps, dtype)
        scale_evidence(steps, problem.log_evidence, evidence, evidence_shift)
    return _Scaled(np.exp(problem.log_initial), blocks, shift, evidence, evidence_shift)


def _log_job(problem: Problem, steps: _Steps, job: Any) -> tuple[Any, ...]:
    """Arguments of the log-space routines: one job in float64."""
    q0, q1 = steps.step_start[job], steps.step_start[job + 1]
    m0, m1 = steps.message_start[q0], steps.message_start[q1]
    evidence = problem.log_evidence
    return (
        steps.support_start[q0:q1],
        steps.support_size[q0:q1],
        steps.message_start[q0 : q1 + 1] - m0,
        steps.block_index[q0:q1],
        steps.block_start,
        problem.log_initial[steps.initial[job]].astype(np.float64),
        problem.log_blocks[steps.blocks[job]].astype(np.float64),
        np.zeros(m1 - m0) if evidence is None else evidence[m0:m1].astype(np.float64),
    )


def _pass(problem: Problem, *, keep: bool, backward: bool) -> Sweep:
    steps = _steps(problem)
    layout = problem.layout
    dtype = problem.log_blocks.dtype
    scaled = _take_exp(problem, steps)
    jobs, num_steps = layout.num_sequences, layout.num_steps
    num_messages = int(layout.message_start[-1])
    widest = layout.max_support
    floor = _floor(dtype)
    ok = np.ones(jobs, np.bool_)
    log_z, log_steps = np.zeros(jobs), np.zeros(num_steps)
    scale = np.ones(num_steps)
    messages = np.zeros(num_messages, dtype) if keep else _empty(dtype)

    def go_forward(first: int, last: int) -> None:
        forward_jobs(
            first,
            last,
            steps,
            scaled.initial,
            scaled.blocks,
            scaled.shift,
            scaled.evidence,
            scaled.evidence_shift,
            floor,
            keep,
            widest,
            messages,
            scale,
            log_steps,
            log_z,
            ok,
        )

    chunks = _chunks(_work(problem))
    if not backward:
        _run([partial(go_forward, lo, hi) for lo, hi in chunks])
        result = Sweep(
            problem, scaled.blocks, scaled.evidence, log_z, log_steps, scale, messages, messages, ok
        )
        _repair_forward(result, steps, keep)
        return result

    transposed = np.empty_like(scaled.blocks)
    transpose(
        scaled.blocks,
        layout.block_start,
        layout.block_from[:, 1],
        layout.block_to[:, 1],
        transposed,
    )
    returning = np.zeros(num_messages, dtype)

    def go_backward(first: int, last: int) -> None:
        backward_jobs(first, last, steps, transposed, scaled.evidence, widest, returning)

    def both(first: int, last: int) -> None:
        go_forward(first, last)
        go_backward(first, last)

    if len(chunks) > 1:
        _run([partial(both, lo, hi) for lo, hi in chunks])
    elif torch.get_num_threads() > 1 and _work(problem).sum() >= _PARALLEL_WORK:
        # One long sequence: its two passes do not need each other.
        _run([partial(go_forward, 0, jobs), partial(go_backward, 0, jobs)])
    else:
        both(0, jobs)
    result = Sweep(
        problem, scaled.blocks, scaled.evidence, log_z, log_steps, scale, messages, returning, ok
    )
    overlap = np.ones(num_steps)
    overlaps(0, jobs, steps, messages, returning, floor, ok, overlap)
    _repair_forward(result, steps, keep)
    # p(x_t.. ) of a transition factors into the normaliser and the overlap at its end.
    return result._replace(scale=np.stack([scale, overlap]))


def _repair_forward(result: Sweep, steps: _Steps, keep: bool) -> None:
    layout = result.problem.layout
    for job in np.flatnonzero(~result.scaled):
        q0, q1 = layout.step_start[job], layout.step_start[job + 1]
        m0, m1 = layout.message_start[q0], layout.message_start[q1]
        log_messages, log_steps = log_forward(*_log_job(result.problem, steps, job))
        result.log_steps[q0:q1] = log_steps
        result.log_z[job] = log_steps.sum()
        if keep:
            result.forward[m0:m1] = np.exp(log_messages)


def forward(problem: Problem, keep_messages: bool = True) -> Forward:
    """Filter every job; see :mod:`~chmm_pyro._kernels.interface`."""
    result = _pass(problem, keep=keep_messages, backward=False)
    return Forward(result.log_z, result.log_steps, result.forward if keep_messages else None)


def sweep(problem: Problem) -> Sweep:
    """Both passes, without counts: the weights of :func:`weigh` may come later."""
    return _pass(problem, keep=True, backward=True)


def weigh(result: Sweep, weights: NDArray[np.float64], marginals: bool = False) -> Counts:
    """Expected counts of a sweep, each job times its weight."""
    problem = result.problem
    layout = problem.layout
    steps = _steps(problem)
    dtype = problem.log_blocks.dtype
    scale, overlap = result.scale
    weight = np.where(result.scaled, weights, 0.0)[layout.sequence_of_step]
    gain = np.divide(weight, overlap, out=np.zeros_like(weight), where=weight != 0)
    factor = np.zeros(layout.num_steps, dtype)
    # Step q leads to q + 1, whose normaliser and overlap complete the joint posterior.
    np.divide(gain[1:], scale[1:], out=factor[:-1], where=gain[1:] != 0, casting="same_kind")

    counts = np.zeros_like(result.blocks)
    arrays = (result.blocks, result.forward, result.backward, result.evidence)
    if len(counts) == 1:
        order, group = layout.grouped_steps
        rows, columns = layout.block_from[:, 1], layout.block_to[:, 1]
        share = (np.diff(group) + 4.0) * rows * columns

        def count(first: int, last: int) -> None:
            block_counts(
                first,
                last,
                order,
                group,
                steps,
                rows,
                columns,
                layout.sequence_of_step,
                arrays,
                factor,
                layout.max_support,
                counts,
            )

        if layout.num_blocks:
            _run([partial(count, lo, hi) for lo, hi in _chunks(share)])
    else:
        order = np.argsort(problem.jobs.blocks, kind="stable")
        row = problem.jobs.blocks[order]
        work = np.bincount(row, _work(problem)[order], minlength=len(counts))
        tasks = []
        for lo, hi in _chunks(work):
            mine = order[(row >= lo) & (row < hi)]
            tasks.append(partial(job_counts, mine, steps, arrays, factor, counts))
        _run(tasks)

    initial_counts = np.zeros_like(problem.log_initial)
    posterior = np.zeros_like(result.forward) if marginals else _empty(dtype)
    state_marginals(
        0,
        layout.num_sequences,
        steps,
        result.forward,
        result.backward,
        gain.astype(dtype),
        marginals,
        posterior,
        initial_counts,
    )
    for job in np.flatnonzero(~result.scaled & np.isfinite(result.log_z) & (weights != 0)):
        m0 = layout.message_start[layout.step_start[job]]
        m1 = layout.message_start[layout.step_start[job + 1]]
        arguments = _log_job(problem, steps, job)
        log_messages, _ = log_forward(*arguments)
        first_posterior, marginal, entries, values = log_counts(
            *arguments, log_messages, log_backward(*arguments)
        )
        start = steps.support_start[layout.step_start[job]]
        into = initial_counts[problem.jobs.initial[job]]
        into[start : start + len(first_posterior)] += weights[job] * first_posterior
        np.add.at(counts[problem.jobs.blocks[job]], entries, weights[job] * values)
        if marginals:
            posterior[m0:m1] = weights[job] * marginal
    return Counts(result.log_z, initial_counts, counts, posterior if marginals else None)


def forward_backward(
    problem: Problem, weights: NDArray[np.float64] | None = None, marginals: bool = False
) -> Counts:
    """Expected counts; see :mod:`~chmm_pyro._kernels.interface`."""
    if weights is None:
        weights = np.ones(problem.layout.num_sequences)
    return weigh(sweep(problem), weights, marginals)


def viterbi(problem: Problem, generator_seed: int | None = None) -> Path:
    """Most probable paths; ties go to the lowest state, or are drawn if a seed is given."""
    layout = problem.layout
    steps = _steps(problem)
    evidence = problem.log_evidence
    log_evidence = _empty(problem.log_blocks.dtype) if evidence is None else evidence
    states = np.zeros(layout.num_steps, np.int64)
    score = np.zeros(layout.num_sequences)
    back = np.empty((layout.num_steps, layout.max_support), np.int32)
    seed = 0 if generator_seed is None else generator_seed % (2**62) + 1

    def decode(first: int, last: int) -> None:
        arrays = (steps, problem.log_initial, problem.log_blocks, log_evidence)
        viterbi_jobs(first, last, *arrays, seed, back, states)
        score_jobs(first, last, *arrays, states, score)

    _run([partial(decode, lo, hi) for lo, hi in _chunks(_work(problem))])
    return Path(states, score)


def ffbs(problem: Problem, uniforms: NDArray[np.float64]) -> Draws:
    """Posterior paths by inverse CDF of ``uniforms (samples, Q)``."""
    layout = problem.layout
    steps = _steps(problem)
    result = _pass(problem, keep=True, backward=False)
    states = np.zeros(uniforms.shape, np.int64)
    ok = result.scaled.copy()
    floor = _floor(problem.log_blocks.dtype)

    def draw(first: int, last: int) -> None:
        arrays = (steps, result.blocks, result.forward, uniforms, floor, layout.max_support)
        draw_jobs(first, last, *arrays, ok, states)

    work = _work(problem) * len(uniforms)
    _run([partial(draw, lo, hi) for lo, hi in _chunks(work)])
    for job in np.flatnonzero(~ok & np.isfinite(result.log_z)):
        q0, q1 = layout.step_start[job], layout.step_start[job + 1]
        arguments = _log_job(problem, steps, job)
        log_messages, _ = log_forward(*arguments)
        states[:, q0:q1] = log_draw(*arguments, log_messages, uniforms[:, q0:q1])
    return Draws(states, result.log_z)
