"""Inference methods: each takes a model and returns a :class:`FitResult`."""

from .amortised import AmortisedPathGuide
from .consolidate import consolidate
from .em import fit_em
from .gibbs import fit_gibbs
from .guides import DirichletGuide, make_guide
from .gumbel import GumbelPathGuide, fit_gumbel
from .map_fit import fit_map
from .nuts import fit_nuts, nuts_cost
from .path_guide import path_elbo
from .result import FitResult, bits_per_step
from .svi import fit_svi, learning_rate_grid
from .vb import fit_vb
from .viterbi import fit_viterbi

__all__ = [
    "AmortisedPathGuide",
    "DirichletGuide",
    "FitResult",
    "GumbelPathGuide",
    "bits_per_step",
    "consolidate",
    "fit_em",
    "fit_gibbs",
    "fit_gumbel",
    "fit_map",
    "fit_nuts",
    "fit_svi",
    "fit_vb",
    "fit_viterbi",
    "learning_rate_grid",
    "make_guide",
    "nuts_cost",
    "path_elbo",
]
