"""CPU kernels: scaled probabilities, one pass over ragged blocks, threads over jobs and blocks.

Sums run in the dtype of the potentials on messages normalised at every step; normalisers are
accumulated in float64.  :mod:`~chmm_pyro._kernels.numba_sweep` says why underflow never turns an
improbable sequence into an impossible one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .interface import Counts, Draws, Forward, Path, Problem
from .layout import IntArray, Layout
from .numba_log_space import log_backward, log_counts, log_draw, log_forward
from .numba_loops import (
    block_counts,
    draw_jobs,
    gather_blocks,
    job_counts,
    scatter_blocks,
    state_marginals,
)
from .numba_sweep import Sweep, filter_jobs, filter_to_draw, log_job, steps_of, sweep
from .numba_threads import chunks, run
from .numba_viterbi import score_jobs, viterbi_jobs
from .scratch import scratch

__all__ = [
    "Sweep",
    "ffbs",
    "forward",
    "forward_backward",
    "gather",
    "scatter",
    "sweep",
    "viterbi",
    "weigh",
]


def gather(table: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Blocks of dense tables; see :mod:`~chmm_pyro._kernels.interface`."""
    blocks = np.empty((len(table), layout.num_block_entries), table.dtype)
    where = layout.block_action, layout.block_from, layout.block_to, layout.block_start
    flat, states = table.reshape(len(table), -1), layout.clones.num_states

    def copy(first: int, last: int) -> None:
        gather_blocks(first, last, flat, states, *where, blocks)

    if layout.num_blocks:
        run([partial(copy, lo, hi) for lo, hi in chunks(layout.block_sizes * len(table))])
    return blocks


def scatter(blocks: NDArray[Any], layout: Layout, num_actions: int) -> NDArray[Any]:
    """Tables with the sums of blocks; see :mod:`~chmm_pyro._kernels.interface`."""
    states = layout.clones.num_states
    table = np.zeros((len(blocks), num_actions, states, states), blocks.dtype)
    where = layout.block_action, layout.block_from, layout.block_to, layout.block_start
    scatter_blocks(blocks, states, *where, table.reshape(len(blocks), -1))
    return table


def forward(problem: Problem, keep_messages: bool = True) -> Forward:
    """Filter every job; see :mod:`~chmm_pyro._kernels.interface`."""
    result = filter_jobs(problem, keep_messages)
    return Forward(result.log_z, result.log_steps, result.forward if keep_messages else None)


def weigh(result: Sweep, weights: NDArray[np.float64], marginals: bool = False) -> Counts:
    """Expected counts of a sweep, each job times its weight."""
    problem = result.problem
    layout = problem.layout
    steps = steps_of(problem)
    dtype = result.blocks.dtype
    weights = np.where(np.isfinite(result.log_z), weights, 0.0)
    weight = np.where(result.exact, weights, 0.0)[layout.sequence_of_step]
    gain = np.divide(weight, result.overlap, out=np.zeros_like(weight), where=weight != 0)
    factor = np.zeros(layout.num_steps, dtype)
    # Step q leads to q + 1, whose normaliser and overlap complete the joint posterior.
    np.divide(gain[1:], result.scale[1:], out=factor[:-1], where=gain[1:] != 0, casting="same_kind")

    arrays = (result.blocks, result.forward, result.backward, result.evidence)
    if len(result.blocks) == 1:
        counts = np.empty_like(result.blocks)
        order, group = layout.grouped_steps
        rows, columns = layout.block_from[:, 1], layout.block_to[:, 1]

        def count(first: int, last: int) -> None:
            block_counts(
                first,
                last,
                order,
                group,
                steps,
                rows,
                columns,
                arrays,
                factor,
                layout.max_support,
                counts,
            )

        if layout.num_blocks:
            run([partial(count, lo, hi) for lo, hi in chunks(layout.count_work)])
    else:
        counts = np.zeros_like(result.blocks)
        order = np.argsort(problem.jobs.blocks, kind="stable")
        row = problem.jobs.blocks[order]
        work = np.bincount(row, layout.work[order], minlength=len(counts))
        tasks = []
        for lo, hi in chunks(work):
            mine = order[(row >= lo) & (row < hi)]
            tasks.append(partial(job_counts, mine, steps, arrays, factor, counts))
        run(tasks)

    initial_counts = np.zeros_like(problem.log_initial)
    posterior = np.zeros(len(result.forward) if marginals else 0, dtype)
    state_marginals(
        steps,
        result.forward,
        result.backward,
        gain.astype(dtype),
        marginals,
        posterior,
        initial_counts,
    )
    found = Counts(result.log_z, initial_counts, counts, posterior if marginals else None)
    if not result.exact.all():
        _add_repaired(result, weights, found)
    return found


