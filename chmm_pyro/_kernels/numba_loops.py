"""Compiled loops of the CPU kernels: arrays in, arrays filled.

``fastmath`` leaves out ``nnan`` and ``ninf``: the guards below compare with zero and infinity.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "backward_jobs",
    "block_counts",
    "draw_jobs",
    "forward_jobs",
    "job_counts",
    "overlaps",
    "scale_evidence",
    "score_jobs",
    "state_marginals",
    "transpose",
    "viterbi_jobs",
]

_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
_compile = njit(cache=True, nogil=True, fastmath=_FASTMATH, error_model="numpy")


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
def _normalise(vector, size, out):
    """Write ``vector / sum`` to ``out`` and return the sum."""
    total = vector[0] * 0
    for j in range(size):
        total += vector[j]
    if total > 0:
        inverse = 1 / total
        for j in range(size):
            out[j] = vector[j] * inverse
    return total


@_compile
def forward_jobs(
    first,
    last,
    steps,
    initial,
    matrix,
    shift,
    evidence,
    evidence_shift,
    floor,
    keep,
    widest,
    messages,
    scale,
    log_steps,
    log_z,
    scaled,
):
    buffer = np.empty(widest, matrix.dtype)
    scratch = np.empty(widest, matrix.dtype)
    soft = len(evidence) > 0
    for job in range(first, last):
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = matrix[steps.blocks[job]]
        shifts = shift[steps.blocks[job]]
        total = 0.0
        for q in range(q0, q1):
            size = steps.support_size[q]
            at = steps.message_start[q]
            if q == q0:
                state = steps.support_start[q]
                for j in range(size):
                    buffer[j] = initial[steps.initial[job], state + j]
                offset = 0.0
            else:
                rows = steps.support_size[q - 1]
                block = steps.block_index[q - 1]
                if keep:
                    before = steps.message_start[q - 1]
                    previous = messages[before : before + rows]
                else:
                    previous = scratch
                _propagate(previous, row, steps.block_start[block], rows, size, buffer)
                offset = shifts[block]
            if soft:
                for j in range(size):
                    buffer[j] *= evidence[at + j]
                offset += evidence_shift[q]
            if keep:
                normaliser = _normalise(buffer, size, messages[at : at + size])
            else:
                normaliser = _normalise(buffer, size, scratch)
            if not normaliser >= floor:
                scaled[job] = False
                break
            scale[q] = normaliser
            log_steps[q] = np.log(np.float64(normaliser)) + offset
            total += log_steps[q]
        log_z[job] = total


@_compile
def backward_jobs(first, last, steps, transposed, evidence, widest, messages):
    product = np.empty(widest, transposed.dtype)
    soft = len(evidence) > 0
    for job in range(first, last):
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = transposed[steps.blocks[job]]
        size = steps.support_size[q1 - 1]
        at = steps.message_start[q1 - 1]
        for i in range(size):
            messages[at + i] = row.dtype.type(1) / size
        for q in range(q1 - 2, q0 - 1, -1):
            size = steps.support_size[q]
            at = steps.message_start[q]
            columns = steps.support_size[q + 1]
            after = steps.message_start[q + 1]
            follower = messages[after : after + columns]
            if soft:
                for j in range(columns):
                    product[j] = follower[j] * evidence[after + j]
                follower = product
            out = messages[at : at + size]
            base = steps.block_start[steps.block_index[q]]
            _propagate(follower, row, base, columns, size, out)
            _normalise(out, size, out)


@_compile
def overlaps(first, last, steps, forward, backward, floor, scaled, overlap):
    for job in range(first, last):
        for q in range(steps.step_start[job], steps.step_start[job + 1]):
            total = forward[0] * 0
            for m in range(steps.message_start[q], steps.message_start[q + 1]):
                total += forward[m] * backward[m]
            overlap[q] = total
            if not total >= floor:
                scaled[job] = False


@_compile
def block_counts(
    first, last, order, group, steps, rows_of, columns_of, job_of, sweep, factor, widest, counts
):
    """Counts of shared blocks: ``T * sum_t factor_t alpha_t (x) beta_t``, four steps at a time."""
    matrix, forward, backward, evidence = sweep
    soft = len(evidence) > 0
    total = np.empty((widest, widest), matrix.dtype)
    right = np.zeros((4, widest), matrix.dtype)
    at = np.zeros(4, np.int64)
    for block in range(first, last):
        rows, columns = rows_of[block], columns_of[block]
        for i in range(rows):
            line = total[i]
            for j in range(columns):
                line[j] = 0
        position, end = group[block], group[block + 1]
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
def state_marginals(first, last, steps, forward, backward, gain, whole, marginals, initial):
    """Posterior of every step (``whole``) or of the first step of each job only."""
    for job in range(first, last):
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
def transpose(matrix, block_start, rows_of, columns_of, out):
    for k in range(len(matrix)):
        for block in range(len(rows_of)):
            rows, columns, base = rows_of[block], columns_of[block], block_start[block]
            for i in range(rows):
                for j in range(columns):
                    out[k, base + j * rows + i] = matrix[k, base + i * columns + j]


@_compile
def scale_evidence(steps, log_evidence, out, shift):
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


@_compile
def viterbi_jobs(first, last, steps, log_initial, log_blocks, log_evidence, seed, back, states):
    widest = len(back[0])
    best = np.empty(widest, log_blocks.dtype)
    previous = np.empty(widest, log_blocks.dtype)
    arrived = np.empty(widest, np.int64)
    soft = len(log_evidence) > 0
    random = seed != 0
    for job in range(first, last):
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        row = log_blocks[steps.blocks[job]]
        noise = np.uint64(seed + job * 7919) | np.uint64(1)
        for q in range(q0, q1):
            size = steps.support_size[q]
            if q == q0:
                state = steps.support_start[q]
                for j in range(size):
                    best[j] = log_initial[steps.initial[job], state + j]
            else:
                rows = steps.support_size[q - 1]
                base = steps.block_start[steps.block_index[q - 1]]
                pointer = back[q]
                for j in range(size):
                    best[j] = -np.inf
                    pointer[j] = 0
                if random:
                    for j in range(size):
                        arrived[j] = 0
                    for i in range(rows):
                        line = row[base + i * size : base + (i + 1) * size]
                        for j in range(size):
                            value = previous[i] + line[j]
                            if value > best[j]:
                                best[j] = value
                                pointer[j] = i
                                arrived[j] = 1
                            elif value == best[j] and value > -np.inf:
                                arrived[j] += 1
                                noise = _xorshift(noise)
                                if noise % np.uint64(arrived[j]) == 0:
                                    pointer[j] = i
                else:
                    for i in range(rows):
                        line = row[base + i * size : base + (i + 1) * size]
                        score = previous[i]
                        for j in range(size):
                            value = score + line[j]
                            better = value > best[j]
                            pointer[j] = i if better else pointer[j]
                            best[j] = value if better else best[j]
            if soft:
                at = steps.message_start[q]
                for j in range(size):
                    best[j] += log_evidence[at + j]
            top = best[0]
            for j in range(size):
                top = max(top, best[j])
            if top == -np.inf:
                top = best.dtype.type(0)
            for j in range(size):
                previous[j] = best[j] - top
        state = 0
        ties = 0
        for j in range(steps.support_size[q1 - 1]):
            if previous[j] > previous[state] or j == 0:
                state = j
                ties = 1
            elif random and previous[j] == previous[state]:
                ties += 1
                noise = _xorshift(noise)
                if noise % np.uint64(ties) == 0:
                    state = j
        for q in range(q1 - 1, q0 - 1, -1):
            states[q] = state
            if q > q0:
                state = back[q, state]


@_compile
def _xorshift(noise):
    noise ^= noise << np.uint64(13)
    noise ^= noise >> np.uint64(7)
    noise ^= noise << np.uint64(17)
    return noise


@_compile
def score_jobs(first, last, steps, log_initial, log_blocks, log_evidence, states, score):
    """Joint log-probability of one path a job, in float64."""
    soft = len(log_evidence) > 0
    for job in range(first, last):
        q0, q1 = steps.step_start[job], steps.step_start[job + 1]
        total = np.float64(log_initial[steps.initial[job], steps.support_start[q0] + states[q0]])
        for q in range(q0, q1):
            if soft:
                total += np.float64(log_evidence[steps.message_start[q] + states[q]])
            if q + 1 < q1:
                base = steps.block_start[steps.block_index[q]]
                columns = steps.support_size[q + 1]
                at = base + states[q] * columns + states[q + 1]
                total += np.float64(log_blocks[steps.blocks[job], at])
        score[job] = total


@_compile
def draw_jobs(first, last, steps, matrix, forward, uniforms, floor, widest, scaled, states):
    """Backward sampling; ``states`` is ``(samples, Q)``."""
    weights = np.empty(widest, np.float64)
    for job in range(first, last):
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
                if not total >= floor:
                    scaled[job] = False
                    break
                target = uniforms[sample, q] * total
                running = 0.0
                chosen = -1
                for i in range(size):
                    if weights[i] > 0:
                        running += weights[i]
                        chosen = i
                        if running > target:
                            break
                states[sample, q] = chosen
