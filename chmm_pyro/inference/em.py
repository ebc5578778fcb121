r"""Expectation maximisation (Baum-Welch) with a pseudocount, the published baseline.

The pseudocount :math:`\kappa` is a Dirichlet prior of concentration :math:`1 + \kappa` on every
row, so each iteration climbs ``log_prob + kappa * sum(log transition)``; the likelihood alone may
fall.

An update is a natural-gradient step of length one.  Longer ones, :math:`\log T \leftarrow
\eta \log T_{EM} + (1 - \eta) \log T` and normalised, converge for :math:`\eta < 2` near an optimum
and need up to :math:`\eta` times fewer updates (R. Salakhutdinov & S. Roweis 2003, "Adaptive
overrelaxed bound optimization methods", ICML); after an update that lost, the next is plain EM.
"""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.base import CloneModel
from ..parameters import finite_sum
from ..sequences import SequenceBatch
from ..tables import Table
from .result import FitResult, bits_per_step
from .scope import Stopwatch, until_interrupted

__all__ = ["check_options", "fit_em", "frees_zeros", "log_prior", "maximise_actions"]


def check_options(num_iters: int, pseudocount: float, tol: float | None) -> None:
    """Refuse options that no fit accepts."""
    if num_iters < 1:
        raise ValueError(f"num_iters = {num_iters}, expected at least 1.")
    if not pseudocount >= 0 or math.isinf(pseudocount):
        raise ValueError(
            f"pseudocount = {pseudocount}, expected a finite number >= 0 (concentration minus 1); "
            "a concentration below 1 has no mode, use a Bayesian fit for it."
        )
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol = {tol}, expected bits per step >= 0, or None to run all updates.")


def log_prior(model: CloneModel, pseudocount: float, table: Table | None = None) -> Tensor | float:
    """``pseudocount * sum(log p)`` over the free entries of the model, zero entries left out.

    ``table`` is that of ``model.transition``, if it is at hand.
    """
    if pseudocount == 0:
        return 0.0
    total = model.transition.sum_log(table)
    if model.initial.learned:
        total = total + finite_sum(model.initial.logits.log_softmax(-1))
    return pseudocount * total