def _add_repaired(result: Sweep, weights: NDArray[np.float64], found: Counts) -> None:
    """Add the jobs that the sweep itself could not do."""
    problem, layout, repair = result.problem, result.problem.layout, result.repair
    if repair is not None:
        part = weigh(repair.sweep, weights[repair.jobs], found.marginals is not None)
        found.initial_counts[repair.initial] += part.initial_counts
        found.block_counts[repair.blocks] += part.block_counts
        if found.marginals is not None:
            found.marginals[layout.messages_of(repair.jobs)] = part.marginals
        return
    for job in np.flatnonzero(~result.exact & (weights != 0)):
        arguments = log_job(problem, job)
        log_messages, _ = log_forward(*arguments)
        first, marginal = log_counts(
            *arguments,
            log_messages,
            log_backward(*arguments),
            weights[job],
            found.block_counts[problem.jobs.blocks[job]],
        )
        start = layout.support_start[layout.step_start[job]]
        found.initial_counts[problem.jobs.initial[job], start : start + len(first)] += first
        if found.marginals is not None:
            found.marginals[layout.messages_of(np.array([job]))] = marginal


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
    steps = steps_of(problem)
    evidence = problem.log_evidence
    log_evidence = np.empty(0, problem.log_blocks.dtype) if evidence is None else evidence
    states = np.zeros(layout.num_steps, np.int64)
    score = np.zeros(layout.num_sequences)
    size = (layout.num_steps, layout.max_support)
    back = scratch(size[0] * size[1], np.int32).reshape(size)
    seed = 0 if generator_seed is None else generator_seed % (2**62) + 1

    def decode(first: int, last: int) -> None:
        arrays = (steps, problem.log_initial, problem.log_blocks, log_evidence)
        viterbi_jobs(first, last, *arrays, seed, back, states)
        score_jobs(first, last, *arrays, states, score)

    run([partial(decode, lo, hi) for lo, hi in chunks(layout.work)])
    return Path(states, score)


def ffbs(problem: Problem, uniforms: NDArray[np.float64]) -> Draws:
    """Posterior paths by inverse CDF of ``uniforms (samples, Q)``."""
    result = filter_to_draw(problem)
    return Draws(_draw(result, uniforms), result.log_z)


def _draw(result: Sweep, uniforms: NDArray[np.float64]) -> IntArray:
    problem, layout = result.problem, result.problem.layout
    states = np.zeros(uniforms.shape, np.int64)
    exact = np.flatnonzero(result.exact)

    def draw(jobs: IntArray) -> None:
        steps, width = steps_of(problem), layout.max_support
        draw_jobs(jobs, steps, result.blocks, result.forward, uniforms, width, states)

    work = layout.work[exact] * len(uniforms)
    run([partial(draw, exact[lo:hi]) for lo, hi in chunks(work)])
    if result.repair is not None:
        steps = layout.steps_of(result.repair.jobs)
        states[:, steps] = _draw(result.repair.sweep, uniforms[:, steps])
        return states
    for job in np.flatnonzero(~result.exact):
        q0, q1 = layout.step_start[job], layout.step_start[job + 1]
        arguments = log_job(problem, job)
        log_messages, _ = log_forward(*arguments)
        states[:, q0:q1] = log_draw(*arguments, log_messages, uniforms[:, q0:q1])
    return states
