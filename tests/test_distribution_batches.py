"""CloneHMM on batches: shapes, ragged lengths, parameters that broadcast against data."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from conftest import TOL
from instances import Instance, random_instance
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM

pytestmark = pytest.mark.usefixtures("kernel")

EXACT = TOL["exact"][torch.float64]
NUM_CLONES = (2, 3, 1)
CLONES = CloneStructure(NUM_CLONES)
LENGTHS = [4, 1, 3]
GARBAGE = 99


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Data:
    """Three ragged sequences, padded with symbols and actions that do not exist."""

    obs = torch.full((3, 4), GARBAGE)
    actions = torch.full((3, 3), -GARBAGE)
    lengths = torch.tensor(LENGTHS)
    log_evidence = normal(3, 4, 6, seed=1)

    for b, size in enumerate(LENGTHS):
        one = random_instance(NUM_CLONES, size, 2, seed=b, missing=int(size > 3))
        obs[b, :size] = torch.tensor(one.obs)
        actions[b, : size - 1] = torch.tensor(one.actions)


# Shapes of the parameter batches *P0 (initial) and *P (transition) beside sequences (3,).
SHAPES = {
    "one model": ((), (), (3,)),
    "a model each": ((3,), (3,), (3,)),
    "draws": ((2, 1), (2, 1), (2, 3)),
    "draws of everything": ((2, 3), (2, 3), (2, 3)),
    "initial draws only": ((2, 1), (), (2, 3)),
    "transition draws only": ((), (2, 1), (2, 3)),
    "a start each": ((3,), (1,), (3,)),
    "both differ": ((3,), (2, 1), (2, 3)),
    "both differ the other way": ((2, 1), (3,), (2, 3)),
    "chains and draws": ((2, 2, 1), (2, 1, 1), (2, 2, 3)),
}
every_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def build(shapes, *, evidence=False, action_model="conditional", requires_grad=False):
    initial_shape, transition_shape, _ = shapes
    initial = normal(*initial_shape, 6, seed=2).requires_grad_(requires_grad)
    transition = normal(*transition_shape, 2, 6, 6, seed=3).requires_grad_(requires_grad)
    log_evidence = None
    if evidence:
        log_evidence = Data.log_evidence.clone().requires_grad_(requires_grad)
    hmm = CloneHMM(
        CLONES,
        initial,
        transition,
        Data.actions,
        lengths=Data.lengths,
        log_evidence=log_evidence,
        action_model=action_model,
    )
    return hmm, initial, transition, log_evidence


def members(shapes, initial, transition, log_evidence=None, action_model="conditional"):
    """``(index, sequence, instance)`` of every element of the full batch."""
    full = shapes[2]
    initial = initial.detach().expand(*full, 6)
    transition = transition.detach().expand(*full, 2, 6, 6)
    for index in np.ndindex(*full):
        b = index[-1]
        size = LENGTHS[b]
        evidence = None if log_evidence is None else log_evidence[b, :size].detach().numpy()
        yield (
            index,
            size,
            Instance(
                NUM_CLONES,
                initial[index].numpy(),
                transition[index].numpy(),
                Data.actions[b, : size - 1].numpy(),
                Data.obs[b, :size].numpy(),
                evidence,
                action_model,
            ),
        )


@every_shape
@pytest.mark.parametrize(
    "options",
    [{}, {"evidence": True}, {"action_model": "joint"}],
    ids=["plain", "evidence", "joint"],
)
def test_everything_of_every_member(shapes, options):
    hmm, initial, transition, evidence = build(shapes, **options)
    full = torch.Size(shapes[2])
    assert hmm.batch_shape == full and hmm.event_shape == (4,)
    value, terms = hmm.log_prob(Data.obs), hmm.log_prob_steps(Data.obs)
    filtered, smoothed = hmm.filter(Data.obs), hmm.smooth(Data.obs)
    path = hmm.posterior_mode(Data.obs)
    assert value.shape == path.score.shape == full
    assert terms.shape == path.states.shape == (*full, 4)
    assert filtered.probs.shape == (*full, 4, 6)  # a missing step allows all states
    assert smoothed.transition_counts.shape == (*full, 2, 6, 6)
    mode = options.get("action_model", "conditional")
    for index, size, one in members(shapes, initial, transition, evidence, mode):
        exact = one.exact()

        def check(found, expected):
            assert_close(found.detach(), torch.as_tensor(expected, dtype=torch.float64), **EXACT)

        check(value[index], exact.log_prob)
        check(terms[index][:size], exact.log_prob_steps)
        check(filtered.dense()[index][:size], exact.filter)
        check(smoothed.dense()[index][:size], exact.smooth)
        check(smoothed.initial_counts[index], exact.initial_counts)
        check(smoothed.transition_counts[index], exact.transition_counts)
        assert tuple(path.states[index][:size].tolist()) == exact.lowest_path
        check(path.score[index], exact.best_score)
        assert (path.states[index][size:] == -1).all()
        assert not terms[index][size:].any()
        assert not filtered.dense()[index][size:].any()


@every_shape
def test_gradients_add_up_over_what_shares_a_parameter(shapes):
    hmm, *leaves = build(shapes, evidence=True, requires_grad=True)
    weights = normal(*shapes[2], seed=5)
    (weights * hmm.log_prob(Data.obs)).sum().backward()
    found = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    initial, transition, evidence = leaves
    full_initial = initial.expand(*shapes[2], 6)
    full_transition = transition.expand(*shapes[2], 2, 6, 6)
    total = 0.0
    for index, size, one in members(shapes, *leaves):
        total = total + weights[index] * one.log_prob_torch(
            {
                **one.arguments(),
                "initial_logits": full_initial[index],
                "transition_logits": full_transition[index],
                "log_evidence": evidence[index[-1], :size],
            }
        )
    total.backward()
    for ours, leaf in zip(found, leaves, strict=True):
        assert_close(ours, leaf.grad, **EXACT)


@every_shape
def test_expected_counts_have_the_shape_of_the_parameters(shapes):
    hmm, initial, transition, _ = build(shapes)
    log_prob, initial_counts, transition_counts = hmm.expected_counts(Data.obs)
    assert log_prob.shape == shapes[2]
    smoothed = hmm.smooth(Data.obs)
    expected = smoothed.initial_counts.sum_to_size(initial.shape)
    assert_close(initial_counts, expected, **EXACT)
    expected = smoothed.transition_counts.sum_to_size(transition.shape)
    assert_close(transition_counts, expected, **EXACT)


def test_data_with_more_dimensions_than_the_distribution():
    hmm, *_ = build(SHAPES["one model"])
    obs = Data.obs.expand(2, 2, 3, 4).clone()
    obs[1, 0, 2, 0] = 1
    value = hmm.log_prob(obs)
    assert value.shape == (2, 2, 3)
    for index in np.ndindex(2, 2):
        assert_close(value[index], hmm.log_prob(obs[index]), **EXACT)


def test_one_sequence_and_many_draws():
    case = random_instance(NUM_CLONES, 5, 2, seed=7)
    transition = normal(4, 2, 6, 6, seed=8)
    initial = torch.tensor(case.initial_logits)
    hmm = CloneHMM(CLONES, initial, transition, case.actions)
    assert hmm.batch_shape == (4,)
    value = hmm.log_prob(case.obs)
    for found, table in zip(value, transition, strict=True):
        one = Instance(NUM_CLONES, case.initial_logits, table.numpy(), case.actions, case.obs)
        assert_close(found, torch.tensor(one.exact().log_prob, dtype=torch.float64), **EXACT)


def test_one_sequence_along_many_actions():
    case = random_instance(NUM_CLONES, 3, 2, seed=9)
    actions = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    arguments = {**case.arguments(), "actions": actions}
    hmm = CloneHMM(CLONES, **arguments)
    assert hmm.batch_shape == (4,)
    for found, row in zip(hmm.log_prob(case.obs), actions, strict=True):
        alone = CloneHMM(CLONES, **{**arguments, "actions": row})
        assert_close(found, alone.log_prob(case.obs), **EXACT)


@pytest.mark.parametrize(
    "convert", [np.asarray, torch.tensor, list], ids=["numpy", "torch", "list"]
)
@pytest.mark.parametrize("integers", [np.int64, np.int32, np.uint8])
def test_integers_of_every_kind(convert, integers):
    case = random_instance(NUM_CLONES, 4, 2, seed=10)
    hmm = CloneHMM(
        CLONES, **{**case.arguments(), "actions": convert(case.actions.astype(integers))}
    )
    expected = torch.tensor(case.exact().log_prob, dtype=torch.float64)
    assert_close(hmm.log_prob(convert(case.obs.astype(integers))), expected, **EXACT)


def test_an_empty_list_of_actions_drives_a_single_step():
    case = random_instance(NUM_CLONES, 1, 2, seed=11)
    hmm = CloneHMM(CLONES, **{**case.arguments(), "actions": []})
    expected = torch.tensor(case.exact().log_prob, dtype=torch.float64)
    assert_close(hmm.log_prob(case.obs.tolist()), expected, **EXACT)


class TestExpand:
    def test_shapes_and_values(self):
        hmm, *_ = build(SHAPES["one model"])
        wide = hmm.expand((2, 3))
        assert wide.batch_shape == (2, 3) and wide.event_shape == (4,)
        assert wide.expand((5, 2, 3)).batch_shape == (5, 2, 3)
        value = wide.log_prob(Data.obs)
        assert_close(value, hmm.log_prob(Data.obs).expand(2, 3), **EXACT)
        assert wide.sample().shape == (2, 3, 4)
        assert wide.sample((7,)).shape == (7, 2, 3, 4)
        assert wide.sample_posterior(Data.obs, 2).shape == (2, 2, 3, 4)

    def test_gradient_counts_every_copy(self):
        gradients = []
        for shape in [(3,), (2, 3)]:
            hmm, _, transition, _ = build(SHAPES["one model"], requires_grad=True)
            hmm.expand(shape).log_prob(Data.obs).sum().backward()
            gradients.append(transition.grad)
        assert_close(gradients[1], 2 * gradients[0], **EXACT)

    def test_refuses_a_smaller_shape(self):
        hmm, *_ = build(SHAPES["one model"])
        with pytest.raises((ValueError, RuntimeError)):
            hmm.expand((2,))

    def test_plates(self):
        hmm, *_ = build(SHAPES["one model"])

        def program():
            with pyro.plate("draws", 2, dim=-2), pyro.plate("sequences", 3, dim=-1):
                return pyro.sample("obs", hmm, obs=Data.obs)

        trace = pyro.poutine.trace(program).get_trace()
        trace.compute_log_prob()
        site = trace.nodes["obs"]
        assert site["log_prob"].shape == (2, 3)
        assert_close(site["log_prob_sum"], 2 * hmm.log_prob(Data.obs).sum(), **EXACT)


def test_the_same_data_again_are_laid_out_once(monkeypatch):
    from chmm_pyro import data_layout

    made = []
    build_layout = data_layout.build_layout
    monkeypatch.setattr(data_layout, "_layouts", [])
    monkeypatch.setattr(
        data_layout, "build_layout", lambda *a, **k: made.append(1) or build_layout(*a, **k)
    )
    hmm, *_ = build(SHAPES["one model"])
    for _ in range(3):
        hmm.log_prob(Data.obs.clone())
    assert len(made) == 1
    changed = Data.obs.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 3
    before, after = hmm.log_prob(Data.obs), hmm.log_prob(changed)
    assert len(made) == 2 and before[0] != after[0] and torch.equal(before[1:], after[1:])
    changed[0, 0] = Data.obs[0, 0]  # in place: the layout must not be that of the old content
    assert torch.equal(hmm.log_prob(changed), before)
