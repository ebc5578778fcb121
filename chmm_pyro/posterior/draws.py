"""Draws of the parameters from the result of any fit, in one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from tqdm.auto import tqdm

from ..distribution import CloneHMM
from ..inference.chains import total_log_prob
from ..inference.guides import guide_draws
from ..inference.result import FitResult
from ..inference.scope import pyro_scope
from ..models.base import CloneModel
from ..models.bayesian import BayesianCHMM
from ..models.noisy import NoisyCHMM
from ..sequences import SequenceBatch
from ..tables import BlockTable

__all__ = ["DIMS", "Chunk", "PosteriorDraws", "flat_steps", "posterior_draws"]

DIMS: dict[str, tuple[str, ...]] = {
    "log_prob": (),
    "num_used": ("symbol",),
    "concentration": (),
    "clone_weights": ("state",),
    "initial": ("state",),
    "actions": ("action",),
    "emission": ("state", "symbol"),
    "transition": ("action", "state", "new_state"),
    "log_joint": (),
    "diverging": (),
}
"""Names of the dimensions of every draw after chain and draw; what does not depend on how clones
are numbered comes first."""

_CHUNK_BYTES = 2**28


class Chunk(NamedTuple):
    """Some of the draws as one batch of parameters.

    Attributes:
        where: which of the ``C * D`` draws, chain by chain.
        hmm: the distribution of a batch of sequences under them, ``(P)`` or ``(P, B)``.
    """

    where: slice
    hmm: CloneHMM


@dataclass(frozen=True, eq=False)
class PosteriorDraws:
    """Draws of all parameters; make them with :func:`posterior_draws`.

    Attributes:
        model: names and shapes of the parameters, and their priors where ``has_prior``.
        batch: the data.
        values: ``(C, D, ...)`` by public name: the parameters, as probabilities (see
            :meth:`~chmm_pyro.models.bayesian.BayesianCHMM.draws_of`), and whatever else a sampler
            kept.
        has_prior: whether the fit had priors; a point fit has none, and one draw.
        seed: of the paths.
    """

    model: BayesianCHMM
    batch: SequenceBatch
    values: dict[str, Tensor]
    has_prior: bool
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """``(C, D)`` chains and draws of each."""
        chains, draws = self.values["transition"].shape[:2]
        return chains, draws

    @property
    def sizes(self) -> dict[str, int]:
        """How long each dimension of :data:`DIMS` is."""
        clones = self.model.clones
        states = {"state": clones.num_states, "new_state": clones.num_states}
        return {**states, "symbol": clones.num_symbols, "action": self.model.num_actions}

    def chunks(self, batch: SequenceBatch | None = None, task: str = "") -> Iterator[Chunk]:
        """All draws in parts that fit in memory.

        Args:
            batch: sequences to see under them; by default the data.
            task: named on a progress bar; without one there is no bar.
        """
        batch = self.batch if batch is None else batch
        table = self.values["transition"][0, 0]
        each = 8 * (4 * table.numel() + 3 * batch.num_steps * self.model.clones.max_clones)
        size = max(1, _CHUNK_BYTES // each)
        total = self.shape[0] * self.shape[1]
        flat = {name: self.values[name].flatten(0, 1) for name in self.model.public_names}
        with tqdm(total=total, desc=task, disable=not task) as bar:
            for first in range(0, total, size):
                where = slice(first, min(first + size, total))
                some = self.model.values_of({name: value[where] for name, value in flat.items()})
                parameters = self.model.parameters_of(some).beside(batch)
                yield Chunk(where, self.model.distribution(batch, parameters))
                bar.update(where.stop - where.start)

    @cached_property
    def paths(self) -> NDArray[np.int64]:
        """``(C, D, N)`` a hidden path for each draw, over the steps of all sequences in order.

        Drawn by forward filtering and backward sampling, so paths and parameters are joint draws
        of their posterior.
        """
        found = []
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for _, hmm in self.chunks():
                states = hmm.sample_posterior(self.batch.obs, generator=generator)[0]
                found.append(flat_steps(states, self.batch).numpy())
        return np.concatenate(found).reshape(*self.shape, -1)

    @cached_property
    def num_used(self) -> NDArray[np.int64]:
        """``(C, D, V)`` how many clones of each symbol the path of a draw visits."""
        if "num_used" in self.values:
            return self.values["num_used"].numpy()
        states = self.model.clones.num_states
        visited = np.zeros((*self.shape, states), dtype=np.int64)
        np.put_along_axis(visited, self.paths, 1, axis=-1)
        return np.add.reduceat(visited, self.model.clones.offsets[:-1], axis=-1)

    @cached_property
    def log_prob(self) -> NDArray[np.float64]:
        """``(C, D)`` log-likelihood of all sequences together, in nats."""
        if "log_prob" in self.values:
            return self.values["log_prob"].double().numpy()
        with torch.no_grad():
            chunks = self.chunks()
            parts = [total_log_prob(h.log_prob(self.batch.obs), self.batch) for _, h in chunks]
        return torch.cat(parts).view(self.shape).numpy()

    def thinned(self, num_draws: int | None) -> PosteriorDraws:
        """At most so many draws of each chain, evenly spaced; all by default."""
        if num_draws is None or num_draws >= self.shape[1]:
            return self
        kept = np.linspace(0, self.shape[1] - 1, num_draws).round().astype(np.int64)
        values = {name: value[:, kept] for name, value in self.values.items()}
        return replace(self, values=values)


def flat_steps(values: Tensor, batch: SequenceBatch) -> Tensor:
    """``(..., N)`` over the steps of all sequences end to end.

    Args:
        values: ``(..., T)`` or ``(..., B, T)``, padded like ``batch.obs``.
        batch: the sequences.
    """
    if batch.lengths is None:
        return values
    inside = torch.arange(values.shape[-1]) < batch.lengths[:, None]
    return values[..., inside]


def posterior_draws(
    result: FitResult | Sequence[FitResult], *, num_draws: int | None = None, seed: int = 0
) -> PosteriorDraws:
    """The draws of any fit.

    Samplers kept them; variational fits (``fit_vb``, ``fit_svi`` with a guide over the
    parameters) have a guide to draw from; a maximum or a point fit is a single draw.

    Args:
        result: a fit, or several of one model and data whose chains are put together.
        num_draws: of each chain: at most so many of a sampler's, evenly spaced (default all); so
            many of a guide (default 200).
        seed: of draws from a guide, and of the paths.

    Raises:
        ValueError: fits whose draws disagree in shape or whose data differ, or ``num_draws < 1``.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.inference import fit_vb
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 10)
        >>> model = BayesianCHMM(CloneStructure([2, 2, 2]), num_actions=1)
        >>> fit = fit_vb(model, batch, num_iters=5, progress=False)
        >>> draws = posterior_draws(fit, num_draws=30)
        >>> draws.shape, draws.paths.shape
        ((1, 30), (1, 30, 40))
    """
    if num_draws is not None and num_draws < 1:
        raise ValueError(f"num_draws = {num_draws}, expected at least 1.")
    results = [result] if isinstance(result, FitResult) else list(result)
    if not results:
        raise ValueError("result is empty, expected at least one fit.")
    found = [_draws_of(one, num_draws, seed + k) for k, one in enumerate(results)]
    for number, draws in enumerate(found):
        _check_shapes(draws, f"result[{number}]" if len(found) > 1 else "result")
    return found[0] if len(found) == 1 else _joined(found)


def _draws_of(result: FitResult, num_draws: int | None, seed: int) -> PosteriorDraws:
    model = result.prior_model
    if isinstance(model, BayesianCHMM) and result.draws is not None:
        whole = PosteriorDraws(model, result.data, dict(result.draws), has_prior=True, seed=seed)
        return whole.thinned(num_draws)
    if isinstance(model, BayesianCHMM) and result.guide is not None:
        number = 1 if isinstance(result.guide, AutoDelta) else num_draws or 200
        with pyro_scope(seed):
            values = guide_draws(model, result.guide, result.data, number)
        return PosteriorDraws(model, result.data, values, has_prior=True, seed=seed)
    stand_in, values = _point(result.model)
    return PosteriorDraws(stand_in, result.data, values, has_prior=False, seed=seed)


@torch.no_grad()
def _point(model: CloneModel) -> tuple[BayesianCHMM, dict[str, Tensor]]:
    """A point model as one draw, with a model that has its parameters for sites."""
    table = model.transition.table()
    dense = table.dense() if isinstance(table, BlockTable) else table
    values = {
        "transition": dense.values.double().exp(),
        "initial": model.initial.logits.double().softmax(-1),
    }
    options: dict[str, Any] = {"action_model": model.action_model, "learn_initial": True}
    if model.action_logits is not None:
        options["learn_actions"] = True
        values["actions"] = model.action_logits.double().softmax(-1)
    if isinstance(model, NoisyCHMM):
        options["emission_concentration"] = (1.0, 1.0)
        values["emission"] = model.emission_logits.double().softmax(-1)
    stand_in = BayesianCHMM(model.clones, model.num_actions, 1.0, **options)
    return stand_in, {name: value[None, None] for name, value in values.items()}


def _check_shapes(draws: PosteriorDraws, name: str) -> None:
    for missing in sorted(set(draws.model.public_names) - set(draws.values)):
        raise ValueError(
            f"{name}.draws has no {missing!r}, expected {list(draws.model.public_names)} of its "
            "prior_model; keep what belongs to one run together."
        )
    sizes = draws.sizes
    leading = tuple(draws.values["transition"].shape[:2])
    for key, value in draws.values.items():
        shape = tuple(value.shape)
        own = tuple(sizes[dim] for dim in DIMS[key]) if key in DIMS else shape[2:]
        if shape != (*leading, *own):
            raise ValueError(
                f"{name}.draws[{key!r}] has shape {shape}, expected {(*leading, *own)}: as many "
                "chains and draws as 'transition', of the sizes of the model; keep what belongs "
                "to one run together."
            )


def _joined(found: list[PosteriorDraws]) -> PosteriorDraws:
    """The chains of several runs side by side."""
    first = found[0]
    names = set.intersection(*(set(draws.values) for draws in found))
    for number, draws in enumerate(found[1:], 1):
        shape, other = (d.values["transition"].shape[1:] for d in (first, draws))
        if other != shape or draws.model.clones != first.model.clones:
            raise ValueError(
                f"result[{number}] has draws of shape {tuple(other)} of {draws.model.clones}, "
                f"expected {tuple(shape)} of {first.model.clones} as result[0]: draw, action, "
                "state, new state; fit the same model for the same number of draws."
            )
        if draws.model.public_names != first.model.public_names:
            raise ValueError(
                f"result[{number}] has draws of {draws.model.public_names}, expected "
                f"{first.model.public_names} as result[0]; fit the same model."
            )
        same = torch.equal(draws.batch.flat_obs, first.batch.flat_obs)
        if not same or not torch.equal(draws.batch.flat_actions, first.batch.flat_actions):
            raise ValueError(
                f"result[{number}] was fitted to {draws.batch}, expected the data of result[0]: "
                "chains are draws of one posterior."
            )
    values = {n: torch.cat([d.values[n] for d in found]) for n in first.values if n in names}
    return replace(first, values=values)
