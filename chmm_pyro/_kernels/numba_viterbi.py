"""Compiled loops of the most probable path: max-sums of log-potentials, which cannot underflow."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["score_jobs", "viterbi_jobs"]

_compile = njit(
    cache=True,
    nogil=True,
    fastmath={"reassoc", "contract", "arcp", "nsz"},
    error_model="numpy",
)


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
