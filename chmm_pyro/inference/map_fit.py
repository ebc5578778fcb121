r"""From sequences to a compact map, without a hand-set number of clones or threshold.

The recipe, with what each part is for (measured on the published rooms; the experiment is
``benchmarks/map_recovery.py``):

1. **Overcomplete start.**  Many spare clones for every symbol and MAP-EM from random counts.  EM is
   natural-gradient ascent with step one; from the same start it gives purer states after 40 updates
   than Adam on the logits after 200, because steps in rarely visited rows stay small.  The
   pseudocount grows with the data, :math:`\kappa = 4 \cdot 10^{-7} T` (0.02 for 50,000 steps): too
   little leaves places split, too much mixes them.
2. **Crisp paths.**  A few updates of Viterbi training, then the most probable path.
3. **Merging.**  :func:`~chmm_pyro.merging.merge_states` joins duplicates of a place by description
   length.  If every state stood for one place this is the map.
4. **Repair.**  A state that stands for two places shows in rows with several outcomes.  Such states
   and their successors get copies, perturbed at random, and EM on this small model (a few
   milliseconds an update) tells the places apart.  Merge again; keep what shortens the path.
5. **Restarts.**  If rows with several outcomes are left, start again with other random counts,
   another pseudocount, more updates, and twice the clones where over half of them were used.

Only the data decide: the description length of the decoded path picks the winner, and the search
ends early once every move of the map has one outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..clones import MISSING, CloneStructure
from ..merging import description_length, merge_states
from ..models.point import PointCHMM
from ..sequences import SequenceBatch
from .consolidate import decoded_counts, model_of_counts
from .em import check_options, fit_em
from .result import FitResult, bits_per_step
from .scope import Stopwatch
from .viterbi import fit_viterbi

__all__ = ["fit_map"]

_PSEUDOCOUNT_PER_STEP = 4e-7
_PSEUDOCOUNT_SCALES = (1.0, 0.25, 0.1)
_STEPS_PER_CLONE = 20
_STALLED_REPAIRS = 3


@dataclass(frozen=True)
class _Map:
    """A merged map: counts ``(A, C, C)`` of its moves and the symbol of each state."""

    counts: NDArray[np.float64]
    symbols: NDArray[np.int64]
    length: float

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """``(A, C)`` moves with more than one outcome."""
        return (self.counts > 0).sum(-1) > 1


class _InterruptedError(Exception):
    """The user asked to stop; what was found so far stands."""


def fit_map(
    batch: SequenceBatch,
    *,
    num_symbols: int | None = None,
    num_clones: int = 32,
    num_starts: int = 6,
    num_repairs: int = 8,
    num_iters: int = 40,
    pseudocount: float | None = None,
    smoothing: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> FitResult:
    """Learn a compact map from sequences; see the module docstring for the recipe.

    Args:
        batch: one or many sequences.
        num_symbols: ``V``, by default what the batch knows of.
        num_clones: of each symbol at the first start (fewer for symbols seen rarely); symbols that
            need more get more.
        num_starts: random starts at most.
        num_repairs: repairs of each start at most.
        num_iters: EM updates of the first start; later ones run twice as many.
        pseudocount: of the first start, by default ``4e-7`` times the number of steps.
        smoothing: pseudocount of the returned model, so that no move is impossible in it.
        seed: decides everything random.
        progress: show a bar over the attempts.
        dtype: of the parameters.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`.  ``model`` has one clone for each place
        found, ``converged`` says whether every move has one outcome, ``objective_history`` holds
        minus the description length (nats) of the best map after each attempt, and
        ``settings["attempts"]`` what each attempt gave.

    Raises:
        ValueError: options out of range.
    """
    kappa = _PSEUDOCOUNT_PER_STEP * batch.num_steps if pseudocount is None else pseudocount
    check_options(num_iters, kappa, None)
    for name, value, least in (("num_clones", num_clones, 1), ("num_starts", num_starts, 1)):
        if value < least:
            raise ValueError(f"{name} = {value}, expected at least {least}.")
    search = _Search(batch, num_symbols or batch.num_symbols, seed, dtype)
    budget = search.first_budget(num_clones)
    watch = Stopwatch()
    best: _Map | None = None
    history: list[float] = []
    seconds: list[float] = []
    attempts: list[dict[str, Any]] = []
    interrupted = False

    def record(kind: str, found: _Map) -> None:
        nonlocal best
        if best is None or found.length < best.length - 1e-6:
            best = found
        history.append(-best.length)
        seconds.append(watch())
        attempts.append(
            {
                "kind": kind,
                "num_states": len(found.symbols),
                "num_mixed_moves": int(found.mixed.sum()),
                "description_length": found.length,
            }
        )
        bar.set_postfix_str(
            f"{len(best.symbols)} states, {int(best.mixed.sum())} moves with several outcomes",
            refresh=False,
        )
        bar.update()

    with tqdm(desc="map", disable=not progress) as bar:
        try:
            for start in range(num_starts):
                scaled = kappa * _PSEUDOCOUNT_SCALES[start % len(_PSEUDOCOUNT_SCALES)]
                current, used = search.start(budget, scaled, num_iters * (1 if start == 0 else 2))
                record("start", current)
                stalled = 0
                for repair in range(num_repairs):
                    if not current.mixed.any() or stalled == _STALLED_REPAIRS:
                        break
                    found = search.repair(current, scaled, widely=repair % 2 == 1)
                    record("repair", found)
                    stalled = 0 if found.length < current.length - 1e-6 else stalled + 1
                    current = found if stalled == 0 else current
                assert best is not None
                if not best.mixed.any():
                    break
                budget = np.where(2 * used > budget, 2 * budget, budget)
        except _InterruptedError:
            interrupted = True
            if best is None:
                raise KeyboardInterrupt from None
    assert best is not None
    model = model_of_counts(
        best.counts, best.symbols, search.num_symbols, pseudocount=smoothing, dtype=dtype
    )
    return FitResult(
        model=model,
        data=batch,
        objective_history=np.array(history),
        log_prob_history=None,
        bits_per_step=bits_per_step(model, batch),
        converged=not bool(best.mixed.any()),
        interrupted=interrupted,
        num_iters=len(history),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings={
            "method": "map",
            "num_clones": num_clones,
            "num_starts": num_starts,
            "num_repairs": num_repairs,
            "num_iters": num_iters,
            "pseudocount": kappa,
            "smoothing": smoothing,
            "seed": seed,
            "action_model": model.action_model,
            "attempts": attempts,
        },
    )


class _Search:
    """Starts and repairs on one batch, from one random generator."""

    def __init__(
        self, batch: SequenceBatch, num_symbols: int, seed: int, dtype: torch.dtype
    ) -> None:
        self.batch, self.num_symbols, self.dtype = batch, num_symbols, dtype
        self._generator = np.random.default_rng(seed)

    def first_budget(self, num_clones: int) -> NDArray[np.int64]:
        """Clones of each symbol: no more than its steps can tell apart."""
        obs = self.batch.flat_obs.cpu().numpy()
        visits = np.bincount(obs[obs != MISSING], minlength=self.num_symbols)
        return np.clip(visits // _STEPS_PER_CLONE, 1, num_clones)

    def start(
        self, budget: NDArray[np.int64], pseudocount: float, num_iters: int
    ) -> tuple[_Map, NDArray[np.int64]]:
        """A map from random counts, and how many clones of each symbol it used."""
        states = int(budget.sum())
        counts = self._generator.random((self.batch.num_actions, states, states))
        return self._find(budget, counts, pseudocount, num_iters)

    def repair(self, found: _Map, pseudocount: float, *, widely: bool) -> _Map:
        """Give suspicious states (or all, ``widely``) copies and let EM tell them apart."""
        mixed = found.mixed
        reached = (found.counts * mixed[..., None]).sum((0, 1)) > 0
        suspicious = mixed.any(axis=0) | reached
        copies = np.full(len(suspicious), 3) if widely else np.where(suspicious, 4, 1)
        owner = np.repeat(np.arange(len(copies)), copies)
        owner = owner[np.argsort(found.symbols[owner], kind="stable")]
        counts = found.counts[:, owner][:, :, owner]
        counts = counts / (copies[owner][:, None] * copies[owner])
        counts = counts * self._generator.exponential(size=counts.shape)
        budget = np.bincount(found.symbols[owner], minlength=self.num_symbols)
        idle = np.flatnonzero(budget == 0)  # a symbol without a decoded state keeps one clone
        if len(idle):
            at = np.searchsorted(found.symbols[owner], idle)
            counts = np.insert(np.insert(counts, at, 0.0, axis=1), at, 0.0, axis=2)
        return self._find(np.maximum(budget, 1), counts, pseudocount, 25)[0]

    def _find(
        self,
        budget: NDArray[np.int64],
        counts: NDArray[np.float64],
        pseudocount: float,
        num_iters: int,
    ) -> tuple[_Map, NDArray[np.int64]]:
        clones = CloneStructure(budget)
        start = PointCHMM.from_counts(
            clones, torch.as_tensor(counts), pseudocount=pseudocount, dtype=self.dtype
        )
        soft = fit_em(
            start, self.batch, num_iters=num_iters, pseudocount=pseudocount, progress=False
        )
        crisp = fit_viterbi(soft.model, self.batch, num_iters=20, progress=False)
        if soft.interrupted or crisp.interrupted:
            raise _InterruptedError
        path_counts, used, symbols, _ = decoded_counts(crisp.model, self.batch)
        merging = merge_states(path_counts, symbols)
        length = description_length(merging.counts)
        found = _Map(merging.counts, merging.symbols, length)
        of_state = clones.symbol_of_state[used]
        return found, np.bincount(of_state, minlength=self.num_symbols)
