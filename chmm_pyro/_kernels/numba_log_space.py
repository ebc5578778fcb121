"""One sequence in log space and float64: slow, and right where scaled probabilities underflow.

All functions share the leading arguments ``support_start (T,), support_size (T,),
message_start (T + 1,), block_index (T,), block_start (G + 1,), log_initial (S,), log_blocks (F,),
log_evidence (messages,)`` of one job, with message positions counted from its first step.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["log_backward", "log_counts", "log_draw", "log_forward"]

_compile = njit(cache=True, nogil=True, error_model="numpy")


@_compile
def _log_sum(values, size):
    top = -np.inf
    for i in range(size):
        top = max(top, values[i])
    if top == -np.inf:
        return top
    total = 0.0
    for i in range(size):
        total += _exp(values[i] - top)
    return top + np.log(total)


@_compile
def _exp(gap):
    # A term this far below the largest is less than rounding, and most terms are.
    return np.exp(gap) if gap > -50.0 else 0.0


@_compile
def log_forward(
    support_start,
    support_size,
    message_start,
    block_index,
    block_start,
    log_initial,
    log_blocks,
    log_evidence,
):
    """Normalised log messages ``(messages,)`` and ``log_steps (T,)``.

    Both are ``-inf`` from the first impossible step on.
    """
    num_steps = len(support_size)
    messages = np.full(message_start[-1], -np.inf)
    log_steps = np.full(num_steps, -np.inf)
    tops = np.empty(support_size.max())
    for t in range(num_steps):
        size, at = support_size[t], message_start[t]
        out = messages[at : at + size]
        if t == 0:
            for j in range(size):
                out[j] = log_initial[support_start[t] + j]
        else:
            rows, before = support_size[t - 1], message_start[t - 1]
            base = block_start[block_index[t - 1]]
            tops[:size] = -np.inf
            for i in range(rows):
                row = log_blocks[base + i * size : base + (i + 1) * size]
                for j in range(size):
                    tops[j] = max(tops[j], messages[before + i] + row[j])
            out[:] = 0
            for i in range(rows):
                row = log_blocks[base + i * size : base + (i + 1) * size]
                for j in range(size):
                    out[j] += _exp(messages[before + i] + row[j] - tops[j])
            for j in range(size):
                out[j] = tops[j] + np.log(out[j]) if tops[j] > -np.inf else -np.inf
        for j in range(size):
            out[j] += log_evidence[at + j]
        normaliser = _log_sum(out, size)
        if normaliser == -np.inf:
            out[:] = -np.inf
            break
        log_steps[t] = normaliser
        out -= normaliser
    return messages, log_steps


@_compile
def log_backward(
    support_start,
    support_size,
    message_start,
    block_index,
    block_start,
    log_initial,
    log_blocks,
    log_evidence,
):
    """Log messages ``(messages,)`` of the future, shifted so that the largest is zero."""
    messages = np.zeros(message_start[-1])
    terms = np.empty(support_size.max())
    for t in range(len(support_size) - 2, -1, -1):
        size, at = support_size[t], message_start[t]
        columns, after = support_size[t + 1], message_start[t + 1]
        base = block_start[block_index[t]]
        top = -np.inf
        for i in range(size):
            for j in range(columns):
                terms[j] = log_blocks[base + i * columns + j]
                terms[j] += messages[after + j] + log_evidence[after + j]
            messages[at + i] = _log_sum(terms, columns)
            top = max(top, messages[at + i])
        if top > -np.inf:
            messages[at : at + size] -= top
    return messages


@_compile
def log_counts(
    support_start,
    support_size,
    message_start,
    block_index,
    block_start,
    log_initial,
    log_blocks,
    log_evidence,
    log_messages,
    log_future,
    weight,
    counts,
):
    """Weighted posterior of the first step and of all; weighted counts are added to ``counts``."""
    num_steps = len(support_size)
    marginals = np.empty(message_start[-1])
    terms = np.empty(support_size.max() ** 2)
    for t in range(num_steps):
        lo, hi = message_start[t], message_start[t + 1]
        joint = log_messages[lo:hi] + log_future[lo:hi]
        marginals[lo:hi] = weight * np.exp(joint - _log_sum(joint, hi - lo))
        if t + 1 < num_steps:
            columns = support_size[t + 1]
            base = block_start[block_index[t]]
            count = support_size[t] * columns
            for i in range(support_size[t]):
                for j in range(columns):
                    at = i * columns + j
                    terms[at] = log_messages[lo + i] + log_blocks[base + at]
                    terms[at] += log_future[hi + j] + log_evidence[hi + j]
            normaliser = _log_sum(terms, count)
            for at in range(count):
                counts[base + at] += weight * _exp(terms[at] - normaliser)
    return marginals[: support_size[0]].copy(), marginals


@_compile
def log_draw(
    support_start,
    support_size,
    message_start,
    block_index,
    block_start,
    log_initial,
    log_blocks,
    log_evidence,
    log_messages,
    uniforms,
):
    """Posterior paths ``(samples, T)`` by inverse CDF from ``uniforms (samples, T)``."""
    states = np.zeros(uniforms.shape, np.int64)
    terms = np.empty(support_size.max())
    for sample in range(len(uniforms)):
        for t in range(len(support_size) - 1, -1, -1):
            size, at = support_size[t], message_start[t]
            for i in range(size):
                terms[i] = log_messages[at + i]
                if t + 1 < len(support_size):
                    base = block_start[block_index[t]]
                    column = states[sample, t + 1]
                    terms[i] += log_blocks[base + i * support_size[t + 1] + column]
            normaliser = _log_sum(terms, size)
            running = 0.0
            for i in range(size):
                weight = np.exp(terms[i] - normaliser)
                if weight > 0:
                    running += weight
                    states[sample, t] = i
                    if running > uniforms[sample, t]:
                        break
    return states
