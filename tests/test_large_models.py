"""Thousands of states: storage of the observed blocks only."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

GIB = 2**30


def graph_walk(num_symbols, num_actions, num_successors, num_steps, seed=0):
    """Symbols of a walk on a random graph: each is followed by few others."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(num_symbols, size=(num_actions, num_symbols, num_successors))
    actions = rng.integers(num_actions, size=num_steps - 1)
    choices = rng.integers(num_successors, size=num_steps - 1)
    obs = np.zeros(num_steps, np.int64)
    for t in range(num_steps - 1):
        obs[t + 1] = successors[actions[t], obs[t], choices[t]]
    return SequenceBatch.from_arrays(obs, actions, num_actions=num_actions)


def train(num_symbols, clones_each, num_actions, num_successors, num_steps):
    """A few updates of each method; returns the model and its fits."""
    batch = graph_walk(num_symbols, num_actions, num_successors, num_steps)
    clones = CloneStructure([clones_each] * num_symbols)
    columns = BlockColumns.from_batch(clones, num_actions, batch)
    model = PointCHMM(clones, num_actions, parameterization="blocks", columns=columns)
    fits = [
        fit_svi(model, batch, num_iters=4, pseudocount=1e-3, progress=False),
        fit_em(model, batch, num_iters=3, pseudocount=1e-3, progress=False),
    ]
    fits.append(fit_viterbi(fits[-1].model, batch, num_iters=2, progress=False))
    return model, fits


def test_hundreds_of_states_in_blocks():
    model, (svi, em, viterbi) = train(30, 20, 3, 3, 2000)
    dense = 3 * 600 * 600
    assert sum(p.numel() for p in model.parameters()) < 0.2 * dense
    assert svi.objective_history[-1] > svi.objective_history[0]
    assert (np.diff(em.objective_history) > 0).all()
    assert np.isfinite(viterbi.bits_per_step)
    hmm = em.model.distribution(em.data)
    with torch.no_grad():
        assert hmm.sample((2,)).shape == (2, 2000)
        ahead = hmm.predict(em.data.obs, [0, 1, 2])
    assert torch.allclose(ahead.sum(-1), torch.ones(3), atol=1e-5)


MEASURE = """
import resource, sys
sys.path[:0] = {path!r}
from test_large_models import train
model, fits = train(78, 75, 3, 5, 20_000)
assert model.clones.num_states == 5850
assert fits[0].objective_history[-1] > fits[0].objective_history[0]
# The kernel reports kilobytes on Linux and bytes on macOS.
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


@pytest.mark.slow
def test_thousands_of_states_train_in_four_gibibytes():
    """5,850 states and three actions; peak resident memory of a process of its own."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(path=sys.path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert int(done.stdout.split()[-1]) < 4 * GIB
