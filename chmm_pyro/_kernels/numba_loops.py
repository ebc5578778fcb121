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
    "gather_blocks",
    "job_counts",
    "lift_blocks",
    "scale_evidence",
    "scatter_blocks",
    "state_marginals",
    "subtract_top",
    "transpose",
]

_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
_compile = njit(cache=True, nogil=True, fastmath=_FASTMATH, error_model="numpy")


@_compile
def subtract_top(first, last, log_blocks, block_start, top, out):
    """``log_blocks`` less the largest of each block."""
    for k in range(len(log_blocks)):
        for block in range(first, last):
            lo, hi = block_start[block], block_start[block + 1]
            row, into, shift = log_blocks[k, lo:hi], out[k, lo:hi], top[k, block]
            for m in range(hi - lo):
                into[m] = row[m] - shift


@_compile
def gather_blocks(first, last, table, states, action_of, from_of, to_of, block_start, blocks):
    """Copy blocks out of tables; ``table`` is ``(K, A * S * S)``."""
    for k in range(len(table)):
        for block in range(first, last):
            at = (action_of[block] * states + from_of[block, 0]) * states + to_of[block, 0]
            base, columns = block_start[block], to_of[block, 1]
            for _ in range(from_of[block, 1]):
                row, into = table[k, at : at + columns], blocks[k, base : base + columns]
                for j in range(columns):
                    into[j] = row[j]
                at += states
                base += columns


@_compile
def scatter_blocks(blocks, states, action_of, from_of, to_of, block_start, table):
    """Add blocks to tables; those of missing steps overlap."""
    for k in range(len(table)):
        for block in range(len(action_of)):
            at = (action_of[block] * states + from_of[block, 0]) * states + to_of[block, 0]
            base, columns = block_start[block], to_of[block, 1]
            for _ in range(from_of[block, 1]):
                row, into = blocks[k, base : base + columns], table[k, at : at + columns]
                for j in range(columns):
                    into[j] += row[j]
                at += states
                base += columns


@_compile
def lift_blocks(first, last, log_blocks, block_start, floor, blocks):
    """Raise possible potentials to ``floor``; returns how many were below it."""
    lifted = 0
    for k in range(len(blocks)):
        lo, hi = block_start[first], block_start[last]
        row, into = log_blocks[k, lo:hi], blocks[k, lo:hi]
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
            rows, columns = rows_of[block], columns_of[block]
            lo, hi = block_start[block], block_start[block + 1]
            # Slices of one dimension: the compiler sees that lines do not overlap.
            entries, into = matrix[k, lo:hi], out[k, lo:hi]
            for j in range(columns):
                line = into[j * rows : (j + 1) * rows]
                for i in range(rows):
                    line[i] = entries[i * columns + j]


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
def _propagate(vector, at, rows, matrix, base, columns, out):
    """``out = vector[at : at + rows] @ block`` for the row-major block that starts at ``base``.

    Four rows at a time: a quarter of the loads and stores of ``out``.
    """
    for j in range(columns):
        out[j] = 0
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        left = at + i
        a, b, c, d = vector[left], vector[left + 1], vector[left + 2], vector[left + 3]
        row = base + i * columns
        row_a = matrix[row : row + columns]
        row_b = matrix[row + columns : row + 2 * columns]
        row_c = matrix[row + 2 * columns : row + 3 * columns]
        row_d = matrix[row + 3 * columns : row + 4 * columns]
        for j in range(columns):
            out[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + d * row_d[j])
    for i in range(whole, rows):
        a = vector[at + i]
        row = base + i * columns
        row_a = matrix[row : row + columns]
        for j in range(columns):
            out[j] += a * row_a[j]


@_compile
def _lift(vector, size, scale, floor, lift, out, at):
    """Write ``vector * scale`` at ``at``, with ``lift`` for what is positive but below ``floor``.

    ``out`` is not ``vector``: the compiler could not use vector instructions.
    """
    into = out[at : at + size]
    lifted = 0
    for j in range(size):
        value = vector[j] * scale
        small = (value < floor) & (vector[j] > 0)
        into[j] = lift if small else value
        lifted += small
    return lifted


@_compile
def _normalise(vector, size, floor, lift, out, at):
    """Write ``vector / sum`` at ``at``, lifted; returns the sum and how many entries were."""
    total = vector[0] * 0
    for j in range(size):
        total += vector[j]
    inverse = 1 / total if total > 0 else total
    return total, _lift(vector, size, inverse, floor, lift, out, at)


