r"""Brute force: every quantity of a clone-structured HMM as a sum over all clone paths.

Nothing here shares code with the package and nothing but :func:`log_forward` and
:func:`max_marginals` is a recursion.  All functions take one sequence and *potentials* in natural
logarithms, which need not be normalised:

- ``log_initial`` ``(S,)``, ``log_transition`` ``(A, S, S)``, ``actions`` ``(T - 1,)``, ``obs``
  ``(T,)`` with MISSING, ``log_evidence`` ``(T, V)`` or ``(T, S)`` or None;
- per-step transitions are ``A = T - 1`` tables with ``actions = arange(T - 1)``
  (:func:`dense_steps` makes them from clone-local blocks);
- an action prior is ``log_transition + log_actions[:, None, None]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from chmm_pyro.clones import MISSING

__all__ = [
    "Exact",
    "all_paths",
    "dense_steps",
    "enumerate_paths",
    "log_forward",
    "log_normalise",
    "log_prob_torch",
    "max_marginals",
    "predict",
]

Array = NDArray[np.float64]

MAX_PATHS = 300_000
TIE = 1e-11
"""Path scores closer than this (relative to 1 + their size) count as tied."""


class Exact(NamedTuple):
    """What enumeration finds.

    Attributes:
        log_prob: natural log of the sum over paths.
        log_prob_steps: ``(T,)`` ``log p(x_t | past)``; ``-inf`` from the first impossible step on.
        filter: ``(T, S)``; zero from the first impossible step on.
        smooth: ``(T, S)``, also the gradient of ``log_prob`` with respect to state evidence; this
            and the counts are zero for impossible data.
        initial_counts: ``(S,)`` gradient with respect to ``log_initial``.
        transition_counts: ``(A, S, S)`` gradient with respect to ``log_transition``.
        evidence_gradient: in the shape of ``log_evidence``, or None.
        paths: probability of every possible path given the data; empty for impossible data.
        best_score: joint natural log-probability of a most probable path and the data.
        best_paths: all most probable paths, in lexicographic order.
        lowest_path: the one that backtracking finds if the last state is the lowest-numbered
            maximum of the final max-messages and each earlier state the lowest-numbered best
            predecessor of the one after it; None for impossible data.
        first_impossible: the first step at which no path is left, or None.
    """

    log_prob: float
    log_prob_steps: Array
    filter: Array
    smooth: Array
    initial_counts: Array
    transition_counts: Array
    evidence_gradient: Array | None
    paths: dict[tuple[int, ...], float]
    best_score: float
    best_paths: tuple[tuple[int, ...], ...]
    lowest_path: tuple[int, ...] | None
    first_impossible: int | None


def log_normalise(logits: ArrayLike, action_model: str = "conditional") -> Array:
    """Logits ``(A, S, S)`` as log-probabilities of ``p(z'|z,a)``, or of ``p(z',a|z)`` (joint).

    Also normalises ``(S,)`` initial logits (conditional).
    """
    table = np.asarray(logits, np.float64)
    axes = {"conditional": (-1,), "joint": (-3, -1)}[action_model]
    top = table.max(axis=axes, keepdims=True)
    return table - top - np.log(np.exp(table - top).sum(axis=axes, keepdims=True))


def log_sum(values: Array) -> float:
    """``log Σ exp(values)``, summed without rounding; ``-inf`` for nothing or only ``-inf``."""
    top = float(np.max(values, initial=-math.inf))
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(np.exp(values - top)))


def _supports(num_clones: Sequence[int], obs: ArrayLike) -> list[range]:
    """States that each step allows."""
    starts = [sum(num_clones[:v]) for v in range(len(num_clones) + 1)]
    whole = range(starts[-1])
    return [
        whole if x == MISSING else range(starts[int(x)], starts[int(x) + 1])
        for x in np.asarray(obs).tolist()
    ]


def all_paths(num_clones: Sequence[int], obs: ArrayLike) -> NDArray[np.int64]:
    """``(N, T)`` every path through the clones of ``obs``, in lexicographic order."""
    supports = _supports(num_clones, obs)
    count = math.prod(map(len, supports))
    assert count <= MAX_PATHS, f"{count} paths are too many to enumerate; make the instance smaller"
    return np.array(list(product(*supports)), np.int64).reshape(count, len(supports))


def _state_evidence(num_clones: Sequence[int], log_evidence: ArrayLike | None, steps: int) -> Array:
    """``(T, S)`` evidence of states, zero if there is none."""
    if log_evidence is None:
        return np.zeros((steps, sum(num_clones)))
    evidence = np.asarray(log_evidence, np.float64)
    if evidence.shape[-1] == sum(num_clones):
        return evidence
    return np.repeat(evidence, num_clones, axis=-1)


def _scores(
    paths: NDArray[np.int64],
    log_initial: Array,
    log_transition: Array,
    actions: NDArray[np.int64],
    evidence: Array,
) -> Array:
    """``(N,)`` joint log-probability of each path (a prefix, if shorter) and the data."""
    steps = paths.shape[1]
    score = log_initial[paths[:, 0]]
    score = score + log_transition[actions[: steps - 1], paths[:, :-1], paths[:, 1:]].sum(-1)
    return score + evidence[np.arange(steps), paths].sum(-1)


def enumerate_paths(
    num_clones: Sequence[int],
    log_initial: ArrayLike,
    log_transition: ArrayLike,
    actions: ArrayLike,
    obs: ArrayLike,
    log_evidence: ArrayLike | None = None,
) -> Exact:
    """All posterior quantities of one sequence from the list of all its paths."""
    log_initial = np.asarray(log_initial, np.float64)
    log_transition = np.asarray(log_transition, np.float64)
    actions = np.asarray(actions, np.int64)
    obs = np.asarray(obs, np.int64)
    num_states, steps = len(log_initial), len(obs)
    evidence = _state_evidence(num_clones, log_evidence, steps)

    totals = []
    filtered = np.zeros((steps, num_states))
    for t in range(steps):
        paths = all_paths(num_clones, obs[: t + 1])
        scores = _scores(paths, log_initial, log_transition, actions, evidence)
        totals.append(log_sum(scores))
        if totals[t] > -math.inf:
            np.add.at(filtered[t], paths[:, t], np.exp(scores - totals[t]))
    possible = [total > -math.inf for total in totals]
    log_steps = np.full(steps, -math.inf)
    for t in range(steps):
        if possible[t]:
            log_steps[t] = totals[t] - (totals[t - 1] if t else 0.0)

    weights = np.exp(scores - totals[-1]) if possible[-1] else np.zeros(len(scores))
    smoothed = np.zeros((steps, num_states))
    counts = np.zeros(log_transition.shape)
    for t in range(steps):
        np.add.at(smoothed[t], paths[:, t], weights)
        if t + 1 < steps:
            np.add.at(counts[actions[t]], (paths[:, t], paths[:, t + 1]), weights)

    best = float(scores.max())
    tied = scores >= best - TIE * (1 + abs(best)) if possible[-1] else np.zeros(len(scores), bool)
    best_paths = tuple(map(tuple, paths[tied].tolist()))
    gradient = None
    if log_evidence is not None:
        gradient = smoothed
        if np.shape(log_evidence)[-1] != num_states:
            starts = np.cumsum([0, *num_clones[:-1]])
            gradient = np.add.reduceat(smoothed, starts, axis=1)
    return Exact(
        log_prob=totals[-1],
        log_prob_steps=log_steps,
        filter=filtered,
        smooth=smoothed,
        initial_counts=smoothed[0].copy(),
        transition_counts=counts,
        evidence_gradient=gradient,
        paths={tuple(p): float(w) for p, w in zip(paths.tolist(), weights, strict=True) if w > 0},
        best_score=best,
        best_paths=best_paths,
        # The best predecessors of a suffix are those of the best paths with that suffix.
        lowest_path=min(best_paths, key=lambda path: path[::-1], default=None),
        first_impossible=None if all(possible) else possible.index(False),
    )


def predict(
    num_clones: Sequence[int],
    log_initial: ArrayLike,
    log_transition: ArrayLike,
    actions: ArrayLike,
    obs: ArrayLike,
    future_actions: ArrayLike,
    log_evidence: ArrayLike | None = None,
) -> Array:
    """``(K, V)`` distribution of the symbol ``k + 1`` steps after the last, given actions up to it.

    Future steps are enumerated like missing ones.
    """
    future = np.asarray(future_actions, np.int64)
    starts = np.cumsum([0, *num_clones[:-1]])
    evidence = _state_evidence(num_clones, log_evidence, len(np.asarray(obs)))
    rows = []
    for k in range(1, len(future) + 1):
        found = enumerate_paths(
            num_clones,
            log_initial,
            log_transition,
            np.concatenate([np.asarray(actions, np.int64), future[:k]]),
            np.concatenate([obs, np.full(k, MISSING)]),
            np.concatenate([evidence, np.zeros((k, evidence.shape[1]))]),
        )
        rows.append(np.add.reduceat(found.filter[-1], starts))
    return np.array(rows)


def log_prob_torch(
    num_clones: Sequence[int],
    initial_logits: Tensor,
    transition_logits: Tensor,
    actions: ArrayLike,
    obs: ArrayLike,
    log_evidence: Tensor | None = None,
    *,
    action_model: str = "conditional",
    action_logits: Tensor | None = None,
) -> Tensor:
    """The same sum over paths from raw logits, differentiable any number of times.

    Only possible paths enter the sum, so logits and evidence of ``-inf`` get gradient zero; if
    there are none the value is ``-inf`` with gradient zero.
    """
    if action_model == "joint":
        of_old_state = transition_logits.transpose(0, 1)
        joint = of_old_state.flatten(1).log_softmax(-1)
        log_transition = joint.view(of_old_state.shape).transpose(0, 1)
    else:
        log_transition = transition_logits.log_softmax(-1)
    log_initial = initial_logits.log_softmax(-1)
    actions = torch.as_tensor(np.asarray(actions, np.int64))
    paths = torch.as_tensor(all_paths(num_clones, obs))
    steps = paths.shape[1]

    def terms(kept: Tensor) -> Tensor:
        score = log_initial[kept[:, 0]]
        score = score + log_transition[actions, kept[:, :-1], kept[:, 1:]].sum(-1)
        if action_logits is not None:
            score = score + action_logits.log_softmax(-1)[actions].sum()
        if log_evidence is not None:
            column = kept
            if log_evidence.shape[-1] != sum(num_clones):
                owner = np.repeat(np.arange(len(num_clones)), num_clones)
                column = torch.as_tensor(owner)[kept]
            score = score + log_evidence[torch.arange(steps), column].sum(-1)
        return score

    possible = torch.isfinite(terms(paths).detach())
    if possible.any():
        return terms(paths[possible]).logsumexp(0)
    inputs = (initial_logits, transition_logits, log_evidence, action_logits)
    zero = sum(x.nan_to_num(0.0, 0.0, 0.0).sum() * 0.0 for x in inputs if x is not None)
    return zero - math.inf


def dense_steps(num_clones: Sequence[int], obs: ArrayLike, log_potentials: ArrayLike) -> Array:
    """Clone-local blocks ``(T - 1, R, C)`` as tables ``(T - 1, S, S)``; ``-inf`` elsewhere."""
    local = np.asarray(log_potentials, np.float64)
    tables = np.full((len(local), sum(num_clones), sum(num_clones)), -math.inf)
    supports = _supports(num_clones, obs)
    for t, block in enumerate(local):
        old, new = supports[t], supports[t + 1]
        tables[t, old.start : old.stop, new.start : new.stop] = block[: len(old), : len(new)]
    return tables


def _log_messages(
    num_clones: Sequence[int], obs: ArrayLike, log_evidence: ArrayLike | None
) -> Array:
    """``(T, S)`` log-evidence with the symbols' own zeros."""
    steps = len(np.asarray(obs))
    evidence = _state_evidence(num_clones, log_evidence, steps)
    allowed = np.full(evidence.shape, -math.inf)
    for t, support in enumerate(_supports(num_clones, obs)):
        allowed[t, support.start : support.stop] = evidence[t, support.start : support.stop]
    return allowed


