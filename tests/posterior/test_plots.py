"""Pictures of posteriors hold what they are given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from worlds import exact_model

from chmm_pyro.environments import Room
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.posterior.maps import map_posterior
from chmm_pyro.posterior.plots import (
    plot_clone_budgets,
    plot_co_assignment,
    plot_counts,
    plot_map_posterior,
    plot_plan_success,
)

ROOM = Room([[0, 1, 0], [1, 0, 1]])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def found():
    start, _ = exact_model(ROOM, pseudocount=0.01)
    fit = fit_gibbs(
        BayesianCHMM(start.clones, 4, 0.1),
        ROOM.random_walk(150, seed=0).batch(),
        num_iters=6,
        num_warmup=4,
        num_chains=2,
        start=start,
        progress=False,
    )
    return map_posterior(fit)


@pytest.mark.parametrize("positions", ["known", "unfold"])
def test_lines_are_as_certain_as_the_edges(found, positions):
    ax = plt.subplots()[1]
    assert plot_map_posterior(found, ax, positions=positions, least=0.0, labels=True) is ax
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    pairs = {tuple(sorted((old, new))) for old, _, new in found.edges.tolist() if old != new}
    assert len(lines.get_segments()) == len(pairs)
    assert len(ax.texts) == found.map.num_nodes
    widths = np.sort(lines.get_linewidths())
    certain = {}
    for (old, _, new), probability in zip(found.edges.tolist(), found.probability, strict=True):
        if old != new:
            pair = tuple(sorted((old, new)))
            certain[pair] = max(certain.get(pair, 0.0), probability)
    assert widths == pytest.approx(1.0 + 2.0 * np.sort(list(certain.values())))


def test_improbable_edges_are_left_out(found):
    ax = plot_map_posterior(found, least=1.01)
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert not len(lines.get_segments())


def test_counts_and_success(found):
    ax = plot_counts(found.num_places, truth=6)
    heights = [bar.get_height() for bar in ax.patches]
    assert sum(heights) == pytest.approx(1.0)
    assert ax.get_xlabel() == "number of places"
    ax = plot_plan_success([0.5, 1.0], label="left")
    assert ax.get_legend().get_texts()[0].get_text() == "left: 0.75 in all"
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1.0)


def test_co_assignment_and_budgets():
    same = np.array([[1.0, 0.2], [0.2, 1.0]])
    ax = plot_co_assignment(same, order=[1, 0])
    assert ax.images[0].get_array().tolist() == same.tolist()
    ax = plot_clone_budgets([2, 4], [1.0, 0.8], errors=[0.1, 0.1], held_out=[1.2, 1.1], truth=3)
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    assert labels == {"LOO", "held out", "needed"}
    assert plot_clone_budgets([2], [1.0], used=(1.0, 2.0)).get_ylabel() == "bits per step"
