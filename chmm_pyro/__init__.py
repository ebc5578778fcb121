"""Clone-structured hidden Markov models in Pyro; conventions are in :mod:`chmm_pyro.clones`."""

from .clones import MISSING, CloneStructure
from .distribution import CloneHMM
from .sequences import SequenceBatch

__all__ = ["MISSING", "CloneHMM", "CloneStructure", "SequenceBatch", "__version__"]

__version__ = "0.1.0"
