"""Point estimates: free parameters, hidden states summed out in one site."""

from __future__ import annotations

from typing import Any

import pyro
from torch import Tensor

from ..sequences import SequenceBatch
from .base import CloneModel, sequence_plate

__all__ = ["PointCHMM"]


class PointCHMM(CloneModel):
    """Clone-structured HMM with free parameters and one collapsed ``obs`` site.

    Any Pyro inference that takes a model without latent variables trains it; see
    :class:`~chmm_pyro.models.base.CloneModel` for the arguments.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 1, 0])
        >>> model = PointCHMM(CloneStructure([2, 2]), num_actions=1, seed=0)
        >>> model.distribution(batch).log_prob(batch.obs).shape
        torch.Size([])
    """

    def forward(self, batch: SequenceBatch, initial_logits: Tensor | None = None) -> Any:
        """The Pyro program; returns the ``obs`` sample.

        Args:
            batch: sequences to condition on, one or many (then in a plate ``sequences``).
            initial_logits: see :meth:`~chmm_pyro.models.base.CloneModel.distribution`.
        """
        hmm = self.distribution(batch, initial_logits=initial_logits)
        with sequence_plate(batch):
            return pyro.sample("obs", hmm, obs=batch.obs)
