"""The joint model of data and path against sums over enumerated paths."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from conftest import TOL
from instances import random_instance
from pyro import poutine
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.models.relaxed import RelaxedCHMM, RelaxedPath, RelaxedPaths
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
CLONES = (2, 3, 1)

INSTANCES = {
    "plain": random_instance(CLONES, 5, 2, seed=1),
    "one step": random_instance(CLONES, 1, 1, seed=2),
    "two steps": random_instance(CLONES, 2, 2, seed=3),
    "missing": random_instance(CLONES, 4, 2, seed=4, missing=[1, 2]),
    "zeros": random_instance(CLONES, 6, 2, seed=5, zeros=0.4),
    "joint": random_instance(CLONES, 5, 3, seed=6, action_model="joint"),
    "symbols": random_instance(CLONES, 4, 2, seed=7, missing=[2], evidence="symbols"),
    "states": random_instance(CLONES, 5, 2, seed=8, evidence="states", zeros=0.2),
}


@pytest.fixture(params=INSTANCES)
def instance(request):
    return INSTANCES[request.param]


def joint_of(instance, *, validate_args=None, **changes):
    hmm = CloneHMM(instance.clones, **instance.arguments(), **changes)
    return RelaxedPath(hmm, instance.obs, validate_args=validate_args)


def scores_of(instance):
    """All paths of an instance and their joint log-probabilities with the data."""
    paths = reference.all_paths(instance.num_clones, instance.obs)
    evidence = np.zeros((len(instance.obs), instance.clones.num_states))
    if instance.log_evidence is not None:
        evidence = instance.log_evidence
        if evidence.shape[1] != instance.clones.num_states:
            evidence = np.repeat(evidence, instance.num_clones, axis=1)
    score = instance.log_initial[paths[:, 0]]
    score = score + evidence[np.arange(paths.shape[1]), paths].sum(1)
    for t, action in enumerate(instance.actions):
        score = score + instance.log_transition[action, paths[:, t], paths[:, t + 1]]
    return torch.tensor(paths), torch.tensor(score)


def test_every_path_has_its_joint_log_probability(instance):
    joint = joint_of(instance)
    paths, scores = scores_of(instance)
    possible = torch.isfinite(scores)
    # Impossible paths through states that some possible edge enters have weights, others have none.
    arriving = joint.allowed.any(-2)
    local = paths - joint.first_state
    nodes = torch.arange(len(instance.obs))
    valid = arriving[nodes, local].all(-1)
    assert possible.any() and (possible <= valid).all()
    unchecked = joint_of(instance, validate_args=False)
    for path, score in zip(paths[valid], scores[valid], strict=True):
        edges = joint.one_hot(path)
        if torch.isfinite(score):
            assert joint.support.check(edges)
            assert_close(joint.log_prob(edges), score, **EXACT)
        else:
            assert not joint.support.check(edges)
            assert unchecked.log_prob(edges) == -torch.inf
    assert_close(scores[possible].logsumexp(0).item(), instance.exact().log_prob, **EXACT)


def test_relaxed_paths_are_linear(instance):
    joint = joint_of(instance)
    paths, scores = scores_of(instance)
    possible = torch.isfinite(scores)
    weights = torch.rand(int(possible.sum()), dtype=torch.float64).softmax(0)
    corners = torch.stack([joint.one_hot(path) for path in paths[possible]])
    inside = torch.einsum("n,n...->...", weights, corners)
    assert joint.support.check(inside)
    assert_close(joint.log_prob(inside), (weights * scores[possible]).sum(), **EXACT)


def test_products_of_relaxed_states_are_bilinear_forms():
    instance = INSTANCES["plain"]
    joint, clones = joint_of(instance), instance.clones
    states = [torch.rand(clones.num_clones[v], dtype=torch.float64) for v in instance.obs]
    states = [y / y.sum() for y in states]
    log_initial = torch.tensor(instance.log_initial)
    log_transition = torch.tensor(instance.log_transition)
    support = [clones.states(int(v)) for v in instance.obs]
    expected = states[0] @ log_initial[support[0]]
    value = torch.zeros(*joint.event_shape, dtype=torch.float64)
    value[0, 0, : len(states[0])] = states[0]
    for t, action in enumerate(instance.actions, start=1):
        old, new = states[t - 1], states[t]
        expected = expected + old @ log_transition[action, support[t - 1], support[t]] @ new
        value[t, : len(old), : len(new)] = torch.outer(old, new)
    assert_close(joint.log_prob(value), expected, **EXACT)


def test_gradient_is_the_weight_of_each_transition(instance):
    arguments = instance.arguments(requires_grad=True)
    joint = RelaxedPath(CloneHMM(instance.clones, **arguments), instance.obs)
    paths, scores = scores_of(instance)
    path = paths[torch.isfinite(scores)][-1]
    value = joint.one_hot(path).requires_grad_()
    joint.log_prob(value).backward()
    assert_close(value.grad, joint.log_potentials.detach().nan_to_num(neginf=0.0), **EXACT)
    counts = torch.zeros(instance.transition_logits.shape, dtype=torch.float64)
    steps = (torch.tensor(instance.actions), path[:-1], path[1:])
    counts.index_put_(steps, torch.ones(len(path) - 1, dtype=torch.float64), accumulate=True)
    axes = (0, 2) if instance.action_model == "joint" else (2,)
    probs = torch.tensor(instance.log_transition).exp()
    expected = counts - counts.sum(axes, keepdim=True) * probs
    assert_close(arguments["transition_logits"].grad, expected, **EXACT)
    assert arguments["initial_logits"].grad.isfinite().all()


def test_action_probabilities_count():
    instance = INSTANCES["plain"]
    logits = torch.tensor([0.3, -0.9], dtype=torch.float64)
    joint, plain = joint_of(instance, action_logits=logits), joint_of(instance)
    path = joint.one_hot(scores_of(instance)[0][3])
    terms = logits.log_softmax(-1)[torch.tensor(instance.actions)]
    assert_close(joint.log_prob(path), plain.log_prob(path) + terms.sum(), **EXACT)


def test_ragged_batches_and_parameter_batches_are_their_elements():
    torch.manual_seed(3)
    clones = CloneStructure(CLONES)
    batch = SequenceBatch.from_arrays([[0, 1, 1, 2], [2, 0], [1]], [[0, 1, 1], [1], []])
    logits = torch.randn(4, 1, 2, 6, 6, dtype=torch.float64)
    initial = torch.randn(4, 1, 6, dtype=torch.float64)
    hmm = CloneHMM(clones, initial, logits, batch.actions, lengths=batch.lengths)
    joint = RelaxedPath(hmm, batch.obs)
    assert joint.batch_shape == (4, 3) and joint.event_shape == (4, 3, 3)
    states = hmm.sample_posterior(batch.obs)[0]
    value = joint.one_hot(states)
    found = joint.log_prob(value)
    for p in range(4):
        for b, one in enumerate(batch):
            alone = CloneHMM(clones, initial[p, 0], logits[p, 0], one.actions)
            single = RelaxedPath(alone, one.obs)
            path = single.one_hot(states[p, b, : one.num_steps])
            assert_close(found[p, b], single.log_prob(path), **EXACT)
    assert (value[:, 1, 2:] == 0).all() and (value[:, 2, 1:] == 0).all()


def test_zeros_are_outside_the_support_and_leave_no_nan():
    allowed = torch.ones(1, 3, 3, dtype=torch.bool)
    allowed[0, 0, 2] = False
    model = RelaxedCHMM(CloneStructure([2, 1]), 1, allowed=allowed, dtype=torch.float64)
    batch = SequenceBatch.from_arrays([0, 1])
    joint = model.joint(batch)
    inside = joint.one_hot(torch.tensor([1, 2]))
    joint.log_prob(inside).backward()
    assert model.transition.logits.grad.isfinite().all()
    outside = joint.one_hot(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="support"):
        joint.log_prob(outside)
    joint = RelaxedPath(model.distribution(batch), batch.obs, validate_args=False)
    half = ((inside + outside) / 2).requires_grad_()
    found = joint.log_prob(half)
    assert found == -torch.inf
    found.backward()
    assert (half.grad == 0).all()


def test_support_wants_conserved_weights():
    allowed = torch.zeros(3, 2, 2, dtype=torch.bool)
    allowed[0, 0] = allowed[1] = True  # the third step is padding
    paths = RelaxedPaths(allowed)
    half = torch.zeros(3, 2, 2)
    half[0, 0] = 0.5
    half[1] = 0.25
    assert paths.check(half)
    for t, i, j, value in ((0, 0, 0, 0.6), (1, 0, 1, 0.3), (1, 0, 1, -0.25), (2, 0, 0, 0.1)):
        wrong = half.clone()
        wrong[t, i, j] = value
        assert not paths.check(wrong)
    assert not paths.check(half * 2)
    assert not paths.check(torch.zeros(3, 2, 2))


def test_states_that_are_no_clones_are_refused():
    joint = RelaxedCHMM(CloneStructure([2, 1]), 1).joint(SequenceBatch.from_arrays([0, 1, 0]))
    with pytest.raises(ValueError, match=r"states\[1\] = 1, expected a possible clone"):
        joint.one_hot(torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"states\[2\] = 2"):
        joint.one_hot(torch.tensor([0, 2, 2]))
    with pytest.raises(NotImplementedError, match="sample_posterior"):
        joint.sample()


def test_program_is_the_joint_model():
    model = RelaxedCHMM(CloneStructure(CLONES), 2, learn_actions=True, dtype=torch.float64)
    batch = SequenceBatch.from_arrays([[0, 1, 1], [2, 0]], [[0, 1], [1]])
    hmm = model.distribution(batch)
    mode = hmm.posterior_mode(batch.obs)
    path = model.joint(batch).one_hot(mode.states)
    conditioned = poutine.condition(model, {"path": path})
    trace = poutine.trace(conditioned).get_trace(batch)
    assert trace.nodes["path"]["cond_indep_stack"][0].name == "sequences"
    assert_close(trace.log_prob_sum(), mode.score.sum(), **EXACT)
    (part, *_) = batch.minibatches(1, shuffle=False)
    conditioned = poutine.condition(
        model, {"path": model.joint(part.batch).one_hot(mode.states[:1])}
    )
    trace = poutine.trace(conditioned).get_trace(part.batch)
    assert_close(trace.log_prob_sum(), 2 * mode.score[0], **EXACT)


def test_from_model_copies_parameters():
    point = PointCHMM(CloneStructure([2, 1]), 2, learn_initial=True, action_model="joint", seed=4)
    relaxed = RelaxedCHMM.from_model(point)
    assert relaxed.action_model == "joint" and relaxed.clones == point.clones
    batch = SequenceBatch.from_arrays([0, 1, 0], [0, 1])
    before = point.distribution(batch).log_prob(batch.obs).detach()
    assert_close(relaxed.distribution(batch).log_prob(batch.obs).detach(), before)
    assert relaxed.state_dict().keys() == point.state_dict().keys()
    with torch.no_grad():
        relaxed.transition.logits.add_(torch.randn(2, 3, 3))
    assert_close(point.distribution(batch).log_prob(batch.obs).detach(), before)
