"""The published algorithm, written from its equations (George et al. 2021) in numba.

A stand-in for the published program: dense ``(A, S, S)`` tables, the clone block of every step as
a slice of them, normalised messages, and counts accumulated step by step.  Single-threaded.
"""

from __future__ import annotations

import numba
import numpy as np
from contest import Implementation, Run
from sizes import PSEUDOCOUNT, Instance

__all__ = ["PUBLISHED"]


@numba.njit(nogil=True, fastmath=True)
def _forward(transposed, initial, width, obs, actions, messages):
    log_z = 0.0
    first = obs[0] * width
    message = initial[first : first + width].copy()
    for t in range(len(obs)):
        if t > 0:
            old, new = obs[t - 1] * width, obs[t] * width
            block = transposed[actions[t - 1], new : new + width, old : old + width]
            message = np.dot(np.ascontiguousarray(block), message)
        total = message.sum()
        message = message / total
        messages[t] = message
        log_z += np.log(total)
    return log_z


@numba.njit(nogil=True, fastmath=True)
def _backward(table, width, obs, actions, messages):
    message = np.ones(width, table.dtype) / np.float32(width)
    messages[len(obs) - 1] = message
    for t in range(len(obs) - 2, -1, -1):
        old, new = obs[t] * width, obs[t + 1] * width
        block = table[actions[t], old : old + width, new : new + width]
        message = np.dot(np.ascontiguousarray(block), message)
        message = message / message.sum()
        messages[t] = message


@numba.njit(nogil=True, fastmath=True)
def _count(table, width, obs, actions, forward, backward, counts):
    for t in range(len(obs) - 1):
        old, new = obs[t] * width, obs[t + 1] * width
        block = table[actions[t], old : old + width, new : new + width]
        joint = forward[t].reshape(-1, 1) * block * backward[t + 1].reshape(1, -1)
        joint /= joint.sum()
        counts[actions[t], old : old + width, new : new + width] += joint


def _em(instance: Instance) -> Run:
    obs, actions, width = instance.obs, instance.actions, instance.clones_per_symbol
    initial = np.full(instance.num_states, 1 / instance.num_states, np.float32)
    forward = np.empty((instance.num_steps, width), np.float32)
    backward = np.empty_like(forward)
    now = [instance.table]

    def step() -> float:
        table = now[0]
        transposed = np.ascontiguousarray(table.transpose(0, 2, 1))
        counts = np.full_like(table, PSEUDOCOUNT)
        log_z = 0.0
        for x, a in zip(obs, actions, strict=True):
            log_z += _forward(transposed, initial, width, x, a, forward)
            _backward(table, width, x, a, backward)
            _count(table, width, x, a, forward, backward, counts)
        now[0] = counts / counts.sum(-1, keepdims=True)
        return log_z

    return Run(step, lambda: now.__setitem__(0, instance.table))


PUBLISHED = (Implementation("published-em", "em", _em, needs=("numba", "scipy")),)
