"""Compiled loops of the scaled recursions: arrays in, arrays filled.

``fastmath`` leaves out ``nnan`` and ``ninf``: the guards below compare with zero and infinity.
What ``floor`` and ``lift`` are for is said in :mod:`~chmm_pyro._kernels.numba_sweep`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "agree",
    "backward_jobs",
    "block_counts",
    "certify",
    "draw_jobs",
    "forward_jobs",
    "job_counts",
    "lift_blocks",
    "scale_evidence",
    "state_marginals",
    "transpose",
]

_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
_compile = njit(cache=True, nogil=True, fastmath=_FASTMATH, error_model="numpy")


@_compile
def lift_blocks(first, last, log_blocks, floor, blocks):
    """Raise possible potentials to ``floor``; returns how many were below it."""
    lifted = 0
    for k in range(len(blocks)):
        row, into = log_blocks[k, first:last], blocks[k, first:last]
        low = 0
        for m in range(len(into)):
            small = (into[m] < floor) & (row[m] > -np.inf)
            into[m] = floor if small else into[m]
            low += small
        lifted += low
    return lifted


@_compile
def transpose(first, last, matrix, block_start, rows_of, columns_of, out):
    for k in range(len(matrix)):
        for block in range(first, last):
            rows, columns, base = rows_of[block], columns_of[block], block_start[block]
            for i in range(rows):
                for j in range(columns):
                    out[k, base + j * rows + i] = matrix[k, base + i * columns + j]


@_compile
def scale_evidence(steps, log_evidence, floor, out, shift):
    """Likelihoods, the largest of a step one; returns how many were raised to ``floor``."""
    lifted = 0
    for q in range(len(shift)):
        lo, hi = steps.message_start[q], steps.message_start[q + 1]
        top = log_evidence[lo]
        for m in range(lo, hi):
            top = max(top, log_evidence[m])
        if top == -np.inf:
            top = out.dtype.type(0)
        shift[q] = top
        for m in range(lo, hi):
            out[m] = np.exp(log_evidence[m] - top)
            if out[m] < floor and log_evidence[m] > -np.inf:
                out[m] = floor
                lifted += 1
    return lifted


@_compile
def _propagate(vector, matrix, base, rows, columns, out):
    """``out = vector @ block`` for the row-major block that starts at ``base``.

    Four rows at a time: a quarter of the loads and stores of ``out``.
    """
    for j in range(columns):
        out[j] = 0
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        a, b, c, d = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        at = base + i * columns
        row_a = matrix[at : at + columns]
        row_b = matrix[at + columns : at + 2 * columns]
        row_c = matrix[at + 2 * columns : at + 3 * columns]
        row_d = matrix[at + 3 * columns : at + 4 * columns]
        for j in range(columns):
            out[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + d * row_d[j])
    for i in range(whole, rows):
        a = vector[i]
        at = base + i * columns
        row = matrix[at : at + columns]
        for j in range(columns):
            out[j] += a * row[j]


@_compile
def _lift(vector, size, scale, floor, lift, out):
    """Write ``vector * scale``, with ``lift`` for what is positive but below ``floor``.

    ``out`` is not ``vector``: the compiler could not use vector instructions.
    """
    lifted = 0
    for j in range(size):
        value = vector[j] * scale
        small = (value < floor) & (vector[j] > 0)
        out[j] = lift if small else value
        lifted += small
    return lifted


@_compile
def _normalise(vector, size, floor, lift, out):
    """Write ``vector / sum``, lifted; returns the sum and how many entries were lifted."""
    total = vector[0] * 0
    for j in range(size):
        total += vector[j]
    inverse = 1 / total if total > 0 else total
    return total, _lift(vector, size, inverse, floor, lift, out)


@_compile
def forward_jobs(
    jobs,
    steps,
    log_initial,
    matrix,
    shift,
    evidence,
    evidence_shift,
    floor,
    lift,
    keep,
    widest,
    messages,
    scale,
    offset,
    lifted,
):
    """Forward messages; ``scale`` and ``offset`` make up the normaliser of a step.

    From the first impossible step on, ``scale`` and messages are zero.
    """
    buffer = np.empty(widest, matrix.dtype)
    product = np.empty(widest, matrix.dtype)
    scratch = np.empty(widest, matrix.dtype)
    soft = len(evidence) > 0
    one = matrix.dtype.type(1)
    for job in jobs:
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = matrix[steps.blocks[job]]
        shifts = shift[steps.blocks[job]]
        num_lifted = 0
        for q in range(q0, q1):
            size = steps.support_size[q]
            at = steps.message_start[q]
            if q == q0:
                state = steps.support_start[q]
                initial = log_initial[steps.initial[job], state : state + size]
                top = initial[0]
                for j in range(size):
                    top = max(top, initial[j])
                if top == -np.inf:
                    top = buffer.dtype.type(0)
                for j in range(size):
                    buffer[j] = np.exp(initial[j] - top)
                    if buffer[j] < floor and initial[j] > -np.inf:
                        buffer[j] = lift
                        num_lifted += 1
                offset[q] = top
            else:
                rows = steps.support_size[q - 1]
                block = steps.block_index[q - 1]
                if keep:
                    before = steps.message_start[q - 1]
                    previous = messages[before : before + rows]
                else:
                    previous = scratch
                _propagate(previous, row, steps.block_start[block], rows, size, buffer)
                offset[q] = shifts[block]
            if soft:
                num_lifted += _lift(buffer, size, one, floor, lift, product)
                for j in range(size):
                    buffer[j] = product[j] * evidence[at + j]
                offset[q] += evidence_shift[q]
            out = messages[at : at + size] if keep else scratch
            normaliser, low = _normalise(buffer, size, floor, lift, out)
            num_lifted += low
            scale[q] = normaliser
            if normaliser == 0:
                for rest in range(q + 1, q1):
                    scale[rest] = 0
                    offset[rest] = 0
                if keep:
                    messages[at : steps.message_start[q1]] = 0
                break
        lifted[job] = num_lifted > 0


@_compile
def backward_jobs(jobs, steps, transposed, evidence, floor, widest, messages):
    """Normalised messages of the future, lifted; zero where no future is possible."""
    buffer = np.empty(widest, transposed.dtype)
    product = np.empty(widest, transposed.dtype)
    soft = len(evidence) > 0
    one = transposed.dtype.type(1)
    for job in jobs:
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = transposed[steps.blocks[job]]
        size = steps.support_size[q1 - 1]
        at = steps.message_start[q1 - 1]
        for i in range(size):
            messages[at + i] = one / size
        for q in range(q1 - 2, q0 - 1, -1):
            size = steps.support_size[q]
            at = steps.message_start[q]
            columns = steps.support_size[q + 1]
            after = steps.message_start[q + 1]
            follower = messages[after : after + columns]
            if soft:
                for j in range(columns):
                    buffer[j] = follower[j] * evidence[after + j]
                _lift(buffer, columns, one, floor, floor, product)
                follower = product
            base = steps.block_start[steps.block_index[q]]
            _propagate(follower, row, base, columns, size, buffer)
            _normalise(buffer, size, floor, floor, messages[at : at + size])


@_compile
def certify(jobs, steps, forward, backward, scale, soft, floor, tolerance, overlap, exact):
    """Overlaps of both messages, and which jobs they prove exact."""
    for job in jobs:
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        risk = 0.0
        for q in range(q0, q1):
            total = forward[0] * 0
            for m in range(steps.message_start[q], steps.message_start[q + 1]):
                total += forward[m] * backward[m]
            overlap[q] = total
            added = 4.0 + soft * steps.support_size[q]
            risk += (added / scale[q] + 2) / np.float64(total)
        # Impossible data are known for certain: zeros are never lifted.
        exact[job] = scale[q1 - 1] == 0 or floor * risk <= tolerance


@_compile
def agree(jobs, steps, scale, other, tolerance, exact):
    """Which jobs have the same normalisers, up to each step, in both passes."""
    for job in jobs:
        gap = 0.0
        for q in range(steps.step_start[job], steps.step_start[job + 1]):
            if scale[q] == 0:
                break
            gap += np.log(scale[q] / other[q]) if scale[q] != other[q] else 0.0
            if not abs(gap) <= tolerance:
                exact[job] = False
                break


@_compile
def block_counts(
    first, last, order, group, steps, rows_of, columns_of, sweep, factor, widest, counts
):
    """Counts of shared blocks: ``T * sum_t factor_t alpha_t (x) beta_t``, four steps at a time."""
    matrix, forward, backward, evidence = sweep
    soft = len(evidence) > 0
    total = np.empty((widest, widest), matrix.dtype)
    right = np.zeros((4, widest), matrix.dtype)
    at = np.zeros(4, np.int64)
    for block in range(first, last):
        position, end = group[block], group[block + 1]
        if position == end:
            # Its supports may be wider than any that these jobs meet.
            counts[0, steps.block_start[block] : steps.block_start[block + 1]] = 0
            continue
        rows, columns = rows_of[block], columns_of[block]
        for i in range(rows):
            line = total[i]
            for j in range(columns):
                line[j] = 0
        while position < end:
            lanes = min(4, end - position)
            for lane in range(4):
                line = right[lane]
                if lane < lanes:
                    q = order[position + lane]
                    at[lane] = steps.message_start[q]
                    after = steps.message_start[q + 1]
                    weight = factor[q]
                    for j in range(columns):
                        line[j] = backward[after + j] * weight
                    if soft:
                        for j in range(columns):
                            line[j] *= evidence[after + j]
                else:
                    at[lane] = at[0]
                    for j in range(columns):
                        line[j] = 0
            at0, at1, at2, at3 = at[0], at[1], at[2], at[3]
            right0, right1, right2, right3 = right[0], right[1], right[2], right[3]
            for i in range(rows):
                a, b, c, d = forward[at0 + i], forward[at1 + i], forward[at2 + i], forward[at3 + i]
                line = total[i]
                for j in range(columns):
                    line[j] += (a * right0[j] + b * right1[j]) + (c * right2[j] + d * right3[j])
            position += 4
        base = steps.block_start[block]
        for i in range(rows):
            line = total[i]
            for j in range(columns):
                counts[0, base + i * columns + j] = line[j] * matrix[0, base + i * columns + j]


@_compile
def job_counts(jobs, steps, sweep, factor, counts):
    """Counts of the given jobs, step by step, into the block row of each."""
    matrix, forward, backward, evidence = sweep
    soft = len(evidence) > 0
    for job in jobs:
        row = matrix[steps.blocks[job]]
        into = counts[steps.blocks[job]]
        for q in range(steps.step_start[job], steps.step_start[job + 1] - 1):
            weight = factor[q]
            if weight == 0:
                continue
            base = steps.block_start[steps.block_index[q]]
            at, after = steps.message_start[q], steps.message_start[q + 1]
            columns = steps.support_size[q + 1]
            for i in range(steps.support_size[q]):
                left = forward[at + i] * weight
                line = into[base + i * columns : base + (i + 1) * columns]
                potentials = row[base + i * columns : base + (i + 1) * columns]
                if soft:
                    for j in range(columns):
                        line[j] += left * potentials[j] * backward[after + j] * evidence[after + j]
                else:
                    for j in range(columns):
                        line[j] += left * potentials[j] * backward[after + j]


@_compile
def state_marginals(steps, forward, backward, gain, whole, marginals, initial):
    """Posterior of every step (``whole``) or of the first step of each job only."""
    for job in range(len(steps.initial)):
        q0 = steps.step_start[job]
        q1 = steps.step_start[job + 1] if whole else q0 + 1
        for q in range(q0, q1):
            for m in range(steps.message_start[q], steps.message_start[q + 1]):
                value = forward[m] * backward[m] * gain[q]
                if whole:
                    marginals[m] = value
                if q == q0:
                    state = steps.support_start[q] + m - steps.message_start[q]
                    initial[steps.initial[job], state] += value


@_compile
def draw_jobs(jobs, steps, matrix, forward, uniforms, widest, states):
    """Backward sampling; ``states`` is ``(samples, Q)``."""
    weights = np.empty(widest, np.float64)
    for job in jobs:
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = matrix[steps.blocks[job]]
        for sample in range(len(uniforms)):
            for q in range(q1 - 1, q0 - 1, -1):
                size = steps.support_size[q]
                at = steps.message_start[q]
                total = 0.0
                if q == q1 - 1:
                    for i in range(size):
                        weights[i] = forward[at + i]
                        total += weights[i]
                else:
                    columns = steps.support_size[q + 1]
                    at_column = steps.block_start[steps.block_index[q]] + states[sample, q + 1]
                    for i in range(size):
                        potential = np.float64(row[at_column + i * columns])
                        weights[i] = np.float64(forward[at + i]) * potential
                        total += weights[i]
                target = uniforms[sample, q] * total
                running = 0.0
                chosen = 0
                for i in range(size):
                    if weights[i] > 0:
                        running += weights[i]
                        chosen = i
                        if running > target:
                            break
                states[sample, q] = chosen
