"""Pyro models over clone-structured sequences; no fitting code."""

from .point import PointCHMM

__all__ = ["PointCHMM"]
