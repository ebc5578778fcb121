r"""What a posterior says about the map: its places, its edges, and how far to trust a plan.

Every draw has a map of its own: its path's states, merged where they predict the same futures
(:mod:`chmm_pyro.inference.merging`), with the edges that no noise explains
(:mod:`chmm_pyro.maps.edges`).  Maps of different draws share no numbering, but they divide the same
steps of the data, so places are compared by the steps that they hold:

* the **consensus** is the division, among those of the draws, with the smallest expected Binder
  loss :math:`\sum_{t<u} |1[p_t = p_u] - P(p_t = p_u)|` (Binder 1978; Dahl 2006);
* a place of a draw stands for the place of the consensus that most of its steps are at;
* an edge between two places of the consensus is **included** in a draw if an edge of the draw's map
  stands for it; the share of such draws is its probability.

References:
    D. A. Binder 1978, "Bayesian cluster analysis", Biometrika 65:31; D. B. Dahl 2006, "Model-based
    clustering for expression data via a Dirichlet process mixture model", in Bayesian Inference
    for Gene Expression and Proteomics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..clones import MISSING
from ..inference.merging import merge_states
from ..inference.result import FitResult
from ..maps.cognitive_map import CognitiveMap
from ..maps.transition_entries import mean_positions, path_entries
from ..planning.plans import States, node_list
from ..sequences import SequenceBatch
from .draws import PosteriorDraws, posterior_draws
from .relabelling import relabel

__all__ = ["MapPosterior", "map_posterior"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MapPosterior:
    """Maps of posterior draws, compared; ``G`` places of the consensus, ``E`` edges of any draw.

    Attributes:
        map: the consensus; its nodes are named by places (those that have edges).
        symbols: ``(G,)`` what each place shows.
        edges: ``(E, 3)`` place, action, place, in order.
        probability: ``(E,)`` share of the draws whose map has the edge.
        num_places: ``(C, D)`` of each draw's own map.
        places: ``(C, D, N)`` place of the consensus that each step's own place stands for.
        consensus: ``(N,)`` place of each step.
        draws: the draws, thinned.
    """

    map: CognitiveMap
    symbols: IntArray
    edges: IntArray
    probability: FloatArray
    num_places: IntArray
    places: IntArray
    consensus: IntArray
    draws: PosteriorDraws

    @cached_property
    def transition(self) -> FloatArray:
        """``(A, G, G)`` mean probability of each move between places, states summed out."""
        tables = self.draws.values["transition"].flatten(0, 1).double().numpy()
        moves = (
            at_place @ table @ at_state
            for table, (at_place, at_state) in zip(tables, self._shares, strict=True)
        )
        return sum(moves, np.zeros(())) / len(tables)

    def edge_table(self) -> pd.DataFrame:
        """A row for each edge: where, which action, ``inclusion`` and mean ``probability``."""
        old, action, new = self.edges.T
        columns = {
            "place": old,
            "action": action,
            "new_place": new,
            "symbol": self.symbols[old],
            "new_symbol": self.symbols[new],
            "inclusion": self.probability,
            "probability": self.transition[action, old, new],
        }
        return pd.DataFrame(columns).sort_values("inclusion", ascending=False, ignore_index=True)

    def plan_success(
        self, actions: Iterable[int], goal: States, *, start: States | None = None
    ) -> FloatArray:
        """Probability that blind actions end at a goal, under each draw.

        Its mean is the success probability integrated over the posterior; its spread is how much
        of the doubt is about the map.

        Args:
            actions: what is done, such as the ``actions`` of a plan on :attr:`map`.
            goal: a place of the consensus, or several of which any will do.
            start: a place, or several equally probable ones; by default where the data end (the
                filter of the last sequence).

        Returns:
            ``(C, D)``.
        """
        taken = list(actions)
        for action in taken:
            if not 0 <= action < self.map.num_actions:
                raise ValueError(
                    f"actions holds {action}, expected actions below {self.map.num_actions}."
                )
        goals = self.map.states[node_list(self.map, "goal", goal)]
        starts = None
        if start is not None:
            starts = self.map.states[node_list(self.map, "start", start)]
        tables = self.draws.values["transition"].flatten(0, 1).double().numpy()
        joint = self.draws.model.action_model == "joint"
        found = []
        for number, (table, (at_place, at_state)) in enumerate(
            zip(tables, self._shares, strict=True)
        ):
            belief = self._ends[number] if starts is None else at_place[starts].mean(0)
            for action in taken:
                belief = belief @ table[action]
                if joint:  # p(z', a | z): what remains is conditioned on the action
                    belief = belief / belief.sum()
            found.append(float(belief @ at_state[:, goals].sum(1)))
        return np.array(found).reshape(self.draws.shape)

    @cached_property
    def _ends(self) -> FloatArray:
        """``(P, S)`` belief of each draw where the last sequence ends."""
        last = self.draws.batch[-1]
        parts = []
        with torch.no_grad():
            for _, hmm in self.draws.chunks(last):
                parts.append(hmm.filter(last.obs).at(-1).double().numpy())
        return np.concatenate(parts)

    @cached_property
    def _shares(self) -> list[tuple[FloatArray, FloatArray]]:
        """Of each draw: shares of states at a place ``(G, S)``, of places at a state ``(S, G)``."""
        states = self.draws.model.clones.num_states
        found = []
        for path in self.draws.paths.reshape(-1, self.draws.paths.shape[-1]):
            counts = _contingency(self.consensus, path, (len(self.symbols), states))
            of_places, of_states = counts.sum(1, keepdims=True), counts.sum(0)[:, None]
            shares = counts / np.maximum(of_places, 1), counts.T / np.maximum(of_states, 1)
            found.append(shares)
        return found


def map_posterior(
    result: FitResult | Sequence[FitResult] | PosteriorDraws,
    *,
    num_draws: int | None = 25,
    merge: bool = True,
    alpha: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> MapPosterior:
    """Compare the maps of posterior draws, see :mod:`chmm_pyro.posterior.maps`.

    Args:
        result: a fit, several fits of one posterior, or draws of one.
        num_draws: of each chain, evenly spaced; None takes all.
        merge: consolidate the states of every draw into places; without it places are states,
            relabelled.
        alpha: probability that the map of a draw has any edge that is noise.
        seed: of the paths.
        progress: show a bar.

    Raises:
        ValueError: options out of range, or a draw whose map has no edge.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.inference import fit_gibbs
        >>> from chmm_pyro.models import BayesianCHMM
        >>> batch = SequenceBatch.from_arrays([0, 1, 2, 1] * 30)
        >>> model = BayesianCHMM(CloneStructure([1, 3, 1]), num_actions=1, concentration=0.1)
        >>> fit = fit_gibbs(model, batch, num_iters=40, num_warmup=100, progress=False)
        >>> found = map_posterior(fit, num_draws=5)
        >>> found.map, found.probability.round(2).tolist()
        (CognitiveMap(4 nodes, 4 edges, 3 symbols, 1 actions), [1.0, 1.0, 1.0, 1.0])
    """
    draws = result
    if not isinstance(draws, PosteriorDraws):
        draws = posterior_draws(draws, seed=seed)
    draws = draws.thinned(num_draws)
    if not merge:
        draws = relabel(draws).draws
    batch, clones = draws.batch, draws.model.clones
    num_actions = draws.model.num_actions
    own = []
    paths = draws.paths.reshape(-1, batch.num_steps)
    for path in tqdm(paths, desc="maps of draws", disable=not progress):
        division = _merged(path, draws) if merge else _Division(path, clones.symbol_of_state)
        own.append((division, _map(division, batch, num_actions, alpha)))
    consensus, cognitive_map = own[_central([division for division, _ in own])]
    included: Counter[tuple[int, int, int]] = Counter()
    places = []
    for division, drawn in own:
        stands_for = np.arange(len(division.symbols))
        if merge:
            size = (len(division.symbols), len(consensus.symbols))
            stands_for = _contingency(division.places, consensus.places, size).argmax(1)
        places.append(stands_for[division.places])
        old, new = stands_for[drawn.states[drawn.edges[:, [0, 2]]]].T
        actions = drawn.edges[:, 1]
        included.update({*zip(old.tolist(), actions.tolist(), new.tolist(), strict=True)})
    edges = sorted(included)
    return MapPosterior(
        map=cognitive_map,
        symbols=consensus.symbols,
        edges=np.array(edges).reshape(-1, 3),
        probability=np.array([included[edge] for edge in edges]) / len(own),
        num_places=np.array([len(np.unique(d.places)) for d, _ in own]).reshape(draws.shape),
        places=np.array(places).reshape(*draws.shape, -1),
        consensus=consensus.places,
        draws=draws,
    )


class _Division(NamedTuple):
    """``(N,)`` the place of every step, and the symbol of every place."""

    places: IntArray
    symbols: IntArray


def _merged(path: IntArray, draws: PosteriorDraws) -> _Division:
    """The states of a path, merged where they predict the same futures."""
    used, local = np.unique(path, return_inverse=True)
    symbols = draws.model.clones.symbol_of_state[used]
    entries = path_entries(_padded(local, draws.batch), draws.batch, len(used))
    counts = np.zeros((draws.model.num_actions, len(used), len(used)))
    old, action, new = entries.transitions.T
    counts[action, old, new] = entries.counts
    merging = merge_states(counts, symbols)
    return _Division(merging.labels[local], merging.symbols)


def _map(division: _Division, batch: SequenceBatch, num_actions: int, alpha: float) -> CognitiveMap:
    places, size = _padded(division.places, batch), len(division.symbols)
    positions = None
    if batch.flat_positions is not None:
        positions = mean_positions(places, batch, size)
    return CognitiveMap.from_entries(
        path_entries(places, batch, size),
        division.symbols,
        num_actions=num_actions,
        positions=positions,
        alpha=alpha,
    )


def _padded(steps: IntArray, batch: SequenceBatch) -> Tensor:
    """``(N,)`` in the shape of ``batch.obs``, MISSING in the padding."""
    values = torch.from_numpy(steps)
    if batch.lengths is None:
        return values
    inside = torch.arange(batch.obs.shape[-1]) < batch.lengths[:, None]
    padded = torch.full(batch.obs.shape, MISSING)
    padded[inside] = values
    return padded


def _contingency(one: IntArray, other: IntArray, shape: tuple[int, int]) -> IntArray:
    """How many steps two divisions put where."""
    return np.bincount(one * shape[1] + other, minlength=shape[0] * shape[1]).reshape(shape)


def _central(divisions: list[_Division]) -> int:
    """The division of the smallest expected Binder loss, from counts of pairs of steps."""
    count = len(divisions)
    together = np.zeros((count, count))
    for i, one in enumerate(divisions):
        for j, other in enumerate(divisions[: i + 1]):
            shape = (len(one.symbols), len(other.symbols))
            pairs = _contingency(one.places, other.places, shape).astype(np.float64)
            together[i, j] = together[j, i] = (pairs**2).sum()
    # |1[p = q] - P| sums to pairs together here, plus those in other draws, less twice both.
    loss = np.diag(together) - 2 * together.mean(1)
    return int(np.argmin(loss))
