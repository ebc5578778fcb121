r"""From sequences to a compact map, without a hand-set number of clones or threshold.

The recipe, with what each part is for (measured on the published rooms; the experiments
are ``benchmarks/map_recovery.py`` and, with parts left out, ``benchmarks/map_ablations.py``):

1. **Overcomplete start.** 160 clones, shared among the symbols by how often they are seen, and
   MAP-EM from random counts. A symbol seen half the time, such as the uniform core of the empty
   room, gets half of the clones: with equally many for every symbol that room takes twice the time.
   EM is natural-gradient ascent with step one; from the same start it gives purer states after 40
   updates than Adam on the logits after 200, because steps in rarely visited rows stay small. Steps
   of 1.9 halve the number of updates (60 instead of 120 for purity .85 in the empty room;
   incremental EM on four parts of the walk gained less).
2. **A small pseudocount**, :math:`\kappa = 10^{-7} T` (0.005 for 50,000 steps). Four times as much
   finds easy maps sooner, but in the empty room EM alone then never separates the states of the
   core (purity .49 for good; with this one after 150 plain updates), and repairs do not always. It
   is for 160 states; every entry of a larger model gets less, so that rows keep their share: of the
   1,040 poses of a MiniGrid world, the first round of 1,941 states finds 837 instead of 576.
3. **Samples.**  EM reads 100 steps for each state of its model, in segments drawn at random.  What
   it finds is then read off all the data by Viterbi training of the small map.
4. **Rounds.**  After every 25 updates the map is read off: a few updates of Viterbi training, the
   most probable path, states split whose passages share no action
   (:mod:`chmm_pyro.inference.passages`), and duplicates merged by description length
   (:mod:`chmm_pyro.inference.merging`).  Easy worlds are done after one or two rounds.  If nearly
   all clones are in use after the first, more rounds are of no use.
5. **Repair and growth.**  A state that stands for several places shows in rows with several
   outcomes.  Such states and their successors get two to four copies, so that the model grows to
   twice its size at most, perturbed at random, and EM tells the places apart.  Merge again; keep
   what shortens the path, or else give every state copies.  So a room of 400 places grows from 160
   clones over maps of 163, 309 and 399 states, in a sixth of the time that random starts with 320
   and 640 clones took.
6. **Restarts.**  If rows with several outcomes are left, start again with other random counts,
   another pseudocount and four times as many updates, for worlds where the first ones hardly
   climb, such as a track that is run in laps.
7. **Chance.** If two moves in five still have several outcomes when the rounds have stalled, and
   more clones do not help where there were too few, the world may be the reason: with 5 % slips the
   16 places of the aliased room end as 94 states on the most probable path. A map is then read from
   expected counts (:mod:`chmm_pyro.inference.chance`), after 50 updates with a pseudocount that
   gives each row 5 % of its visits. Pairs of states that are merged alone make it 16 states for
   pseudocounts from 0.003 to 0.3, where merging what follows from a pair as well left 16 to 27 and
   took up to fifty times as long: rare outcomes differ by chance. If it is shorter than the path's
   map, every state is doubled and fitted again until that no longer helps (rooms of 36 and 48
   places came out one place short in 2 of 6 starts; doubling found it), or two starts agree. The
   Bayesian information criterion kept a state of four visits that the free energy gave up.
8. **Noise.**  Given ``observation_noise``, a symbol is evidence for every place instead of a
   certainty, and all starts are of the kind of 7.

Only the data decide: the description length, of the decoded path or expected, picks the winner, and
the search ends early once every move of the map has one outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..clones import MISSING, CloneStructure
from ..models.base import CloneModel
from ..models.noisy import NoisyCHMM
from ..models.point import PointCHMM
from ..sequences import SequenceBatch
from .chance import expected_map
from .consolidate import decoded_counts, model_of_counts
from .em import check_options, fit_em
from .merging import Merging, description_length, merge_states
from .result import FitResult, bits_per_step
from .scope import Stopwatch
from .viterbi import fit_viterbi

__all__ = ["fit_map"]

_PSEUDOCOUNT_PER_STEP = 1e-7
_STATES = 160  # of a model whose entries get the whole pseudocount
_PSEUDOCOUNT_SCALES = (1.0, 3.0, 0.3)
_STEP = 1.9
_STEPS_PER_CLONE = 20
_SAMPLE = 100  # steps that EM reads for each state of its model
_SEGMENT = 1_000  # moves in a row of a sample
_LEAST_CLONES = 2
_SATURATED = 0.75  # share of clones that stay apart in the map, above which there were too few
_UNSEEN = 1e-4  # pseudocount of moves that a sample did not show, when all the data are read
_PROGRESS = 0.99  # a round shortens the path at least so much, or the start has stalled
_CROWDED_PROGRESS = 0.9  # the same where most moves have several outcomes
_STALLED_REPAIRS = 3
_CROWDED = 0.4  # share of moves with several outcomes, above which the world may have chance in it
_ROW_SHARE = 0.05  # pseudocounts of a row in such a world, as a share of its visits
_LONGER = 4  # times as many updates in rounds and repairs of later starts


@dataclass(frozen=True)
class _Map:
    """A merged map: counts ``(A, C, C)`` of its moves, and the symbol of each state.

    ``num_clones`` were in the model that it was read off.
    """

    counts: NDArray[np.float64]
    symbols: NDArray[np.int64]
    length: float
    num_clones: int

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """``(A, C)`` moves with more than one outcome."""
        return (self.counts > 0).sum(-1) > 1

    @property
    def crowded(self) -> bool:
        """Whether so many moves are mixed that the world, not the fit, may be the reason."""
        return bool(self.mixed.sum() > _CROWDED * (self.counts > 0).any(-1).sum())

    @property
    def full(self) -> bool:
        """Whether so many clones stay apart that there were too few."""
        return len(self.symbols) > _SATURATED * self.num_clones

    def confirms(self, other: _Map | None) -> bool:
        """Whether two starts found what seems to be the same map."""
        if other is None or len(self.symbols) != len(other.symbols):
            return False
        return min(self.length, other.length) > _PROGRESS * max(self.length, other.length)


class _InterruptedError(Exception):
    """The user asked to stop; what was found so far stands."""


def fit_map(
    batch: SequenceBatch,
    *,
    num_symbols: int | None = None,
    num_clones: int = 160,
    num_starts: int = 6,
    num_rounds: int = 8,
    num_repairs: int = 8,
    num_iters: int = 25,
    pseudocount: float | None = None,
    smoothing: float = 1e-4,
    observation_noise: float | None = None,
    seed: int = 0,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> FitResult:
    """Learn a compact map from sequences; see the module docstring for the recipe.

    Args:
        batch: one or many sequences.
        num_symbols: ``V``, by default what the batch knows of.
        num_clones: of all symbols together at the first start; others have at least twice as many
            as the best map so far has states.
        num_starts: random starts at most.
        num_rounds: of EM for each start at most.
        num_repairs: of each start at most.
        num_iters: EM updates in a round of the first start; later ones make four times as many.
        pseudocount: of the first start, by default ``1e-7`` times the number of steps.
        smoothing: pseudocount of the returned model, so that no move is impossible in it.
        observation_noise: share of the observations that show another symbol than the place's own,
            roughly; None takes all of them at their word.
        seed: decides everything random.
        progress: show a bar over the attempts.
        dtype: of the parameters.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`.  ``model`` has one clone for each place
        found (a :class:`~chmm_pyro.models.noisy.NoisyCHMM` with ``observation_noise``),
        ``converged`` says whether every move has one outcome or, in a world with chance in it,
        whether another attempt found the same map, ``objective_history`` holds
        minus the description length (nats) of the best map after each attempt, and
        ``settings["attempts"]`` what each attempt gave.

    Raises:
        ValueError: options out of range, or data without any observation.
    """
    kappa = _PSEUDOCOUNT_PER_STEP * batch.num_steps if pseudocount is None else pseudocount
    check_options(num_iters, kappa, None)
    counts = {"num_clones": num_clones, "num_starts": num_starts, "num_rounds": num_rounds}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} = {value}, expected at least 1.")
    if not smoothing >= 0:
        raise ValueError(f"smoothing = {smoothing}, expected a pseudocount >= 0.")
    if num_symbols is not None and num_symbols < batch.num_symbols:
        raise ValueError(
            f"num_symbols = {num_symbols}, expected at least the {batch.num_symbols} of batch."
        )
    if batch.num_observed == 0:
        raise ValueError(
            f"batch has {batch.num_steps} steps and none observed, expected at least one; check "
            "which column holds the observations."
        )
    search = _Search(
        batch, num_symbols or batch.num_symbols, num_iters, observation_noise, seed, dtype
    )
    watch = Stopwatch()
    best: _Map | None = None
    history: list[float] = []
    seconds: list[float] = []
    attempts: list[dict[str, Any]] = []
    interrupted = settled = False
    chance = observation_noise is not None

    def record(kind: str, found: _Map) -> None:
        nonlocal best
        if best is None or found.length < best.length - 1e-6:
            best = found
        history.append(-best.length)
        seconds.append(watch())
        attempts.append(
            {
                "kind": kind,
                "num_clones": found.num_clones,
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
                scale = _PSEUDOCOUNT_SCALES[start % len(_PSEUDOCOUNT_SCALES)]
                scaled = kappa * scale
                search.num_iters = num_iters * (_LONGER if start and not chance else 1)
                total = num_clones if best is None else max(num_clones, 2 * len(best.symbols))
                current = None if chance else search.rounds(total, scaled, num_rounds, record)
                grown = current is not None and current.full
                if current is not None and grown:
                    # Too few clones give moves several outcomes in any world.
                    current = search.repairs(current, scaled, num_repairs, record)
                if current is None or current.crowded:
                    before = best
                    found, settled = search.chance_start(
                        num_clones,
                        scale,
                        num_repairs,
                        record,
                        math.inf if best is None else best.length,
                    )
                    chance = chance or best is found
                    settled = (settled or found.confirms(before)) and found.confirms(best)
                    if settled:
                        break
                if current is None or chance:
                    continue
                if not grown:
                    search.repairs(current, scaled, num_repairs, record)
                assert best is not None
                if not best.mixed.any():
                    break
        except (_InterruptedError, KeyboardInterrupt):
            interrupted = True
            if best is None:
                raise KeyboardInterrupt from None
    assert best is not None
    model = search.model_of(best.counts, best.symbols, pseudocount=smoothing)
    return FitResult(
        model=model,
        data=batch,
        objective_history=np.array(history),
        log_prob_history=None,
        bits_per_step=bits_per_step(model, batch),
        converged=settled or not bool(best.mixed.any()),
        interrupted=interrupted,
        num_iters=len(history),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings={
            "method": "map",
            "num_clones": num_clones,
            "num_starts": num_starts,
            "num_rounds": num_rounds,
            "num_repairs": num_repairs,
            "num_iters": num_iters,
            "pseudocount": kappa,
            "smoothing": smoothing,
            "observation_noise": observation_noise,
            "seed": seed,
            "action_model": model.action_model,
            "attempts": attempts,
        },
    )


def _spread(pseudocount: float, num_states: int) -> float:
    """A row of a large model gets no more pseudocounts than one of a model of 160 states."""
    return pseudocount * min(1.0, _STATES / num_states)


class _Search:
    """Starts and repairs on one batch, from one random generator."""

    def __init__(
        self,
        batch: SequenceBatch,
        num_symbols: int,
        num_iters: int,
        observation_noise: float | None,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self.batch, self.num_symbols, self.dtype = batch, num_symbols, dtype
        self.num_iters, self.observation_noise = num_iters, observation_noise
        obs = batch.flat_obs.cpu().numpy()
        self._visits = np.bincount(obs[obs != MISSING], minlength=num_symbols)
        self._generator = np.random.default_rng(seed)
        # Of its own, so that what deterministic worlds draw does not depend on it.
        self._chance = np.random.default_rng([seed, 1])

    def budget(self, num_clones: int) -> NDArray[np.int64]:
        """Clones in proportion to visits, but no more than these can tell apart."""
        share = np.ceil(num_clones * self._visits / self._visits.sum()).astype(np.int64)
        most = np.maximum(self._visits // _STEPS_PER_CLONE, 1)
        return np.minimum(np.maximum(share, _LEAST_CLONES), most)

    def model_of(
        self, counts: NDArray[np.float64], symbols: NDArray[np.int64], pseudocount: float = 0.0
    ) -> CloneModel:
        """The model of a map, its symbols seen through the noise there is."""
        return self._seen(
            model_of_counts(
                counts, symbols, self.num_symbols, pseudocount=pseudocount, dtype=self.dtype
            )
        )

    def chance_start(
        self,
        num_clones: int,
        scale: float,
        num_repairs: int,
        record: Callable[[str, _Map], None],
        beaten: float,
    ) -> tuple[_Map, bool]:
        """The map expected by EM from random counts, and whether giving it more states is futile.

        States are not doubled if the map is no shorter than one that was found before.
        """
        budget = self.budget(num_clones)
        shape = (self.batch.num_actions, int(budget.sum()), int(budget.sum()))
        best = self._expect(budget, self._chance.random(shape), scale, 2 * self.num_iters)
        record("expected", best)
        for _ in range(num_repairs):
            if not best.mixed.any() or best.length >= beaten:
                break
            copies = np.full(len(best.symbols), 2)
            budget, counts = self._copied(best, copies, self._chance)
            found = self._expect(budget, counts, scale, self.num_iters)
            record("doubled", found)
            if found.confirms(best):
                return min(found, best, key=lambda one: one.length), True
            if found.length >= best.length:
                break
            best = found
        return best, not best.mixed.any()

    def _expect(
        self, budget: NDArray[np.int64], counts: NDArray[np.float64], scale: float, num_iters: int
    ) -> _Map:
        """EM with pseudocounts for a world with chance in it, and what its model expects."""
        states = int(budget.sum())
        visits = self.batch.num_steps / (self.batch.num_actions * states)
        pseudocount = scale * _ROW_SHARE * visits / states
        soft = fit_em(
            self._seen(self._model(budget, counts, pseudocount)),
            self.batch,
            num_iters=num_iters,
            pseudocount=pseudocount,
            step=_STEP,
            progress=False,
        )
        if soft.interrupted:
            raise _InterruptedError
        return _Map(*expected_map(soft.model, self.batch, self.model_of), states)

    def _seen(self, model: PointCHMM) -> CloneModel:
        if self.observation_noise is None:
            return model
        return NoisyCHMM.around(model, self.observation_noise)

    def rounds(
        self,
        num_clones: int,
        pseudocount: float,
        num_rounds: int,
        record: Callable[[str, _Map], None],
    ) -> _Map:
        """EM from random counts until the map is plain, stalls, or fills its clones."""
        budget = self.budget(num_clones)
        states = int(budget.sum())
        counts = self._generator.random((self.batch.num_actions, states, states))
        model = self._model(budget, counts, pseudocount)
        best: _Map | None = None
        for _ in range(num_rounds):
            model, found = self._climb(model, pseudocount)
            record("round", found)
            enough = _CROWDED_PROGRESS if found.crowded else _PROGRESS
            stalled = best is not None and found.length > enough * best.length
            if best is None or found.length < best.length:
                best = found
            if stalled or found.full or not best.mixed.any():
                break
        assert best is not None
        return best

    def repairs(
        self,
        found: _Map,
        pseudocount: float,
        num_repairs: int,
        record: Callable[[str, _Map], None],
    ) -> _Map:
        """Repairs until no move has several outcomes, or some in a row were of no use."""
        stalled = 0
        for _ in range(num_repairs):
            if not found.mixed.any() or stalled == _STALLED_REPAIRS:
                break
            repaired = self.repair(found, pseudocount, widely=stalled % 2 == 1)
            record("repair", repaired)
            stalled = 0 if repaired.length < found.length - 1e-6 else stalled + 1
            found = repaired if stalled == 0 else found
        return found

    def repair(self, found: _Map, pseudocount: float, *, widely: bool) -> _Map:
        """Give suspicious states (or all, ``widely``) copies and let EM tell them apart."""
        mixed = found.mixed
        reached = (found.counts * mixed[..., None]).sum((0, 1)) > 0
        suspicious = mixed.any(axis=0) | reached
        doubling = int(np.clip(1 + len(suspicious) / suspicious.sum(), 2, 4))
        copies = np.full(len(suspicious), 3) if widely else np.where(suspicious, doubling, 1)
        budget, counts = self._copied(found, copies, self._generator)
        model = self._model(budget, counts, pseudocount)
        return self._climb(model, pseudocount)[1]

    def _copied(
        self, found: _Map, copies: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Clones of each symbol and counts, perturbed, of a map whose states have ``copies``."""
        owner = np.repeat(np.arange(len(copies)), copies)
        owner = owner[np.argsort(found.symbols[owner], kind="stable")]
        counts = found.counts[:, owner][:, :, owner]
        counts = counts / (copies[owner][:, None] * copies[owner])
        counts = counts * generator.exponential(size=counts.shape)
        budget = np.bincount(found.symbols[owner], minlength=self.num_symbols)
        idle = np.flatnonzero(budget == 0)  # a symbol without a decoded state keeps one clone
        if len(idle):
            at = np.searchsorted(found.symbols[owner], idle)
            counts = np.insert(np.insert(counts, at, 0.0, axis=1), at, 0.0, axis=2)
        return np.maximum(budget, 1), counts

    def _model(
        self, budget: NDArray[np.int64], counts: NDArray[np.float64], pseudocount: float
    ) -> PointCHMM:
        return PointCHMM.from_counts(
            CloneStructure(budget),
            torch.as_tensor(counts),
            pseudocount=_spread(pseudocount, int(budget.sum())),
            dtype=self.dtype,
        )

    def _sample(self, num_states: int) -> SequenceBatch:
        """As many steps as so many states need, in random segments; or the whole batch."""
        wanted = _SAMPLE * num_states
        if wanted >= self.batch.num_steps:
            return self.batch
        segments = self.batch.segments(_SEGMENT + 1).batch
        assert segments.lengths is not None  # a batch of segments is always batched
        order = self._generator.permutation(len(segments))
        ends = np.cumsum(segments.lengths.cpu().numpy()[order])
        return segments.select(np.sort(order[: np.searchsorted(ends, wanted) + 1]))

    def _climb(self, model: CloneModel, pseudocount: float) -> tuple[CloneModel, _Map]:
        """A round of EM, and the map that its model makes of the data."""
        num_clones = model.clones.num_states
        sample = self._sample(num_clones)
        soft = fit_em(
            model,
            sample,
            num_iters=self.num_iters,
            pseudocount=_spread(pseudocount, num_clones) * sample.num_steps / self.batch.num_steps,
            step=_STEP,
            progress=False,
        )
        if soft.interrupted:
            raise _InterruptedError
        merging = self._read(soft.model, sample)
        if sample is not self.batch:
            small = model_of_counts(
                merging.counts,
                merging.symbols,
                self.num_symbols,
                pseudocount=_UNSEEN,
                dtype=self.dtype,
            )
            merging = self._read(small, self.batch, _UNSEEN)
        length = description_length(merging.counts)
        return soft.model, _Map(merging.counts, merging.symbols, length, num_clones)

    def _read(self, model: CloneModel, batch: SequenceBatch, pseudocount: float = 0.0) -> Merging:
        """Viterbi training, and what of its states is one."""
        crisp = fit_viterbi(model, batch, num_iters=20, pseudocount=pseudocount, progress=False)
        if crisp.interrupted:
            raise _InterruptedError
        return merge_states(*decoded_counts(crisp.model, batch)[:2])
