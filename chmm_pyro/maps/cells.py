"""Cells with places: noisy filtering, cells that also tell the context, recognising worlds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..beliefs import Posterior
from ..clones import MISSING
from ..distribution import CloneHMM
from ..sequences import SequenceBatch
from .cognitive_map import CognitiveMap

__all__ = ["context_selectivity", "noisy_evidence", "noisy_filter", "recognise"]

FloatArray = NDArray[np.float64]


class _Model(Protocol):
    """A :class:`~chmm_pyro.models.base.CloneModel`."""

    def distribution(
        self, batch: SequenceBatch, *, log_evidence: Tensor | None = None
    ) -> CloneHMM: ...


def noisy_evidence(
    obs: Tensor, num_symbols: int, pseudocount: float, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Evidence of symbols that may have been seen wrongly, as the published notebook has it.

    Its emission table is :math:`E[v, x] = (1[v = x] + \epsilon) / (1 + V \epsilon)` with
    ``pseudocount_E`` :math:`= \epsilon`: a symbol is right with odds :math:`(1 + \epsilon) :
    \epsilon` against each other one.

    Args:
        obs: ``(..., T)`` symbols; MISSING tells nothing.
        num_symbols: ``V``.
        pseudocount: :math:`\epsilon`, above 0.
        dtype: of the result, that of the model.

    Returns:
        ``(..., T, V)`` for ``log_evidence``, with the symbols themselves hidden (MISSING).

    Example:
        >>> noisy_evidence(torch.tensor([1]), num_symbols=2, pseudocount=0.5).exp()
        tensor([[0.2500, 0.7500]])
    """
    if not pseudocount > 0:
        raise ValueError(f"pseudocount = {pseudocount}, expected above 0; 0 needs no evidence.")
    if (obs >= num_symbols).any():
        raise ValueError(f"obs holds {int(obs.max())}, expected less than {num_symbols}.")
    seen = obs.unsqueeze(-1) == torch.arange(num_symbols, device=obs.device)
    emission = (seen.to(dtype) + pseudocount) / (1 + num_symbols * pseudocount)
    return torch.where(obs.unsqueeze(-1) == MISSING, 0.0, emission.log())


@torch.no_grad()
def noisy_filter(model: _Model, batch: SequenceBatch, pseudocount: float) -> Posterior:
    """``p(z_t | x_0 .. x_t)`` with :func:`noisy_evidence`; what place fields are means of.

    Args:
        model: usually fitted.
        batch: one or many sequences.
        pseudocount: of the emissions.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.models import PointCHMM
        >>> model = PointCHMM(CloneStructure([2, 1]), num_actions=1)
        >>> noisy_filter(model, SequenceBatch.from_arrays([0, 1, 0]), 0.1).dense().shape
        torch.Size([3, 3])
    """
    clean = model.distribution(batch)
    evidence = noisy_evidence(
        batch.obs, clean.clones.num_symbols, pseudocount, dtype=clean.log_initial.dtype
    )
    hidden = torch.full_like(batch.obs, MISSING)
    return model.distribution(batch, log_evidence=evidence).filter(hidden)


def context_selectivity(fields: ArrayLike) -> FloatArray:
    """How much cells tell the context apart at the place where they are most active.

    Args:
        fields: ``(S, C, P)`` mean activity by context and place, from
            :func:`~chmm_pyro.maps.usage.place_fields` with ``positions`` of context and place.

    Returns:
        ``(S,)`` the share of the preferred context: 1 for a splitter or lap cell, ``1 / C`` for a
        cell that ignores the context; NaN for cells that are never active.

    Example:
        >>> context_selectivity([[[0.0, 0.9], [0.0, 0.1]], [[0.5, 0.0], [0.5, 0.0]]])
        array([0.9, 0.5])
    """
    activity = np.nan_to_num(np.asarray(fields, dtype=float))
    if activity.ndim != 3:
        raise ValueError(
            f"fields has shape {activity.shape}, expected (S, C, P): cells, contexts, places."
        )
    where = activity.max(1).argmax(-1)
    at_peak = np.take_along_axis(activity, where[:, None, None], axis=2)[..., 0]
    total = at_peak.sum(1)
    with np.errstate(invalid="ignore"):
        return at_peak.max(1) / np.where(total > 0, total, np.nan)


def recognise(
    maps: Sequence[CognitiveMap], batch: SequenceBatch, *, pseudocount: float = 0.0
) -> FloatArray:
    """Which of several known worlds a short walk was in ("remapping").

    Args:
        maps: of the worlds, with one numbering of the symbols and actions.
        batch: one or many walks.
        pseudocount: see :func:`noisy_evidence`; 0 for exact observations.

    Returns:
        ``(M,)``, for a batch ``(B, M)``: probability of each world, equal before the walk.

    Raises:
        ValueError: a walk that none of the maps explains.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> rooms = [Room([[0, 1]]), Room([[1, 1]])]
        >>> walk = SequenceBatch.from_arrays([1, 1], [0])
        >>> recognise([CognitiveMap.from_room(room) for room in rooms], walk)
        array([0., 1.])
    """
    if not maps:
        raise ValueError("maps is empty, expected at least one.")
    num_symbols = max(batch.num_symbols, *(int(one.symbols.max()) + 1 for one in maps))
    log_probs = np.stack(
        [one.log_prob(batch, pseudocount=pseudocount, num_symbols=num_symbols) for one in maps],
        axis=-1,
    )
    best = log_probs.max(-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError(
            "no map explains the walk, expected one of its world among them; use "
            "pseudocount > 0 for noisy observations."
        )
    probs = np.exp(log_probs - best)
    return probs / probs.sum(-1, keepdims=True)
