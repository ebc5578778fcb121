"""The Gumbel path guide: exact identities first, then how close its path comes to Viterbi's."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from conftest import TOL, import_benchmark
from fits import interrupted_at, same_state, touches_nothing
from instances import random_instance
from pyro.infer import SVI, Trace_ELBO
from torch.testing import assert_close

from chmm_pyro import messages
from chmm_pyro.checkpoint import load_checkpoint, save_checkpoint
from chmm_pyro.clones import MISSING
from chmm_pyro.inference.gumbel import GumbelPathGuide, fit_gumbel
from chmm_pyro.inference.markov_path import RELAXATIONS
from chmm_pyro.inference.path_guide import STRUCTURES, path_elbo
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.models.relaxed import RelaxedCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]
FIXED = {"train_model": False, "progress": False}
INSTANCES = {
    "plain": random_instance((2, 3), 5, 2, seed=1),
    "zeros": random_instance((3, 2), 6, 2, seed=8, zeros=0.4),
    "missing": random_instance((2, 1), 5, 1, seed=3, missing=[1, 3]),
    "one step": random_instance((3, 1), 1, 1, seed=4),
}


@pytest.fixture(params=INSTANCES)
def instance(request):
    return INSTANCES[request.param]


@pytest.fixture
def study(monkeypatch):
    """The benchmark whose problems and runs are tested here."""
    return import_benchmark(monkeypatch, "gumbel_viterbi")


def model_of(instance):
    model = RelaxedCHMM(instance.clones, len(instance.transition_logits), dtype=torch.float64)
    with torch.no_grad():
        model.transition.logits.copy_(torch.tensor(instance.transition_logits))
        model.initial.logits.copy_(torch.tensor(instance.initial_logits))
    return model, SequenceBatch.from_arrays(
        instance.obs, instance.actions, num_actions=model.num_actions
    )


def posterior_entropy(exact):
    return -sum(p * math.log(p) for p in exact.paths.values())


def set_to_posterior(guide, batch, instance, weight=1.0):
    """Logits of ``p ** (1 / weight)``, from the pairs of states of all enumerated paths."""
    states = instance.clones.num_states
    pairs = torch.zeros(len(instance.obs), states, states, dtype=torch.float64)
    for path, probability in instance.exact().paths.items():
        for t, (old, new) in enumerate(zip((0, *path[:-1]), path, strict=True)):
            pairs[t, old, new] += probability ** (1 / weight)
    first = guide.support(batch).first_state.tolist()
    width = guide.logits.shape[-1]
    with torch.no_grad():
        guide.logits.zero_()
        for t, (old, new) in enumerate(zip([0, *first[:-1]], first, strict=True)):
            block = pairs[t, old : old + width, new : new + width]
            guide.logits[t, : block.shape[0], : block.shape[1]] = block.log()


# ------------------------------------------------------------------------------- the objective


def test_elbo_is_tight_and_flat_at_the_exact_posterior(instance):
    model, batch = model_of(instance)
    guide = GumbelPathGuide(model, batch, seed=3)
    log_prob = instance.exact().log_prob
    assert path_elbo(model, guide, batch) < log_prob
    set_to_posterior(guide, batch, instance)
    elbo = path_elbo(model, guide, batch)
    assert_close(elbo.item(), log_prob, **EXACT)
    (gradient,) = torch.autograd.grad(elbo, guide.logits)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_the_optimum_depends_on_the_entropy_weight_and_not_on_the_temperature(
    instance, relaxation, weight
):
    """There every single draw has gradient zero, at any temperature."""
    model, batch = model_of(instance)
    guide = GumbelPathGuide(model, batch, relaxation=relaxation, entropy_weight=weight)
    set_to_posterior(guide, batch, instance, weight)
    for guide.temperature in (5.0, 0.5, 0.05):
        loss = Trace_ELBO().differentiable_loss(model, guide, batch)
        (gradient,) = torch.autograd.grad(loss, guide.logits)
        assert gradient.abs().max() < 1e-10
    guide.entropy_weight, guide.temperature = 0.9 * weight, 1.0
    loss = Trace_ELBO().differentiable_loss(model, guide, batch)
    (gradient,) = torch.autograd.grad(loss, guide.logits)
    one_path = len(instance.exact().paths) == 1
    assert one_path or gradient.abs().max() > 1e-4


def test_straight_through_draws_move_the_guide_alike_and_show_the_model_one_path(study):
    model, batch = study.problem("small")
    found = {}
    for relaxation in ("gumbel", "straight_through"):
        guide = GumbelPathGuide(model, batch, relaxation=relaxation, seed=1)
        pyro.set_rng_seed(0)
        loss = Trace_ELBO().differentiable_loss(model, guide, batch)
        found[relaxation] = torch.autograd.grad(loss, [guide.logits, model.transition.logits])
    (of_guide, of_model), (same, other) = found.values()
    assert_close(of_guide, same, **EXACT)
    assert not torch.allclose(of_model, other)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_pyros_elbo_of_the_mean_is_exact(structure, weight):
    model, batch = model_of(INSTANCES["plain"])
    guide = GumbelPathGuide(
        model, batch, structure=structure, relaxation="mean", entropy_weight=weight
    )
    leaves = [guide.logits, model.transition.logits]
    loss = Trace_ELBO().differentiable_loss(model, guide, batch)
    elbo = path_elbo(model, guide, batch, entropy_weight=weight)
    assert_close(-loss.detach(), elbo.detach(), **EXACT)
    found = torch.autograd.grad(loss, leaves)
    for one, other in zip(found, torch.autograd.grad(-elbo, leaves), strict=True):
        assert_close(one, other, **EXACT)
    path = guide.path(batch).mean
    states = path.sum(-2)
    if structure == "mean_field":
        assert_close(path[1:], states[:-1, :, None] * states[1:, None, :], **EXACT)


def test_straight_through_draws_estimate_the_elbo(instance):
    model, batch = model_of(instance)
    guide = GumbelPathGuide(model, batch, relaxation="straight_through", seed=2)
    chain, joint = guide.path(batch), model.joint(batch)
    draws = chain.sample((2000,))
    terms = (joint.log_prob(draws) - chain.log_prob(draws)).detach()
    error = terms.std() / math.sqrt(len(terms))
    assert abs(terms.mean() - path_elbo(model, guide, batch)) < 5 * error + 1e-9


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_weight_one_gives_the_posterior_and_weight_zero_the_best_path(relaxation):
    """The temperatures are the same; the entropy weight decides."""
    model, batch = model_of(INSTANCES["plain"])
    exact = INSTANCES["plain"].exact()
    options = {"num_iters": 150, "temperature": (2.0, 0.2), "seed": 1, **FIXED}
    start = GumbelPathGuide(model, batch, relaxation=relaxation)
    posterior, hard = (
        fit_gumbel(model, batch, guide=start, entropy_weight=(1.0, weight), **options).guide
        for weight in (1.0, 0.0)
    )
    average = exact.log_prob - posterior_entropy(exact)
    gap = exact.best_score - average
    assert gap > 0.5  # the posterior is far from one path
    with torch.no_grad():
        assert exact.log_prob - path_elbo(model, posterior, batch) < 0.1
        found = path_elbo(model, posterior, batch, entropy_weight=0.0)
        assert abs(found - average) < 0.3 * gap
        found = path_elbo(model, hard, batch, entropy_weight=0.0)
        assert exact.best_score - found < 0.05 * gap
    best = hard.mode(model, batch)
    assert tuple(best.states.tolist()) in exact.best_paths
    assert_close(best.score.item(), exact.best_score, **EXACT)


# ------------------------------------------------------------------------------- the gradients


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("case", ["small", "medium", "large", "ragged 1", "ragged 2"])
def test_gradients_reach_every_logit_of_visited_rows(study, case, structure):
    model, batch = study.problem(case)
    guide = GumbelPathGuide(model, batch, structure=structure)
    loss = Trace_ELBO().differentiable_loss(model, guide, batch)
    of_model, of_guide = torch.autograd.grad(loss, [model.transition.logits, guide.logits])
    clones = model.clones
    visited = torch.zeros(of_model.shape, dtype=torch.bool)
    for one in batch:
        for action, symbol in zip(one.actions.tolist(), one.obs[:-1].tolist(), strict=True):
            visited[action, clones.states(symbol)] = True
    assert visited.any() and torch.equal(of_model != 0, visited)
    usable = guide.support(batch).usable
    rows = usable.any(-2, keepdim=True) if structure == "mean_field" else usable
    choices = rows & (rows.sum(-1, keepdim=True) > 1)  # where there is one, nothing can change
    assert choices.any() and torch.equal(of_guide != 0, choices)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_zeros_and_missing_steps_leave_finite_gradients(study, relaxation):
    for case in ("ragged 0", "ragged 12"):
        model, batch = study.problem(case)
        assert (batch.obs[0, : batch.lengths[0]] == MISSING).any()
        assert not model.transition.allowed.all()
        guide = GumbelPathGuide(model, batch, relaxation=relaxation, temperature=0.05)
        loss = Trace_ELBO().differentiable_loss(model, guide, batch)
        for gradient in torch.autograd.grad(loss, [model.transition.logits, guide.logits]):
            assert gradient.isfinite().all() and (gradient != 0).any()
        assert (guide.logits.grad is None) and loss.isfinite()


# ------------------------------------------------------------------------- ordinary Pyro scripts


def test_an_ordinary_svi_script_finds_the_best_path():
    """Nothing but Pyro: temperature and entropy weight are attributes of the guide."""
    instance = INSTANCES["zeros"]
    model, batch = model_of(instance)
    fixed = pyro.poutine.block(model, hide_types=["param"])
    guide = GumbelPathGuide(model, batch)
    svi = SVI(fixed, guide, pyro.optim.Adam({"lr": 0.3}), Trace_ELBO())
    for step in range(150):
        guide.temperature = 2.0 * 0.1 ** (step / 150)
        guide.entropy_weight = max(0.0, 1 - step / 100)
        svi.step(batch)
    best = guide.mode(model, batch)
    assert tuple(best.states.tolist()) in instance.exact().best_paths
    assert_close(best.score.item(), instance.exact().best_score, **EXACT)


def test_an_ordinary_svi_script_finds_the_posterior():
    instance = INSTANCES["zeros"]
    model, batch = model_of(instance)
    guide = GumbelPathGuide(model, batch, relaxation="mean")
    before = path_elbo(model, guide, batch).item()
    fixed = pyro.poutine.block(model, hide_types=["param"])
    svi = SVI(fixed, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(150)]
    assert_close(losses[0], -before, **EXACT)
    log_prob = instance.exact().log_prob
    assert log_prob - path_elbo(model, guide, batch) < 0.05 * (log_prob - before)


def test_fit_svi_takes_the_guide():
    model, batch = model_of(INSTANCES["plain"])
    guide = GumbelPathGuide(model, batch)
    result = fit_svi(model, batch, guide=guide, num_iters=40, progress=False)
    before = path_elbo(model, guide, batch)
    assert path_elbo(result.model, result.guide, batch) > before


# ------------------------------------------------------------------------------- against Viterbi


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_the_viterbi_kernel_is_never_called(study, monkeypatch, structure, relaxation):
    model, batch = study.problem("small")

    def refuse(*args):
        raise AssertionError("the guide asked for the answer")

    monkeypatch.setattr(messages, "viterbi", refuse)
    options = {"structure": structure, "relaxation": relaxation, "progress": False}
    result = fit_gumbel(model, batch, num_iters=3, **options)
    result.guide.mode(result.model, batch)
    with pytest.raises(AssertionError, match="asked for the answer"):
        model.distribution(batch).posterior_mode(batch.obs)


@pytest.mark.parametrize("relaxation", ["gumbel", "straight_through"])
def test_the_path_is_near_viterbi_on_small_cases(study, relaxation):
    for case in ("small", "ragged 0", "ragged 1"):
        found = study.decoding(case, "markov", relaxation, seed=0, num_iters=200)
        assert max(found["missed"], found["missed_on_average"]) <= study.GOAL
        assert found["missed_before"] > 10 * study.GOAL


@pytest.mark.slow
def test_the_path_is_near_viterbi_on_every_case(study):
    for case in study.CASES:
        found = study.decoding(case, "markov", "gumbel", seed=0)
        print(case, {name: round(value, 6) for name, value in found.items()})
        assert max(found["missed"], found["missed_on_average"]) <= study.GOAL
        assert found["missed_before"] > 10 * study.GOAL


def test_training_reaches_viterbi_training_on_the_small_case(study):
    found = study.training("small", "gumbel", seed=0, num_iters=200)
    assert found["bits_per_step"] <= found["viterbi_training"]
    assert found["path_bits_per_step"] <= found["viterbi_training_path"]


@pytest.mark.slow
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_training_reaches_viterbi_training_on_golden_cases(study, relaxation):
    for case in study.GOLDEN:
        found = study.training(case, relaxation, seed=0)
        print(case, {name: round(value, 4) for name, value in found.items()})
        assert found["bits_per_step"] <= found["viterbi_training"]
        assert found["path_bits_per_step"] <= found["viterbi_training_path"]


# ------------------------------------------------------------------------------------ the fit


def test_fit_leaves_everything_else_alone_and_repeats_itself(study):
    model, batch = study.problem("ragged 1")
    start = GumbelPathGuide(model, batch)
    with touches_nothing(model):
        first, second, other = (
            fit_gumbel(model, batch, guide=start, num_iters=5, seed=seed, progress=False)
            for seed in (7, 7, 8)
        )
    assert same_state(start, GumbelPathGuide(model, batch))
    assert np.array_equal(first.objective_history, second.objective_history)
    assert same_state(first.guide, second.guide) and same_state(first.model, second.model)
    assert not same_state(first.model, model)
    assert not np.array_equal(first.objective_history, other.objective_history)


def test_a_result_says_what_was_done_and_is_saved(study, tmp_path):
    model, batch = study.problem("ragged 1")
    result = fit_gumbel(model, batch, num_iters=5, progress=False)
    assert result.settings["method"] == "gumbel" and result.num_iters == 5
    path = result.guide.mode(result.model, batch)
    bits = -float(path.score.sum()) / (math.log(2) * batch.num_observed)
    assert_close(result.settings["path_bits_per_step"], bits, **EXACT)
    assert (path.states[0, batch.lengths[0] :] == MISSING).all()
    save_checkpoint(tmp_path, result)
    loaded = load_checkpoint(tmp_path)
    assert type(loaded.model) is RelaxedCHMM and same_state(loaded.model, result.model)
    assert loaded.settings == result.settings


def test_an_interrupt_keeps_what_was_done(study, monkeypatch):
    model, batch = study.problem("ragged 1")
    loss = interrupted_at(4, Trace_ELBO.differentiable_loss)
    monkeypatch.setattr(Trace_ELBO, "differentiable_loss", loss)
    result = fit_gumbel(model, batch, num_iters=100, progress=False)
    assert result.interrupted and result.num_iters == 3
    assert not same_state(result.model, model)


def test_a_fixed_model_stays_fixed(study):
    model, batch = study.problem("ragged 2")
    result = fit_gumbel(model, batch, num_iters=3, **FIXED)
    assert same_state(model, result.model)
    assert result.log_prob_history is None


@pytest.mark.parametrize(
    "options", [{"action_model": "joint", "learn_initial": True}, {"learn_actions": True}]
)
def test_joint_actions_and_learned_actions_train(study, options):
    start, batch = study.problem("ragged 1")
    model = RelaxedCHMM(start.clones, batch.num_actions, **options)
    result = fit_gumbel(model, batch, num_iters=60, progress=False)
    assert result.log_prob_history[-1] > result.log_prob_history[0]


# ------------------------------------------------------------------------------------- refusals


def test_independent_states_refuse_structural_zeros():
    model, batch = model_of(INSTANCES["zeros"])
    with pytest.raises(ValueError, match="use structure='markov'"):
        GumbelPathGuide(model, batch, structure="mean_field")


@pytest.mark.parametrize(
    "other",
    [
        SequenceBatch.from_arrays([0, 1, 1], [0, 1]),
        SequenceBatch.from_arrays([0, 1, 0], [0, 0], num_actions=2),
        SequenceBatch.from_arrays([[0, 1, 0]], [[0, 1]]),
    ],
    ids=["observations", "actions", "shape"],
)
def test_the_guide_knows_its_batch(other):
    batch = SequenceBatch.from_arrays([0, 1, 0], [0, 1])
    guide = GumbelPathGuide(RelaxedCHMM(INSTANCES["plain"].clones, 2), batch)
    guide.path(batch)
    with pytest.raises(ValueError, match="expected the sequences that the guide was made for"):
        guide.path(other)


@pytest.mark.parametrize("validate", [True, False])
def test_a_guide_of_a_model_with_fewer_zeros_is_refused(validate):
    model, batch = model_of(INSTANCES["zeros"])
    guide = GumbelPathGuide(RelaxedCHMM(model.clones, model.num_actions), batch)
    message = "relaxed paths: one unit" if validate else "make the guide from this model"
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message):
        fit_gumbel(model, batch, guide=guide, num_iters=2, progress=False)


def test_bad_input():
    model, batch = model_of(INSTANCES["plain"])
    for message, options in {
        "num_iters = 0": {"num_iters": 0},
        "learning_rate = -1": {"learning_rate": -1},
        r"temperature = \(1.0, 0.0\)": {"temperature": (1.0, 0.0)},
        "entropy_weight = .*non-negative": {"entropy_weight": (1.0, -1.0)},
        "anneal = 0": {"anneal": 0},
        "structure = 'tree'": {"structure": "tree"},
        "relaxation = 'soft'": {"relaxation": "soft"},
    }.items():
        with pytest.raises(ValueError, match=message):
            fit_gumbel(model, batch, progress=False, **options)
    for message, options in {
        "entropy_weight = -1": {"entropy_weight": -1},
        "temperature = 0": {"temperature": 0},
    }.items():
        with pytest.raises(ValueError, match=message):
            GumbelPathGuide(model, batch, **options)
    point = PointCHMM(model.clones, model.num_actions)
    with pytest.raises(TypeError, match=r"expected RelaxedCHMM.*RelaxedCHMM\.from_model"):
        fit_gumbel(point, batch, progress=False)
