"""Inference methods: each takes a model and returns a :class:`FitResult`."""

from .consolidate import consolidate
from .em import fit_em
from .map_fit import fit_map
from .result import FitResult, bits_per_step
from .svi import fit_svi, learning_rate_grid
from .viterbi import fit_viterbi

__all__ = [
    "FitResult",
    "bits_per_step",
    "consolidate",
    "fit_em",
    "fit_map",
    "fit_svi",
    "fit_viterbi",
    "learning_rate_grid",
]
