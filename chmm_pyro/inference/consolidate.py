"""From a fitted model with more states than places to the smallest model that says the same."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ..clones import MISSING, CloneStructure
from ..merging import merge_states
from ..models.base import CloneModel
from ..models.point import PointCHMM
from ..passages import split_passages
from ..sequences import SequenceBatch
from .result import FitResult, bits_per_step
from .scope import Stopwatch
from .viterbi import fit_viterbi

__all__ = ["consolidate", "decoded_counts", "model_of_counts"]


def decoded_counts(
    model: CloneModel, batch: SequenceBatch
) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """Counts of moves along the most probable paths, over the states they use.

    States whose passages share no action are split first, see :mod:`chmm_pyro.passages`.

    Returns:
        counts ``(A, K, K)`` over the ``K`` states, the symbol of each, and the score of the paths
        in nats.
    """
    path = model.distribution(batch).posterior_mode(batch.obs)
    states = np.atleast_2d(path.states.cpu().numpy())
    actions = np.atleast_2d(batch.actions.cpu().numpy())[:, : states.shape[1] - 1]
    inside = states != MISSING
    symbol_of_step = np.where(inside, model.clones.symbol_of_state[states], MISSING)
    states[inside] = np.unique(states[inside], return_inverse=True)[1]
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
    *,
    pseudocount: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> PointCHMM:
    """A point model with a clone for each of ``C`` classes; unseen symbols keep one idle clone.

    Args:
        counts: ``(A, C, C)``.
        symbols: ``(C,)``.
        num_symbols: ``V``.
        pseudocount: added to every count.
        dtype: of the parameters.
    """
    unseen = np.setdiff1d(np.arange(num_symbols), symbols)
    every = np.concatenate([symbols, unseen])
    order = np.argsort(every, kind="stable")
    padded = np.zeros((len(counts), len(every), len(every)))
    padded[:, : len(symbols), : len(symbols)] = counts
    clones = CloneStructure(np.bincount(every, minlength=num_symbols))
    sorted_counts = padded[:, order][:, :, order]
    return PointCHMM.from_counts(
        clones, torch.as_tensor(sorted_counts), pseudocount=pseudocount, dtype=dtype
    )


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

    The most probable paths are decoded, their states merged while the description length of the
    path falls (:mod:`chmm_pyro.merging`), and the merged model is trained on by Viterbi training.
    Models of any fit and worlds with chance in them are fine; what is merged needs positive
    evidence, so states that share no tried action stay apart.

    Args:
        result: a fit, or a model.
        batch: the sequences it was fitted to.
        tolerance: how many bits per step the smaller model may be worse; if it is worse, only
            unused states are dropped.
        pseudocount: added to every count of the returned model, so that no move is impossible.
        num_iters: updates of the refit at most.
        progress: show the refit's bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult` whose ``settings["report"]`` says how many
        states there were, were used and are left, how many folds merged them, the description
        lengths in nats, and bits per step before and after.

    Raises:
        ValueError: options out of range, or data impossible under the model.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance}, expected bits per step >= 0.")
    if not pseudocount >= 0:
        raise ValueError(f"pseudocount = {pseudocount}, expected >= 0.")
    model = result.model if isinstance(result, FitResult) else result
    watch = Stopwatch()
    counts, symbols, score = decoded_counts(model, batch)
    merging = merge_states(counts, symbols)
    before = bits_per_step(model, batch)
    dtype = next(model.parameters()).dtype

    def refit(
        kept: NDArray[np.float64], kept_symbols: NDArray[np.int64]
    ) -> tuple[FitResult, PointCHMM, float]:
        start = model_of_counts(kept, kept_symbols, model.clones.num_symbols, dtype=dtype)
        fit = fit_viterbi(start, batch, num_iters=num_iters, progress=progress)
        final, final_symbols, _ = decoded_counts(fit.model, batch)
        smooth = model_of_counts(
            final, final_symbols, model.clones.num_symbols, pseudocount=pseudocount, dtype=dtype
        )
        return fit, smooth, bits_per_step(smooth, batch)

    fit, smaller, after = refit(merging.counts, merging.symbols)
    merged = after <= before + tolerance
    if not merged:
        fit, smaller, after = refit(counts, symbols)
    to_bits = 1 / (math.log(2) * batch.num_observed)
    return FitResult(
        model=smaller,
        data=batch,
        objective_history=fit.objective_history,
        log_prob_history=None,
        bits_per_step=after,
        converged=fit.converged,
        interrupted=fit.interrupted,
        num_iters=fit.num_iters,
        wall_time=watch(),
        seconds_history=fit.seconds_history,
        settings={
            "method": "consolidate",
            "tolerance": tolerance,
            "pseudocount": pseudocount,
            "num_iters": num_iters,
            "action_model": model.action_model,
            "report": {
                "merged": merged,
                "num_states_before": model.clones.num_states,
                "num_states_used": len(symbols),
                "num_states": smaller.clones.num_states,
                "num_folds": merging.num_folds,
                "description_length_before": merging.description_length_before,
                "description_length": merging.description_length,
                "bits_per_step_before": before,
                "bits_per_step": after,
                "path_bits_per_step_before": -score * to_bits,
            },
        },
    )