@torch.no_grad()
def fit_em(
    model: CloneModel,
    batch: SequenceBatch,
    *,
    num_iters: int = 100,
    pseudocount: float = 0.0,
    step: float = 1.0,
    tol: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Baum-Welch on ``model``.

    Args:
        model: start of the climb; unchanged.
        batch: one or many sequences.
        num_iters: updates at most.
        pseudocount: added to every expected transition count (and initial count, if learned).
        step: length of the updates of transitions; 1 is EM, more (below 2) is over-relaxed.
        tol: stop once an update gains less than this many bits per step; None runs all updates.
        seed: accepted like in every fit; EM draws nothing.
        progress: show a bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`; ``settings["num_unvisited_rows"]`` counts
        rows without any count, which got a uniform distribution.  The objective of a start with
        zeros that are not structural is ``-inf`` if there is a pseudocount: the prior excludes it.

    Raises:
        ValueError: options out of range, or data impossible under the start.
    """
    check_options(num_iters, pseudocount, tol)
    if not 0 < step < 2:
        raise ValueError(f"step = {step}, expected 0 < step < 2 (1 is EM); longer steps diverge.")
    fitted = copy.deepcopy(model)
    watch = Stopwatch()
    objectives: list[float] = []
    log_probs: list[float] = []
    seconds: list[float] = []
    converged, unvisited = False, 0
    to_bits = 1 / (math.log(2) * batch.num_observed)
    with until_interrupted() as stop, tqdm(total=num_iters, desc="EM", disable=not progress) as bar:
        for iteration in range(num_iters):
            hmm = fitted.distribution(batch)
            log_z, initial_counts, counts = hmm.expected_counts(batch.obs)
            log_prob = float(log_z.sum()) + _action_term(fitted, batch)
            if math.isinf(log_prob):
                raise ValueError(
                    f"the data are impossible under the model at iteration {iteration}: EM cannot "
                    "start there; use a start without zeros (PointCHMM.from_counts(..., "
                    "pseudocount=0.01))."
                )
            log_probs.append(log_prob)
            objectives.append(log_prob + float(log_prior(fitted, pseudocount, hmm.table)))
            seconds.append(watch())
            if step == 1:
                _check_climb(objectives, fitted)
            bar.set_postfix_str(f"{-log_prob * to_bits:.5f} bits/step", refresh=False)
            gain = objectives[-1] - objectives[-2] if len(objectives) > 1 else math.inf
            lost = gain < 0
            # A long step that lost is followed by plain EM, which says whether there is more.
            converged = tol is not None and gain * to_bits < tol and not (lost and step > 1)
            if converged or stop.is_set():
                break
            unvisited = _update(fitted, counts, pseudocount, 1.0 if lost else step)
            if iteration == 0 and frees_zeros(hmm.table, fitted, pseudocount):
                objectives[0] = -math.inf
            if fitted.initial.learned:
                fitted.initial.maximise(initial_counts, pseudocount)
            maximise_actions(fitted, batch)
            bar.update()
    return FitResult(
        model=fitted,
        data=batch,
        objective_history=np.array(objectives),
        log_prob_history=np.array(log_probs),
        bits_per_step=bits_per_step(fitted, batch),
        converged=converged,
        interrupted=stop.is_set(),
        num_iters=len(objectives) - int(converged or stop.is_set()),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings={
            "method": "em",
            "num_iters": num_iters,
            "pseudocount": pseudocount,
            "step": step,
            "tol": tol,
            "seed": seed,
            "action_model": fitted.action_model,
            "num_unvisited_rows": unvisited,
        },
    )


def frees_zeros(before: Table, model: CloneModel, pseudocount: float) -> bool:
    """Whether an M-step made transitions possible, so that the prior excluded the start."""
    if pseudocount == 0:
        return False
    after = model.transition.table()
    return bool(torch.isneginf(before.values).sum() > torch.isneginf(after.values).sum())


def _update(model: CloneModel, counts: Tensor, pseudocount: float, step: float) -> int:
    """The M-step of the transitions, or a longer step in its direction."""
    before = model.transition.table().values
    unvisited = model.transition.maximise(counts, pseudocount)
    if step != 1:
        further = step * model.transition.table().values + (1 - step) * before
        impossible = further.isnan() | torch.isneginf(before)
        model.transition.maximise(torch.where(impossible, 0.0, further.exp()), 0.0)
    return unvisited


@torch.no_grad()
def maximise_actions(model: CloneModel, batch: SequenceBatch) -> None:
    """Set learned action probabilities to the shares of the actions taken, if there are any."""
    if model.action_logits is None:
        return
    counts = batch.action_counts(model.num_actions).to(model.action_logits)
    if counts.any():
        model.action_logits.copy_(counts.log())


def _action_term(model: CloneModel, batch: SequenceBatch) -> float:
    if model.action_logits is None:
        return 0.0
    log_actions = model.action_logits.double().log_softmax(-1)
    counts = batch.action_counts(model.num_actions).double()
    return float(torch.where(counts > 0, counts * log_actions, 0.0).sum())


def _check_climb(objectives: list[float], model: CloneModel) -> None:
    """Say so if the objective fell by more than rounding."""
    if len(objectives) < 2:
        return
    before, now = objectives[-2:]
    digits = 1e-9 if next(model.parameters()).dtype == torch.float64 else 1e-4
    if now < before - digits * max(1.0, abs(before)):
        warnings.warn(
            f"the EM objective fell from {before:.8g} to {now:.8g} at iteration "
            f"{len(objectives) - 1}; it cannot in exact arithmetic, so try dtype=torch.float64.",
            RuntimeWarning,
            stacklevel=3,
        )
