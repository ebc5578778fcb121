"""A million steps in single precision, under a model that has been trained."""

from __future__ import annotations

import copy
import math

import torch

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import published_room
from chmm_pyro.inference.em import fit_em
from chmm_pyro.models.point import PointCHMM

STEPS = 1_000_000


def test_single_precision_keeps_its_digits_over_a_million_steps():
    room = published_room("rectangular_room")
    walk = room.random_walk(num_steps=20_000, seed=0).batch()
    start = PointCHMM(CloneStructure([20] * room.num_symbols), 4)
    single = fit_em(start, walk, num_iters=30, pseudocount=0.008, progress=False).model
    batch = room.random_walk(num_steps=STEPS, seed=1).batch()
    log_prob, counts = [], []
    for model in (single, copy.deepcopy(single).double()):
        with torch.no_grad():
            log_z, _, transitions = model.distribution(batch).expected_counts(batch.obs)
        log_prob.append(float(log_z))
        counts.append(transitions.double())
    assert abs(log_prob[0] - log_prob[1]) / (math.log(2) * STEPS) < 1e-6
    # Every transition is counted once, and among the same states.
    assert abs(float(counts[0].sum()) / (STEPS - 1) - 1) < 1e-5
    assert float((counts[0] - counts[1]).abs().sum()) / STEPS < 1e-4
