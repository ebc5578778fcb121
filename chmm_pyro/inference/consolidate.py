"""From a fitted model with more states than places to the smallest model that says the same."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..beliefs import StatePath
from ..clones import MISSING, CloneStructure
from ..distribution import CloneHMM
from ..models.base import CloneModel
from ..models.point import PointCHMM
from ..sequences import SequenceBatch
from ..tables import BlockTable
from .em import fit_em
from .merging import merge_states
from .passages import split_passages
from .result import FitResult, bits_per_step
from .scope import Stopwatch
from .viterbi import path_counts

__all__ = ["consolidate", "decoded_counts", "expected_moves", "model_of_counts"]


def decoded_counts(
    model: CloneModel,
    batch: SequenceBatch,
    *,
    path: StatePath | None = None,
    split: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Counts of moves along the most probable paths, over the states they use.

    Args:
        model: whose paths.
        batch: of these sequences.
        path: the paths, if they have been decoded already.
        split: divide states whose passages share no action first, see
            :mod:`chmm_pyro.inference.passages`.

    Returns:
        counts ``(A, K, K)`` over the ``K`` states, the symbol of each, and the score of the paths
        in nats.
    """
    if path is None:
        path = model.distribution(batch).posterior_mode(batch.obs)
    states = np.atleast_2d(path.states.cpu().numpy()).copy()
    actions = np.atleast_2d(batch.actions.cpu().numpy())[:, : states.shape[1] - 1]
    inside = states != MISSING
    symbol_of_step = np.where(inside, model.clones.symbol_of_state[states], MISSING)
    states[inside] = np.unique(states[inside], return_inverse=True)[1]
    if split:
        states = split_passages(states, actions, model.num_actions)
    size = int(states.max()) + 1
    symbols = np.zeros(size, dtype=np.int64)
    symbols[states[inside]] = symbol_of_step[inside]
    moved = inside[:, 1:]
    counts = np.zeros((model.num_actions, size, size))
    np.add.at(counts, (actions[moved], states[:, :-1][moved], states[:, 1:][moved]), 1.0)
    return counts, symbols, float(path.score.sum())


def model_of_counts(
    counts: NDArray[np.float64],
    symbols: NDArray[np.int64],
    num_symbols: int,
    **options: Any,
) -> PointCHMM:
    """A point model with a clone for each of ``C`` classes; unseen symbols keep one idle clone.

    Args:
        counts: ``(A, C, C)``.
        symbols: ``(C,)``.
        num_symbols: ``V``.
        options: of :meth:`~chmm_pyro.models.base.CloneModel.from_counts`.
    """
    unseen = np.setdiff1d(np.arange(num_symbols), symbols)
    every = np.concatenate([symbols, unseen])
    order = np.argsort(every, kind="stable")
    padded = np.zeros((len(counts), len(every), len(every)))
    padded[:, : len(symbols), : len(symbols)] = counts
    clones = CloneStructure(np.bincount(every, minlength=num_symbols))
    sorted_counts = padded[:, order][:, :, order]
    return PointCHMM.from_counts(clones, torch.as_tensor(sorted_counts), **options)


class _Refit(NamedTuple):
    """A refitted model, its bits per step, and its information criterion in nats."""

    fit: FitResult
    model: CloneModel
    bits: float
    criterion: float


