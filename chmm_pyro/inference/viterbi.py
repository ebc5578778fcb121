"""Viterbi training (hard EM), as published: count the most probable path, normalise, repeat."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.base import CloneModel
from ..sequences import SequenceBatch
from ..tables import Table
from .em import check_options, frees_zeros, log_prior, maximise_actions
from .result import FitResult, bits_per_step
from .scope import Stopwatch, until_interrupted

__all__ = ["fit_viterbi", "path_counts"]


def path_counts(states: Tensor, batch: SequenceBatch, table: Table) -> Tensor:
    """Transition counts of decoded paths in the shape of ``table``, padding left out.

    Args:
        states: ``(T,)`` or ``(B, T)`` global states from ``posterior_mode``.
        batch: the sequences that were decoded.
        table: a table of the model that decoded them.
    """
    inside = states[..., 1:] >= 0
    return table.count(batch.actions[inside], states[..., :-1][inside], states[..., 1:][inside])


@torch.no_grad()
def fit_viterbi(
    model: CloneModel,
    batch: SequenceBatch,
    *,
    num_iters: int = 100,
    pseudocount: float = 0.0,
    seed: int | None = None,
    progress: bool = True,
) -> FitResult:
    """Hard EM until the score of the best path no longer improves.

    Usually run after :func:`~chmm_pyro.inference.em.fit_em` or
    :func:`~chmm_pyro.inference.svi.fit_svi`, to turn soft assignments into a crisp map.

    Args:
        model: start; unchanged.
        batch: one or many sequences.
        num_iters: updates at most.
        pseudocount: added to every transition count.
        seed: draws among tied paths; None lets the lowest state win.
        progress: show a bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult` whose ``objective_history`` holds the path
        scores (plus the log prior) and whose ``settings`` report ``viterbi_bits_per_step`` of the
        returned model, ``num_states_used`` and ``num_unvisited_rows``.

    Raises:
        ValueError: options out of range, or data impossible under the start.
    """
    check_options(num_iters, pseudocount, None)
    fitted = copy.deepcopy(model)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    watch = Stopwatch()
    scores: list[float] = []
    seconds: list[float] = []
    converged, unvisited = False, 0
    to_bits = 1 / (math.log(2) * batch.num_observed)
    with (
        until_interrupted() as stop,
        tqdm(total=num_iters, desc="Viterbi", disable=not progress) as bar,
    ):
        for _ in range(num_iters):
            hmm = fitted.distribution(batch)
            path = hmm.posterior_mode(batch.obs, generator=generator)
            score = float(path.score.sum())
            scores.append(score + float(log_prior(fitted, pseudocount)))
            seconds.append(watch())
            bar.set_postfix_str(
                f"{-score * to_bits:.6f} bits/step on the path, {_num_used(path.states)} states",
                refresh=False,
            )
            counts = path_counts(path.states, batch, hmm.table)
            converged = len(scores) > 1 and scores[-1] <= scores[-2]
            if converged or stop.is_set():
                break
            dtype = next(fitted.parameters()).dtype
            unvisited = fitted.transition.maximise(counts.to(dtype), pseudocount)
            if len(scores) == 1 and frees_zeros(hmm.table, fitted, pseudocount):
                scores[0] = -math.inf
            if fitted.initial.learned:
                first = path.states[..., 0].reshape(-1)
                starts = torch.bincount(first, minlength=fitted.clones.num_states)
                fitted.initial.maximise(starts.to(dtype), pseudocount)
            maximise_actions(fitted, batch)
            bar.update()
    final = fitted.distribution(batch).posterior_mode(batch.obs)
    return FitResult(
        model=fitted,
        data=batch,
        objective_history=np.array(scores),
        log_prob_history=None,
        bits_per_step=bits_per_step(fitted, batch),
        converged=converged,
        interrupted=stop.is_set(),
        num_iters=len(scores) - int(converged or stop.is_set()),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings={
            "method": "viterbi",
            "num_iters": num_iters,
            "pseudocount": pseudocount,
            "seed": seed,
            "action_model": fitted.action_model,
            "viterbi_bits_per_step": -float(final.score.sum()) * to_bits,
            "num_states_used": _num_used(final.states),
            "num_unvisited_rows": unvisited,
        },
    )


def _num_used(states: Tensor) -> int:
    """How many different states padded paths visit."""
    return len(states[states >= 0].unique())
