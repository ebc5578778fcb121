r"""Both passes over all jobs on scaled probabilities, and the proof that nothing was lost.

Potentials are scaled by the largest of their block, messages by their sum, so both lie in [0, 1].
Products of small ones would still vanish, and what vanished early may matter late, so:

**Lifting.** Whatever is possible is never below ``floor = 2 sqrt(tiny)``: smaller potentials,
evidence and message entries are raised to it.  Products of two then neither vanish nor turn
subnormal, a zero means impossible, for certain, and every lifted message bounds the true one (times
the same normalisers) from above.

**Certificate.** Raising entries adds likelihood.  Follow it to the end of the sequence: mass
:math:`\iota_t` (a vector, no entry above ``floor``) added to the forward message of step ``t``
counts for :math:`\iota_t \cdot \beta_t` in a likelihood of :math:`c_t\,\alpha_t\cdot\beta_t`, where
:math:`\alpha, \beta` are the lifted messages, each summing to one, and :math:`c_t` the normaliser.
Potential, evidence and message entries of both passes together add at most
``floor * sum_t ((4 + M_t [soft]) / c_t + 2) / overlap_t`` relative to the likelihood, with
:math:`\text{overlap}_t = \alpha_t\cdot\beta_t`.  Both messages being upper bounds, no path can hide
from this sum, wherever and however often it was small.  It bounds the error of the likelihood, of
every marginal and count, and of the law of a sampled path.  A filter cannot use it, since its
intermediate steps do not know the future: where something was lifted, a second forward pass *drops*
instead, which bounds every message from below, and the two must agree up to each step.

**Repair.** Jobs whose sum (or disagreement) exceeds a few units of rounding are done again: those
in float32 by the same loops in float64, those in float64 in log space.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .interface import Problem
from .layout import IntArray, Jobs
from .numba_log_space import log_forward
from .numba_loops import (
    agree,
    backward_jobs,
    certify,
    forward_jobs,
    lift_blocks,
    scale_evidence,
    subtract_top,
    transpose,
)
from .numba_threads import chunks, num_threads, run
from .scratch import scratch

__all__ = [
    "Repair",
    "Steps",
    "Sweep",
    "filter_jobs",
    "filter_to_draw",
    "log_job",
    "steps_of",
    "sweep",
]

_ROUNDING = 8  # units of rounding that a certified result may be wrong by


class Steps(NamedTuple):
    """The integer arrays of a layout that the compiled loops read."""

    step_start: IntArray
    support_start: IntArray
    support_size: IntArray
    message_start: IntArray
    block_index: IntArray
    block_start: IntArray
    initial: IntArray
    blocks: IntArray


def steps_of(problem: Problem) -> Steps:
    """See :class:`Steps`."""
    layout, jobs = problem.layout, problem.jobs
    return Steps(
        layout.step_start,
        layout.support_start,
        layout.support_size,
        layout.message_start,
        layout.block_index,
        layout.block_start,
        jobs.initial,
        jobs.blocks,
    )


class Repair(NamedTuple):
    """Jobs of a float32 sweep, swept again in float64.

    Attributes:
        jobs: which ones.
        initial: rows of initial probabilities that they use, in the order of the sweep's own.
        blocks: rows of blocks that they use.
        sweep: the result.
    """

    jobs: IntArray
    initial: IntArray
    blocks: IntArray
    sweep: Sweep


class Sweep(NamedTuple):
    """Messages of a problem, ready to be weighed into counts or to draw from.

    Attributes:
        problem: what was swept.
        blocks: ``(K, F)`` lifted potentials, scaled by block.
        evidence: ``(messages,)`` lifted likelihoods scaled by step, or an empty array.
        log_z: ``(J,)``.
        log_steps: ``(Q,)``.
        scale: ``(Q,)`` normaliser of the scaled recursion.
        overlap: ``(Q,)`` of both messages; empty after a forward pass alone.
        forward: ``(messages,)``, or empty where they were not kept.
        backward: ``(messages,)``, or empty after a forward pass alone.
        exact: ``(J,)`` False where ``repair`` (float32) or log space (float64) has the answer.
        repair: the answers in float64, if any job needed them.
    """

    problem: Problem
    blocks: NDArray[Any]
    evidence: NDArray[Any]
    log_z: NDArray[np.float64]
    log_steps: NDArray[np.float64]
    scale: NDArray[np.float64]
    overlap: NDArray[np.float64]
    forward: NDArray[Any]
    backward: NDArray[Any]
    exact: NDArray[np.bool_]
    repair: Repair | None = None


_EMPTY: dict[np.dtype, NDArray[Any]] = {}


def _empty(dtype: Any) -> NDArray[Any]:
    return _EMPTY.setdefault(np.dtype(dtype), np.empty(0, dtype))


class _Scaled(NamedTuple):
    """Potentials taken out of log space, scaled and lifted.

    Attributes:
        blocks: ``(K, F)``.
        shift: ``(K, G)`` log of what each block was divided by.
        evidence: ``(messages,)`` or empty.
        evidence_shift: ``(Q,)`` or empty.
        floor: no possible entry is below.
        lifted: whether any potential was.
    """

    blocks: NDArray[Any]
    shift: NDArray[Any]
    evidence: NDArray[Any]
    evidence_shift: NDArray[Any]
    floor: Any
    lifted: bool

    def dropped(self) -> _Scaled:
        """The same with zeros for what was lifted: a lower bound."""
        blocks = np.where(self.blocks > self.floor, self.blocks, self.floor.dtype.type(0))
        evidence = np.where(self.evidence > self.floor, self.evidence, self.floor.dtype.type(0))
        return self._replace(blocks=blocks, evidence=evidence)


def _take_exp(problem: Problem, steps: Steps, transposed: NDArray[Any] | None) -> _Scaled:
    """Also fills ``transposed (K, F)`` with the transposed blocks, if given."""
    layout, log_blocks = problem.layout, problem.log_blocks
    dtype = log_blocks.dtype
    floor = dtype.type(2 * np.sqrt(np.finfo(dtype).tiny))
    shift = np.empty((len(log_blocks), layout.num_blocks), dtype)
    blocks = np.empty_like(log_blocks)
    lifted = [0]

    def exponentiate(first: int, last: int) -> None:
        start = layout.block_start
        lo, hi = start[first], start[last]
        mine, top = blocks[:, lo:hi], shift[:, first:last]
        np.maximum.reduceat(log_blocks[:, lo:hi], start[first:last] - lo, axis=1, out=top)
        top[np.isneginf(top)] = 0
        subtract_top(first, last, log_blocks, start, shift, blocks)
        torch.exp(torch.from_numpy(mine), out=torch.from_numpy(mine))
        lifted.append(lift_blocks(first, last, log_blocks, start, floor, blocks))
        if transposed is not None:
            rows, columns = layout.block_from[:, 1], layout.block_to[:, 1]
            transpose(first, last, blocks, start, rows, columns, transposed)

    if layout.num_blocks:
        entries = layout.block_sizes * len(log_blocks)
        run([partial(exponentiate, lo, hi) for lo, hi in chunks(entries)])
    evidence, evidence_shift = _empty(dtype), _empty(dtype)
    if problem.log_evidence is not None:
        evidence = np.empty_like(problem.log_evidence)
        evidence_shift = np.empty(layout.num_steps, dtype)
        lifted.append(scale_evidence(steps, problem.log_evidence, floor, evidence, evidence_shift))
    return _Scaled(blocks, shift, evidence, evidence_shift, floor, any(lifted))


class _Filtered(NamedTuple):
    """Output arrays of forward passes: messages, normalisers and whether a job was lifted."""

    messages: NDArray[Any]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    lifted: NDArray[np.bool_]


def _output(problem: Problem, keep: bool) -> _Filtered:
    layout, dtype = problem.layout, problem.log_blocks.dtype
    messages = scratch(int(layout.message_start[-1]) if keep else 0, dtype)
    return _Filtered(
        messages,
        np.empty(layout.num_steps),
        np.empty(layout.num_steps),
        np.zeros(layout.num_sequences, np.bool_),
    )


def _go_forward(
    problem: Problem, steps: Steps, scaled: _Scaled, lift: float, out: _Filtered, jobs: IntArray
) -> None:
    width = problem.layout.max_support
    keep = len(out.messages) > 0
    messages, *rest = out
    forward_jobs(
        jobs,
        steps,
        problem.log_initial,
        scaled.blocks,
        scaled.shift,
        scaled.evidence,
        scaled.evidence_shift,
        scaled.floor,
        scaled.floor.dtype.type(lift),
        keep,
        width,
        messages if keep else np.empty(2 * width, messages.dtype),
        *rest,
    )


def _tolerance(dtype: np.dtype) -> float:
    return _ROUNDING * float(np.finfo(dtype).eps)


def _result(
    problem: Problem,
    scaled: _Scaled,
    out: _Filtered,
    backward: NDArray[Any],
    overlap: NDArray[np.float64],
    exact: NDArray[np.bool_],
) -> Sweep:
    with np.errstate(divide="ignore"):
        log_steps = np.log(out.scale)
    log_steps += out.offset
    log_z = np.add.reduceat(log_steps, problem.layout.step_start[:-1])
    return Sweep(
        problem,
        scaled.blocks,
        scaled.evidence,
        log_z,
        log_steps,
        out.scale,
        overlap,
        out.messages,
        backward,
        exact,
    )


def filter_jobs(problem: Problem, keep: bool) -> Sweep:
    """Forward messages alone, or only their likelihoods where messages are not to ``keep``."""
    steps = steps_of(problem)
    scaled = _take_exp(problem, steps, None)
    out, below = _output(problem, keep), _output(problem, False)
    every = np.arange(problem.layout.num_sequences)
    tasks = _forward_tasks(problem, steps, scaled, scaled.floor, out)
    if scaled.lifted:
        # Some messages will be, too: both passes at once.
        run([*tasks, *_forward_tasks(problem, steps, scaled.dropped(), 0.0, below)])
        suspects = every
    else:
        run(tasks)
        suspects = np.flatnonzero(out.lifted)
        if len(suspects):
            _go_forward(problem, steps, scaled, 0.0, below, suspects)
    exact = np.ones(len(every), np.bool_)
    agree(suspects, steps, out.scale, below.scale, _tolerance(scaled.blocks.dtype), exact)
    return _repair(_forward_result(problem, scaled, out, exact), backward=False)


def filter_to_draw(problem: Problem) -> Sweep:
    """Forward messages that paths can be drawn from.

    What becomes of lifted entries only the other pass knows: where there are any this is a sweep.
    """
    steps = steps_of(problem)
    scaled = _take_exp(problem, steps, None)
    if not scaled.lifted:
        out = _output(problem, True)
        run(_forward_tasks(problem, steps, scaled, scaled.floor, out))
        if not out.lifted.any():
            return _forward_result(problem, scaled, out, ~out.lifted)
    return sweep(problem)


def _forward_tasks(
    problem: Problem, steps: Steps, scaled: _Scaled, lift: float, out: _Filtered
) -> list[Callable[[], None]]:
    every = np.arange(problem.layout.num_sequences)
    return [
        partial(_go_forward, problem, steps, scaled, lift, out, every[lo:hi])
        for lo, hi in chunks(problem.layout.work)
    ]


def _forward_result(
    problem: Problem, scaled: _Scaled, out: _Filtered, exact: NDArray[np.bool_]
) -> Sweep:
    return _result(problem, scaled, out, _empty(scaled.blocks.dtype), _empty(np.float64), exact)


def sweep(problem: Problem) -> Sweep:
    """Both passes, without counts: the weights of counts may come later."""
    steps = steps_of(problem)
    layout = problem.layout
    transposed = np.empty_like(problem.log_blocks)
    scaled = _take_exp(problem, steps, transposed)
    out = _output(problem, True)
    backward = scratch(len(out.messages), out.messages.dtype)
    overlap = np.empty(layout.num_steps)
    exact = np.empty(layout.num_sequences, np.bool_)
    every = np.arange(layout.num_sequences)

    def go_forward(jobs: IntArray) -> None:
        _go_forward(problem, steps, scaled, scaled.floor, out, jobs)

    def go_backward(jobs: IntArray) -> None:
        backward_jobs(
            jobs, steps, transposed, scaled.evidence, scaled.floor, layout.max_support, backward
        )

    def compare(jobs: IntArray) -> None:
        certify(
            jobs,
            steps,
            out.messages,
            backward,
            out.scale,
            float(problem.log_evidence is not None),
            float(scaled.floor),
            _tolerance(scaled.blocks.dtype),
            overlap,
            exact,
        )

    def all_of(jobs: IntArray) -> None:
        go_forward(jobs)
        go_backward(jobs)
        compare(jobs)

    bounds = chunks(layout.work)
    if len(bounds) == 1 and num_threads(layout.work.sum()) > 1:
        # One long sequence: its two passes do not need each other.
        run([partial(go_forward, every), partial(go_backward, every)])
        compare(every)
    else:
        run([partial(all_of, every[lo:hi]) for lo, hi in bounds])
    return _repair(_result(problem, scaled, out, backward, overlap, exact), backward=True)


def _part(problem: Problem, chosen: IntArray) -> tuple[Problem, IntArray, IntArray]:
    """Some jobs in float64, and the rows of initial probabilities and blocks that they use."""
    layout, jobs = problem.layout, problem.jobs
    initial, initial_of = np.unique(jobs.initial[chosen], return_inverse=True)
    blocks, blocks_of = np.unique(jobs.blocks[chosen], return_inverse=True)
    evidence = problem.log_evidence
    if evidence is not None:
        evidence = evidence[layout.messages_of(chosen)].astype(np.float64)
    part = Problem(
        layout if len(chosen) == layout.num_sequences else layout.repeat(chosen),
        Jobs(initial_of, blocks_of),
        problem.log_initial[initial].astype(np.float64),
        problem.log_blocks[blocks].astype(np.float64),
        evidence,
    )
    return part, initial, blocks


def _repair(result: Sweep, *, backward: bool) -> Sweep:
    """Replace likelihoods and forward messages of the jobs that are not exact."""
    wrong = np.flatnonzero(~result.exact)
    if not len(wrong):
        return result
    problem, layout = result.problem, result.problem.layout
    keep = len(result.forward) > 0
    if problem.log_blocks.dtype == np.float64:
        for job in wrong:
            q0, q1 = layout.step_start[job], layout.step_start[job + 1]
            log_messages, log_steps = log_forward(*log_job(problem, job))
            result.log_steps[q0:q1] = log_steps
            result.log_z[job] = log_steps.sum()
            if keep:
                result.forward[layout.messages_of(np.array([job]))] = np.exp(log_messages)
        return result
    part, initial, blocks = _part(problem, wrong)
    better = sweep(part) if backward else filter_jobs(part, keep)
    result.log_z[wrong] = better.log_z
    result.log_steps[layout.steps_of(wrong)] = better.log_steps
    if keep:
        result.forward[layout.messages_of(wrong)] = better.forward
    return result._replace(repair=Repair(wrong, initial, blocks, better))


def log_job(problem: Problem, job: Any) -> tuple[Any, ...]:
    """Arguments of the log-space routines for one job of a float64 problem."""
    layout, evidence = problem.layout, problem.log_evidence
    q0, q1 = layout.step_start[job], layout.step_start[job + 1]
    m0, m1 = layout.message_start[q0], layout.message_start[q1]
    return (
        layout.support_start[q0:q1],
        layout.support_size[q0:q1],
        layout.message_start[q0 : q1 + 1] - m0,
        layout.block_index[q0:q1],
        layout.block_start,
        problem.log_initial[problem.jobs.initial[job]],
        problem.log_blocks[problem.jobs.blocks[job]],
        np.zeros(m1 - m0) if evidence is None else evidence[m0:m1],
    )
