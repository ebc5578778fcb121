"""Pyro models over clone-structured sequences; no fitting code."""

from .bayesian import BayesianCHMM
from .enumerated import EnumeratedCHMM
from .noisy import NoisyCHMM
from .point import PointCHMM
from .priors import block_concentration
from .relaxed import RelaxedCHMM

__all__ = [
    "BayesianCHMM",
    "EnumeratedCHMM",
    "NoisyCHMM",
    "PointCHMM",
    "RelaxedCHMM",
    "block_concentration",
]
