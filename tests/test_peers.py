"""Other libraries give the same numbers; ``test_data/make_peers.py`` asked them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import TEST_DATA, TOL
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM

DOCUMENT = json.loads((TEST_DATA / "peers.json").read_text())
CASES = DOCUMENT["cases"]
ASKED = [(case, peer) for case in CASES for peer in CASES[case] if peer != "model"]
PEER = TOL["peer"][torch.float64]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def build(case):
    """Our distribution, its raw logits and the data of one case."""
    model = CASES[case]["model"]
    initial = tensor(model["initial_logits"]).requires_grad_()
    transition = tensor(model["transition_logits"]).requires_grad_()
    hmm = CloneHMM(CloneStructure(model["num_clones"]), initial, transition, model["actions"])
    return hmm, initial, transition, torch.tensor(model["obs"])


@pytest.mark.parametrize(("case", "peer"), ASKED)
def test_log_prob(case, peer, kernel):
    hmm, _, _, obs = build(case)
    assert_close(hmm.log_prob(obs), tensor(CASES[case][peer]["log_prob"]), **PEER)


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_raw_logits(case, kernel):
    hmm, initial, transition, obs = build(case)
    hmm.log_prob(obs).backward()
    expected = CASES[case]["trace_enum_elbo"]
    assert_close(initial.grad, tensor(expected["initial_logits_gradient"]), **PEER)
    assert_close(transition.grad, tensor(expected["transition_logits_gradient"]), **PEER)


@pytest.mark.parametrize("case", CASES)
def test_filter(case, kernel):
    hmm, _, _, obs = build(case)
    found = hmm.filter(obs)
    assert_close(found.dense(), tensor(CASES[case]["dynamax"]["filter"]), **PEER)
    assert_close(found.at(-1), tensor(CASES[case]["discrete_hmm"]["last_filter"]), **PEER)


@pytest.mark.parametrize(("case", "peer"), [x for x in ASKED if "smooth" in CASES[x[0]][x[1]]])
def test_smooth(case, peer, kernel):
    hmm, _, _, obs = build(case)
    assert_close(hmm.smooth(obs).dense(), tensor(CASES[case][peer]["smooth"]), **PEER)


@pytest.mark.parametrize("case", CASES)
def test_expected_counts(case, kernel):
    hmm, _, transition, obs = build(case)
    of_steps = np.array(CASES[case]["dynamax"]["step_counts"])
    expected = np.zeros(transition.shape)
    np.add.at(expected, CASES[case]["model"]["actions"], of_steps)
    assert_close(hmm.smooth(obs).transition_counts, tensor(expected), **PEER)


@pytest.mark.parametrize(("case", "peer"), [x for x in ASKED if "mode" in CASES[x[0]][x[1]]])
def test_posterior_mode(case, peer, kernel):
    hmm, _, _, obs = build(case)
    found = hmm.posterior_mode(obs)
    assert found.states.tolist() == CASES[case][peer]["mode"]
    if "mode_score" in CASES[case][peer]:
        assert_close(found.score, tensor(CASES[case][peer]["mode_score"]), **PEER)


def test_the_models_are_asymmetric_and_the_data_reach_every_clone_block():
    for case in CASES.values():
        table = tensor(case["model"]["transition_logits"])
        assert not torch.allclose(table.softmax(-1), table.transpose(-1, -2).softmax(-1), atol=0.1)
        assert set(case["model"]["obs"]) >= {0, 1, 2}
    assert DOCUMENT["versions"].keys() >= {"hmmlearn", "dynamax", "pyro-ppl"}
