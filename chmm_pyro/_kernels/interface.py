"""What every kernel takes and returns; a backend is one module with these six functions.

``forward(problem, keep_messages=True) -> Forward``
``forward_backward(problem, weights=None, marginals=False) -> Counts``
``viterbi(problem, generator_seed=None) -> Path``
``ffbs(problem, uniforms) -> Draws``
``gather(table, layout) -> blocks`` copies ``(K, F)`` flat blocks out of ``(K, A, S, S)`` tables
``scatter(blocks, layout, num_actions) -> table`` adds them up in tables, its adjoint

Arrays are NumPy arrays for the numba backend and tensors for the torch backend.  ``K0`` and ``K``
are the numbers of distinct initial vectors and block rows, ``Q`` the steps, ``J`` the jobs.
Potentials need not be normalised, and no kernel normalises them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .layout import Jobs, Layout

__all__ = ["Counts", "Draws", "Forward", "Path", "Problem"]


class Problem(NamedTuple):
    """Potentials of all jobs, in natural logarithms.

    Attributes:
        layout: where everything lives; its sequences are numbered like the jobs.
        jobs: which initial vector and which blocks a job uses.
        log_initial: ``(K0, S)``.
        log_blocks: ``(K, F)`` flat blocks.
        log_evidence: ``(messages,)`` or None.
    """

    layout: Layout
    jobs: Jobs
    log_initial: Any
    log_blocks: Any
    log_evidence: Any = None


class Forward(NamedTuple):
    """Filtered messages.

    Attributes:
        log_z: ``(J,)`` float64 log-likelihoods.
        log_steps: ``(Q,)`` float64 ``log p(x_t | x_<t)``; ``-inf`` from the first impossible step
            on.
        messages: ``(messages,)`` ``p(z_t | x_<=t)``, zero from the first impossible step on; None
            if not kept.
    """

    log_z: Any
    log_steps: Any
    messages: Any


class Counts(NamedTuple):
    """Expected counts summed over jobs, each times its weight; an impossible job adds zero.

    Attributes:
        log_z: ``(J,)`` float64.
        initial_counts: ``(K0, S)``.
        block_counts: ``(K, F)``.
        marginals: ``(messages,)`` weighted ``p(z_t | x)``, or None if not asked for.
    """

    log_z: Any
    initial_counts: Any
    block_counts: Any
    marginals: Any


class Path(NamedTuple):
    """Most probable paths.

    Attributes:
        states: ``(Q,)`` position of the best path within each step's support.
        score: ``(J,)`` float64 joint log-probability of path and data; ``-inf`` if impossible.
    """

    states: Any
    score: Any


class Draws(NamedTuple):
    """Paths drawn from the posterior.

    Attributes:
        states: ``(samples, Q)`` position of each path within each step's support.
        log_z: ``(J,)`` float64; the paths of a job with ``-inf`` mean nothing.
    """

    states: Any
    log_z: Any
