"""Inference methods: each takes a model and returns a :class:`FitResult`."""

from .em import fit_em
from .result import FitResult, bits_per_step
from .svi import fit_svi, learning_rate_grid
from .viterbi import fit_viterbi

__all__ = [
    "FitResult",
    "bits_per_step",
    "fit_em",
    "fit_svi",
    "fit_viterbi",
    "learning_rate_grid",
]
