"""The edge test: family-wise error by simulation, p-values by summing the binomial."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

from chmm_pyro.maps.edges import significant_edges

NODES, ACTIONS, SYMBOLS = 16, 4, 4


def world(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(NODES, size=(NODES, ACTIONS)), np.arange(NODES) % SYMBOLS


def counted(steps):
    transitions, counts = np.unique(steps, axis=0, return_counts=True)
    usage = np.bincount(steps[:, 2], minlength=NODES).astype(float)
    return transitions, counts.astype(float), usage


def walk(target, num_steps, rng):
    old, action = rng.integers(NODES, size=num_steps), rng.integers(ACTIONS, size=num_steps)
    return np.stack([old, action, target[old, action]], axis=1)


def test_single_p_value_is_the_larger_binomial_tail():
    # Row (0, 0) has 90 + 6 + 1 of 97; symbol 0 is shown by states 0 and 1, symbol 1 by 2 and 3.
    transitions = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 0, 2], [2, 0, 0]])
    counts = np.array([90.0, 6.0, 1.0, 40.0, 1.0])
    found = significant_edges(
        transitions, counts, np.array([0, 0, 1, 1]), np.full(4, 30.0), num_actions=1
    )
    # One single count, as that of the last row is its most frequent outcome.  Counted at most
    # once: in the first row the successors 0 and 3 (expecting 97 / 4 per unit of noise), in the
    # second 0, 1 and 3, in the third 1, 2 and 3; of the pairs that show symbols 0 and 1 all but
    # 0 -> 2 and 1 -> 2 (expecting 47 / 4), of those that show 0 and 0 all but 0 -> 1, of those
    # that show 1 and 0 all but 2 -> 0.
    rows = np.array([97 / 4] * 2 + [40 / 4] * 3 + [1 / 4] * 3)
    pairs = np.array([47 / 4] * 2 + [90 / 4] * 3 + [1 / 4] * 3)
    outlier, misplaced = (
        brentq(lambda share, r=rates: (share * r / (1 + share * r)).sum() - 1, 0, 1)
        for rates in (rows, pairs)
    )
    assert_allclose(found.noise, max(outlier, misplaced), rtol=1e-6)
    tails = binom.sf(5, 97, outlier / 4), binom.sf(5, 47, misplaced / 4)
    assert_allclose(found.p_values[1], max(tails), rtol=1e-6)
    assert found.level == pytest.approx(0.05 / 16)


def test_every_transition_of_an_exact_walk_is_an_edge():
    for seed in range(20):
        target, symbols = world(seed)
        steps = walk(target, 40, np.random.default_rng(seed))  # most edges used once
        transitions, counts, usage = counted(steps)
        found = significant_edges(transitions, counts, symbols, usage, num_actions=ACTIONS)
        assert found.kept.all() and found.noise == 0


@pytest.mark.parametrize("kind", ["outlier", "misplaced"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.1])
def test_false_edges_anywhere_are_as_rare_as_promised(kind, share):
    alpha, worlds, wrong = 0.05, 40, 0
    for seed in range(worlds):
        rng = np.random.default_rng([seed, int(share * 1000)])
        target, symbols = world(seed)
        steps = walk(target, 5000, rng)
        true = {tuple(step) for step in steps.tolist()}
        noisy = rng.random(len(steps)) < share
        if kind == "outlier":
            steps[noisy, 2] = rng.integers(NODES, size=noisy.sum())
        else:  # anywhere that shows the same symbols
            for column in (0, 2):
                clone = rng.integers(NODES // SYMBOLS, size=noisy.sum())
                steps[noisy, column] = clone * SYMBOLS + symbols[steps[noisy, column]]
        transitions, counts, usage = counted(steps)
        found = significant_edges(
            transitions, counts, symbols, usage, num_actions=ACTIONS, alpha=alpha
        )
        kept = {tuple(edge) for edge in transitions[found.kept].tolist()}
        wrong += bool(kept - true)
        assert true <= kept  # 70 uses of an edge are never mistaken for noise
    assert binomtest(wrong, worlds, alpha, alternative="greater").pvalue > 1e-3


def test_slips_are_edges_where_there_are_enough_of_them():
    target, symbols = world(3)
    rng = np.random.default_rng(0)
    steps = walk(target, 60_000, rng)
    slipped = rng.random(len(steps)) < 0.1
    steps[slipped, 2] = (target[steps[slipped, 0], steps[slipped, 1]] + 1) % NODES
    transitions, counts, usage = counted(steps)
    found = significant_edges(transitions, counts, symbols, usage, num_actions=ACTIONS)
    assert found.kept.all() and len(counts) == 2 * NODES * ACTIONS


def test_stray_events_stay_noise_until_they_repeat():
    target, symbols = world(1)
    steps = walk(target, 20_000, np.random.default_rng(0))
    row = steps[(steps[:, 0] == 5) & (steps[:, 1] == 2)][0]
    stray = np.array([[5, 2, (row[2] + 1) % NODES]])
    for times, kept in ((1, False), (4, True)):
        transitions, counts, usage = counted(np.concatenate([steps, *[stray] * times]))
        found = significant_edges(transitions, counts, symbols, usage, num_actions=ACTIONS)
        at = (transitions == stray).all(1)
        assert found.kept[at].item() is kept
        assert found.kept[~at].all()


def test_leaked_posterior_mass_makes_no_edges():
    target, symbols = world(2)
    transitions, counts, usage = counted(walk(target, 20_000, np.random.default_rng(0)))
    table = np.full((NODES, ACTIONS, NODES), 1e-3)
    table[tuple(transitions.T)] += counts
    everything = np.argwhere(table > 0)
    found = significant_edges(
        everything, table[tuple(everything.T)], symbols, usage, num_actions=ACTIONS
    )
    assert {tuple(e) for e in everything[found.kept]} == {tuple(e) for e in transitions}


def test_a_count_below_one_half_is_no_event_and_nothing_has_no_edges():
    arguments = (np.array([0, 1]), np.array([2.0, 2.0]))
    half = significant_edges(np.array([[0, 0, 1]]), np.array([0.4]), *arguments, num_actions=1)
    assert not half.kept.any()
    none = significant_edges(np.empty((0, 3), int), np.empty(0), *arguments, num_actions=1)
    assert none.kept.shape == (0,)


def test_unattributed_steps_are_noise():
    transitions, counts = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 1]]), np.array([50.0, 47.0, 3.0])
    arguments = (transitions, counts, np.array([0, 1]), np.array([50.0, 50.0]))
    clean = significant_edges(*arguments, num_actions=1)
    noisy = significant_edges(*arguments, num_actions=1, unattributed=30.0)
    assert clean.kept.all() and clean.noise == 0
    assert noisy.noise > 0.1 and not noisy.kept[2]


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, float("nan")])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha = "):
        significant_edges(
            np.array([[0, 0, 0]]),
            np.ones(1),
            np.zeros(1, int),
            np.ones(1),
            num_actions=1,
            alpha=alpha,
        )