def expected_moves(
    model: CloneModel, batch: SequenceBatch, path: StatePath
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Expected counts ``(A, K, K)`` of at least half a move, and the symbols of their states.

    The most probable paths stay possible: each of their moves counts at least half.
    """
    hmm = model.distribution(batch)
    if isinstance(hmm.table, BlockTable):
        hmm = CloneHMM(
            hmm.clones, hmm.log_initial, hmm.table.dense(), batch.actions, lengths=batch.lengths
        )
    counts = hmm.expected_counts(batch.obs)[2].cpu().double().numpy()
    walked = path_counts(path.states, batch, hmm.table).cpu().numpy() > 0
    counts = np.where(walked, np.maximum(counts, 0.5), np.where(counts >= 0.5, counts, 0.0))
    visited = np.zeros(model.clones.num_states, dtype=bool)
    visited[path.states[path.states != MISSING].cpu().numpy()] = True
    used = np.flatnonzero(visited | (counts > 0).any((0, 1)) | (counts > 0).any((0, 2)))
    return counts[:, used][:, :, used], model.clones.symbol_of_state[used]


@torch.no_grad()
def consolidate(
    result: FitResult | CloneModel,
    batch: SequenceBatch,
    *,
    tolerance: float = 0.01,
    pseudocount: float = 1e-4,
    num_iters: int = 20,
    progress: bool = False,
) -> FitResult:
    """Merge clones that predict the same futures, drop unused ones, and refit.

    States are merged while the description length of their moves falls
    (:mod:`chmm_pyro.inference.merging`), and the merged model is trained on by EM.  The moves are
    counted in two ways: on the most probable paths, which are crisp where a fit still leaks, and as
    expected counts under the posterior, where worlds have chance in them: there a path prefers one
    of two equal copies for what was likely and the other for what was not, so that they no longer
    look equal.  The Bayesian information criterion, ``-log_prob + log(T) / 2`` for each move of the
    refitted model, picks one.  What is merged needs positive evidence: states that share no tried
    action stay apart.

    Args:
        result: a fit, or a model.
        batch: the sequences it was fitted to.
        tolerance: how many bits per step the smaller model may be worse.  If it is worse, or no
            states could be merged, only unused ones are dropped; if that costs too much as well,
            the model stays as it is.
        pseudocount: added to every count of the returned model, so that no move is impossible.
        num_iters: updates of the refit at most.
        progress: show the refit's bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult` whose ``settings["report"]`` says how many
        states there were, were used and are left, which counts and how many folds merged them
        (None and 0 if they did not), the description lengths of these counts in nats, and bits
        per step before and after.  The histories are those of the refit that is returned.

    Raises:
        ValueError: options out of range, or data impossible under the model.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance}, expected bits per step >= 0.")
    if not pseudocount >= 0:
        raise ValueError(f"pseudocount = {pseudocount}, expected >= 0.")
    model = result.model if isinstance(result, FitResult) else result
    watch = Stopwatch()
    before = bits_per_step(model, batch)
    path = model.distribution(batch).posterior_mode(batch.obs)
    counts, symbols, score = decoded_counts(model, batch, path=path, split=False)
    divided = decoded_counts(model, batch, path=path)[:2]
    readings = [
        merge_states(*divided),
        merge_states(*expected_moves(model, batch, path), alone=True),
    ]
    options = {
        "dtype": next(model.parameters()).dtype,
        "action_model": model.action_model,
        "learn_initial": model.initial.learned,
        "learn_actions": model.action_logits is not None,
    }
    to_bits = 1 / (math.log(2) * batch.num_observed)

    def refit(kept: NDArray[np.float64], kept_symbols: NDArray[np.int64]) -> _Refit:
        # Without a pseudocount EM keeps moves that were never made at zero.
        start = model_of_counts(kept, kept_symbols, model.clones.num_symbols, **options)
        fit = fit_em(start, batch, num_iters=num_iters, tol=1e-6, progress=progress)
        _, initial_counts, expected = fit.model.distribution(batch).expected_counts(batch.obs)
        fit.model.transition.maximise(expected, pseudocount)
        if fit.model.initial.learned:
            fit.model.initial.maximise(initial_counts, pseudocount)
        after = bits_per_step(fit.model, batch)
        cost = math.log(max(batch.num_observed, 2)) / 2 * int((kept > 0).sum())
        return _Refit(fit, fit.model, after, after / to_bits + cost)

    refits = [refit(merging.counts, merging.symbols) for merging in readings]
    chosen = int(np.argmin([one.criterion for one in refits]))
    merging, (fit, smaller, after, _) = readings[chosen], refits[chosen]
    # Divided states that found no partner would be more than there were.
    fewer = merging.num_folds > 0 and len(merging.symbols) <= len(symbols)
    merged = fewer and after <= before + tolerance
    if not merged:
        fit, smaller, after, _ = refit(counts, symbols)
    refitted = after <= before + tolerance
    if not refitted:
        smaller, after = copy.deepcopy(model), before
    none = np.array([])  # of updates, where the model has stayed as it was
    length = merging.description_length_before
    return FitResult(
        model=smaller,
        data=batch,
        objective_history=fit.objective_history if refitted else none,
        log_prob_history=None,
        bits_per_step=after,
        converged=fit.converged if refitted else False,
        interrupted=fit.interrupted,
        num_iters=fit.num_iters if refitted else 0,
        wall_time=watch(),
        seconds_history=fit.seconds_history if refitted else none,
        settings={
            "method": "consolidate",
            "tolerance": tolerance,
            "pseudocount": pseudocount,
            "num_iters": num_iters,
            "action_model": model.action_model,
            "report": {
                "merged": merged,
                "counted": ("path", "expected")[chosen] if merged else None,
                "num_states_before": model.clones.num_states,
                "num_states_used": len(symbols),
                "num_states": smaller.clones.num_states,
                "num_folds": merging.num_folds if merged else 0,
                "description_length_before": length,
                "description_length": merging.description_length if merged else length,
                "bits_per_step_before": before,
                "bits_per_step": after,
                "path_bits_per_step_before": -score * to_bits,
            },
        },
    )