def log_forward(
    num_clones: Sequence[int],
    log_initial: ArrayLike,
    log_transition: ArrayLike,
    actions: ArrayLike,
    obs: ArrayLike,
    log_evidence: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """The textbook forward recursion over all ``S`` states in log space: a second opinion.

    For sequences too long to enumerate, of possible data.

    Returns:
        ``log_prob_steps`` ``(T,)`` (sum them with ``math.fsum``) and ``filter`` ``(T, S)``.
    """
    table = np.asarray(log_transition, np.float64)
    emitted = _log_messages(num_clones, obs, log_evidence)
    message = np.asarray(log_initial, np.float64)
    log_steps, filtered = np.empty(len(emitted)), np.empty(emitted.shape)
    for t, emission in enumerate(emitted):
        if t:
            message = np.logaddexp.reduce(message[:, None] + table[actions[t - 1]], axis=0)
        message = message + emission
        log_steps[t] = np.logaddexp.reduce(message)
        message = message - log_steps[t]
        filtered[t] = np.exp(message)
    return log_steps, filtered


def max_marginals(
    num_clones: Sequence[int],
    log_initial: ArrayLike,
    log_transition: ArrayLike,
    actions: ArrayLike,
    obs: ArrayLike,
    log_evidence: ArrayLike | None = None,
) -> Array:
    """``(T, S)`` score of the best path through each state at each step, by max-product.

    The states of a step are decided where the best entry has no rival.
    """
    table = np.asarray(log_transition, np.float64)
    emitted = _log_messages(num_clones, obs, log_evidence)
    before, after = np.empty(emitted.shape), np.zeros(emitted.shape)
    before[0] = np.asarray(log_initial, np.float64) + emitted[0]
    for t in range(1, len(emitted)):
        before[t] = (before[t - 1][:, None] + table[actions[t - 1]]).max(axis=0) + emitted[t]
    for t in reversed(range(len(emitted) - 1)):
        after[t] = (table[actions[t]] + emitted[t + 1] + after[t + 1]).max(axis=1)
    return before + after