@_compile
def _start(log_initial, state, size, floor, lift, out):
    """Initial probabilities, the largest one; returns its logarithm and how many were lifted."""
    initial = log_initial[state : state + size]
    top = initial[0]
    for j in range(size):
        top = max(top, initial[j])
    if top == -np.inf:
        top = out.dtype.type(0)
    lifted = 0
    for j in range(size):
        out[j] = np.exp(initial[j] - top)
        if out[j] < floor and initial[j] > -np.inf:
            out[j] = lift
            lifted += 1
    return top, lifted


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

    From the first impossible step on, ``scale`` and messages are zero.  Where messages are not to
    ``keep``, their array has room for two.
    """
    buffer = np.empty(widest, matrix.dtype)
    product = np.empty(widest, matrix.dtype)
    soft = len(evidence) > 0
    one = matrix.dtype.type(1)
    for job in jobs:
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = matrix[steps.blocks[job]]
        shifts = shift[steps.blocks[job]]
        initial = log_initial[steps.initial[job]]
        num_lifted, rows, before = 0, 0, 0
        for q in range(q0, q1):
            size = steps.support_size[q]
            at = steps.message_start[q] if keep else (q & 1) * widest
            if q == q0:
                top, low = _start(initial, steps.support_start[q], size, floor, lift, buffer)
                offset[q] = top
                num_lifted += low
            else:
                block = steps.block_index[q - 1]
                _propagate(messages, before, rows, row, steps.block_start[block], size, buffer)
                offset[q] = shifts[block]
            if soft:
                num_lifted += _lift(buffer, size, one, floor, lift, product, 0)
                likelihood = evidence[steps.message_start[q] : steps.message_start[q] + size]
                for j in range(size):
                    buffer[j] = product[j] * likelihood[j]
                offset[q] += evidence_shift[q]
            normaliser, low = _normalise(buffer, size, floor, lift, messages, at)
            num_lifted += low
            scale[q] = normaliser
            if normaliser == 0:
                scale[q + 1 : q1] = 0
                offset[q + 1 : q1] = 0
                if keep:
                    messages[at : steps.message_start[q1]] = 0
                break
            rows, before = size, at
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
        columns, after = steps.support_size[q1 - 1], steps.message_start[q1 - 1]
        for j in range(columns):
            messages[after + j] = one / columns
        for q in range(q1 - 2, q0 - 1, -1):
            size, at = steps.support_size[q], steps.message_start[q]
            base = steps.block_start[steps.block_index[q]]
            if soft:
                for j in range(columns):
                    buffer[j] = messages[after + j] * evidence[after + j]
                _lift(buffer, columns, one, floor, floor, product, 0)
                _propagate(product, 0, columns, row, base, size, buffer)
            else:
                _propagate(messages, after, columns, row, base, size, buffer)
            _normalise(buffer, size, floor, floor, messages, at)
            columns, after = size, at


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
    total = np.empty(widest * widest, matrix.dtype)
    right_a, right_b = np.empty(widest, matrix.dtype), np.empty(widest, matrix.dtype)
    right_c, right_d = np.empty(widest, matrix.dtype), np.empty(widest, matrix.dtype)
    soft = len(evidence) > 0
    nothing = matrix.dtype.type(0)
    for block in range(first, last):
        base, end = steps.block_start[block], group[block + 1]
        # Supports of unused blocks may be wider than any that these jobs meet.
        if group[block] == end:
            counts[0, base : steps.block_start[block + 1]] = 0
            continue
        rows, columns = rows_of[block], columns_of[block]
        total[: rows * columns] = 0
        for position in range(group[block], end, 4):
            # After the last step come repetitions that weigh nothing.
            a = order[position]
            b = order[min(position + 1, end - 1)]
            c = order[min(position + 2, end - 1)]
            d = order[min(position + 3, end - 1)]
            weight_a = factor[a]
            weight_b = factor[b] if position + 1 < end else nothing
            weight_c = factor[c] if position + 2 < end else nothing
            weight_d = factor[d] if position + 3 < end else nothing
            after_a, after_b = steps.message_start[a + 1], steps.message_start[b + 1]
            after_c, after_d = steps.message_start[c + 1], steps.message_start[d + 1]
            message_a = backward[after_a : after_a + columns]
            message_b = backward[after_b : after_b + columns]
            message_c = backward[after_c : after_c + columns]
            message_d = backward[after_d : after_d + columns]
            for j in range(columns):
                right_a[j] = message_a[j] * weight_a
                right_b[j] = message_b[j] * weight_b
                right_c[j] = message_c[j] * weight_c
                right_d[j] = message_d[j] * weight_d
            if soft:
                for j in range(columns):
                    right_a[j] *= evidence[after_a + j]
                    right_b[j] *= evidence[after_b + j]
                    right_c[j] *= evidence[after_c + j]
                    right_d[j] *= evidence[after_d + j]
            at_a, at_b = steps.message_start[a], steps.message_start[b]
            at_c, at_d = steps.message_start[c], steps.message_start[d]
            for i in range(rows):
                left_a, left_b = forward[at_a + i], forward[at_b + i]
                left_c, left_d = forward[at_c + i], forward[at_d + i]
                line = total[i * columns : (i + 1) * columns]
                for j in range(columns):
                    line[j] += (left_a * right_a[j] + left_b * right_b[j]) + (
                        left_c * right_c[j] + left_d * right_d[j]
                    )
        potentials = matrix[0, base : base + rows * columns]
        into = counts[0, base : base + rows * columns]
        for i in range(rows * columns):
            into[i] = total[i] * potentials[i]


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
