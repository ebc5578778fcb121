"""Pyro models over clone-structured sequences; no fitting code."""

from .enumerated import EnumeratedCHMM
from .point import PointCHMM

__all__ = ["EnumeratedCHMM", "PointCHMM"]
