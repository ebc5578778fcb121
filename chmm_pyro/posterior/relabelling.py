r"""One numbering of the clones for all draws of a posterior.

The clones of a symbol are exchangeable: a posterior has a mode for every numbering, chains sit in
different ones, and a mean over them means nothing.  Every draw has a hidden path, and where two
draws put the same steps into one clone, they mean the same clone.  With :math:`z^d_t` the path of
draw ``d`` and a consensus :math:`q_t(k)` the share of draws with clone ``k`` at step ``t``,

.. math::  L(\pi, q) = \sum_d \sum_t \sum_k \big(1[\pi_d(z^d_t) = k] - q_t(k)\big)^2

falls when each :math:`\pi_d` is the assignment that gives :math:`\sum_t q_t(\pi_d(z^d_t))` its
largest value (symbol by symbol: a linear assignment problem), and again when ``q`` is the new
share; both are repeated until nothing changes.  This is the iterative version of the method of
equivalence classes representatives (Papastamoulis & Iliopoulos 2010), like that of Stephens 2000
for probabilities.  It starts from the numbering of the draw of highest likelihood.

References:
    P. Papastamoulis & G. Iliopoulos 2010, "An artificial allocations based solution to the label
    switching problem in Bayesian analysis of mixtures of distributions", JCGS 19:313; M. Stephens
    2000, "Dealing with label switching in mixture models", JRSS B 62:795.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import arviz as az
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm.auto import tqdm

from ..clones import CloneStructure
from ..inference.result import FitResult
from .draws import DIMS, PosteriorDraws, posterior_draws

__all__ = ["Relabelling", "StateRHat", "check_chains", "relabel", "state_rhat"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class StateRHat(NamedTuple):
    """R-hat of what depends on the numbering of the clones; 1 where chains agree.

    Attributes:
        usage: ``(S,)`` of the number of steps at each state; NaN where it never varies,
            infinite where it does between chains only.
        transition: ``(K,)`` of the transition probabilities with the largest means.
    """

    usage: FloatArray
    transition: FloatArray

    @property
    def median(self) -> float:
        """Of all of them."""
        return float(np.nanmedian(np.concatenate(self)))

    @property
    def worst(self) -> float:
        """Of all of them."""
        return float(np.nanmax(np.concatenate(self)))


@dataclass(frozen=True, eq=False)
class Relabelling:
    """Draws before and after their clones got one numbering.

    Attributes:
        before: the draws as they were.
        draws: the same draws, renumbered.
        permutations: ``(C, D, S)`` the old state that each new state was called.
        agreement: ``(C, D)`` mean probability over the steps that another draw puts a step into
            the same state; before renumbering it is ``agreement_before``.
        agreement_before: ``(C, D)``.
        num_rounds: until nothing changed.
        converged: whether that was before ``max_rounds``.
    """

    before: PosteriorDraws
    draws: PosteriorDraws
    permutations: IntArray
    agreement: FloatArray
    agreement_before: FloatArray
    num_rounds: int
    converged: bool

    @cached_property
    def rhat_before(self) -> StateRHat:
        """R-hat of the draws as they were.

        Raises:
            ValueError: fewer than two chains of four draws.
        """
        return state_rhat(self.before)

    @cached_property
    def rhat(self) -> StateRHat:
        """R-hat of the renumbered draws: what is left are real differences between chains.

        Raises:
            ValueError: fewer than two chains of four draws.
        """
        return state_rhat(self.draws)

    def result(self, result: FitResult) -> FitResult:
        """A fit with its draws renumbered, and the best of them as its model.

        Args:
            result: the fit that was relabelled.

        Raises:
            ValueError: a fit of other draws.
        """
        kept = None if result.draws is None else result.draws["transition"].shape[:2]
        if kept is None or tuple(kept) != self.before.shape:
            raise ValueError(
                f"result has draws of {kept and tuple(kept)} chains and draws, expected "
                f"{self.before.shape}: the fit that was relabelled, all draws of it."
            )
        best = np.unravel_index(int(self.draws.log_prob.argmax()), self.draws.shape)
        model = self.draws.model
        values = {name: self.draws.values[name][best] for name in model.public_names}
        point = model.point(model.values_of(values))
        return replace(result, draws=self.draws.values, model=point)


def relabel(
    result: FitResult | Sequence[FitResult] | PosteriorDraws,
    *,
    max_rounds: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Relabelling:
    """Give the clones one numbering in all draws, see :mod:`chmm_pyro.posterior.relabelling`.

    Clones that no path uses are interchangeable and keep any numbers.  Chains that found
    different maps stay different: R-hat afterwards says so.

    Args:
        result: a fit, several fits of one posterior, or draws of one.
        max_rounds: at most so many assignments of all draws.
        seed: of the paths.
        progress: show a bar of the rounds.

    Raises:
        ValueError: draws that disagree in shape, or ``max_rounds < 1``.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> from chmm_pyro.inference import fit_gibbs
        >>> from chmm_pyro.models import BayesianCHMM
        >>> batch = SequenceBatch.from_arrays([0, 0, 1, 0, 1, 1] * 20)
        >>> model = BayesianCHMM(CloneStructure([2, 2]), num_actions=1, concentration=0.3)
        >>> fit = fit_gibbs(model, batch, num_iters=50, num_warmup=100, progress=False)
        >>> found = relabel(fit)
        >>> bool(found.agreement.mean() > found.agreement_before.mean() - 1e-9)
        True
    """
    if max_rounds < 1:
        raise ValueError(f"max_rounds = {max_rounds}, expected at least 1.")
    draws = result if isinstance(result, PosteriorDraws) else posterior_draws(result, seed=seed)
    clones = draws.model.clones
    paths = draws.paths.reshape(-1, draws.paths.shape[-1])
    identity = np.tile(np.arange(clones.num_states), (len(paths), 1))
    before = _agreement(paths, clones)
    # Start from the numbering of one draw, so that modes do not mix in the first consensus.
    best = int(draws.log_prob.reshape(-1).argmax())
    renamed = identity
    consensus = _consensus(paths[best : best + 1], clones)
    num_rounds, converged = 0, False
    with tqdm(total=max_rounds, desc="relabelling", disable=not progress) as bar:
        while num_rounds < max_rounds and not converged:
            found = np.stack([_assign(path, consensus, clones) for path in paths])
            num_rounds += 1
            bar.update()
            converged = num_rounds > 1 and bool((found == renamed).all())
            renamed = found
            consensus = _consensus(np.take_along_axis(renamed, paths, axis=1), clones)
    new_paths = np.take_along_axis(renamed, paths, axis=1)
    permutations = np.argsort(renamed, axis=1).reshape(*draws.shape, -1)
    return Relabelling(
        before=draws,
        draws=_renumbered(draws, permutations, new_paths.reshape(draws.paths.shape)),
        permutations=permutations,
        agreement=_agreement(new_paths, clones).reshape(draws.shape),
        agreement_before=before.reshape(draws.shape),
        num_rounds=num_rounds,
        converged=converged,
    )


def check_chains(name: str, shape: tuple[int, int]) -> None:
    """Refuse R-hat of too few chains or draws.

    Args:
        name: of what has them.
        shape: chains and draws.
    """
    if shape[0] < 2 or shape[1] < 4:
        raise ValueError(
            f"{name} has {shape[0]} chains of {shape[1]} draws, expected at least 2 of 4 for "
            "R-hat, which compares chains: fit with num_chains=4, or pass several fits."
        )


def state_rhat(draws: PosteriorDraws, *, max_entries: int = 500) -> StateRHat:
    """Rank-normalised split R-hat of the usage of states and of transition probabilities.

    Args:
        draws: at least two chains of four draws.
        max_entries: so many transition probabilities, those of the largest means.

    Raises:
        ValueError: too few chains or draws.
    """
    check_chains("draws", draws.shape)
    states = draws.model.clones.num_states
    flat = draws.paths.reshape(-1, draws.paths.shape[-1])
    usage = np.stack([np.bincount(path, minlength=states) for path in flat])
    table = draws.values["transition"].flatten(2).double().numpy()
    largest = np.argsort(-table.mean((0, 1)), kind="stable")[:max_entries]
    return StateRHat(_rhat(usage.reshape(*draws.shape, -1)), _rhat(table[..., largest]))


def _rhat(values: NDArray[Any]) -> FloatArray:
    """``(K,)`` of ``(C, D, K)``; NaN where nothing varies, infinite where only chains differ."""
    columns = [values[..., k] for k in range(values.shape[-1])]
    still = [bool((x == x[:, :1]).all()) for x in columns]
    different = [bool((x != x[:1, :1]).any()) for x in columns]
    return np.array(
        [
            (np.inf if differs else np.nan) if stands else float(az.rhat(x))
            for x, stands, differs in zip(columns, still, different, strict=True)
        ]
    )


# -------------------------------------------------------------------------------- one draw


def _consensus(paths: IntArray, clones: CloneStructure) -> sp.csr_array:
    """``(N, S)`` share of the draws at each state, at every step."""
    num_draws, num_steps = paths.shape
    steps = np.tile(np.arange(num_steps), num_draws)
    share = np.full(paths.size, 1.0 / num_draws)
    shape = (num_steps, clones.num_states)
    return sp.csr_array(sp.coo_array((share, (steps, paths.reshape(-1))), shape=shape))


def _overlap(path: IntArray, consensus: sp.csr_array) -> FloatArray:
    """``(S, S)``: summed over the steps at each state of a draw, the share of each state."""
    at = (path, np.arange(len(path)))
    states = sp.csr_array((np.ones(len(path)), at), shape=consensus.shape[::-1])
    return (states @ consensus).toarray()


def _assign(path: IntArray, consensus: sp.csr_array, clones: CloneStructure) -> IntArray:
    """``(S,)`` the new number of each state of one draw."""
    overlap = _overlap(path, consensus)
    renamed = np.arange(clones.num_states)
    for symbol in range(clones.num_symbols):
        own = clones.states(symbol)
        rows, columns = linear_sum_assignment(overlap[own, own], maximize=True)
        renamed[own.start + rows] = own.start + columns
    return renamed


def _agreement(paths: IntArray, clones: CloneStructure) -> FloatArray:
    """``(P,)`` how often another draw has the state of this one, averaged over steps."""
    if len(paths) == 1:
        return np.ones(1)
    share = _consensus(paths, clones)
    same = np.array([np.trace(_overlap(path, share)) for path in paths]) / paths.shape[1]
    return (same * len(paths) - 1) / (len(paths) - 1)


def _renumbered(draws: PosteriorDraws, permutations: IntArray, paths: IntArray) -> PosteriorDraws:
    order = torch.from_numpy(permutations)
    values = dict(draws.values)
    for name, dims in DIMS.items():
        if name in values:
            for axis, dim in enumerate(dims, 2):
                if dim in ("state", "new_state"):
                    values[name] = _taken(values[name], order, axis)
    found = replace(draws, values=values)
    vars(found)["paths"] = paths  # the paths of these very draws
    return found


def _taken(values: Tensor, order: Tensor, axis: int) -> Tensor:
    """``values`` ``(C, D, ...)`` with the entries of one axis in the order of each draw."""
    shape = [1] * values.ndim
    shape[:2], shape[axis] = order.shape[:2], order.shape[-1]
    return values.gather(axis, order.view(shape).expand_as(values))
