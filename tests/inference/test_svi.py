"""Gradient ascent: its gradients, options and promises; test_svi_reaches_em.py trains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from conftest import TOL, load_golden
from fits import CLONES, MODELS, interrupted_at, ragged_batch, same_state, touches_nothing
from numpy.testing import assert_allclose
from pyro.infer import SVI, Trace_ELBO
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference.em import fit_em, log_prior
from chmm_pyro.inference.result import bits_per_step, log_likelihood
from chmm_pyro.inference.svi import fit_svi, learning_rate_grid
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]

every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def fit(model, batch, **options):
    return fit_svi(model, batch, **{"num_iters": 3, "progress": False, **options})


def gradients(model, loss):
    """``d loss / d parameter`` of every parameter of the model."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters)


@pytest.fixture
def recorder(monkeypatch):
    """Replaces Adam by something that records gradients and rates, and moves nothing."""
    updates = []

    class Recorder(torch.optim.AdamW):
        def step(self, closure=None):
            (group,) = self.param_groups
            updates.append((group["lr"], [p.grad.clone() for p in group["params"]]))

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    return updates


@every_model
def test_gradient_and_objective_are_those_of_log_prob(make, recorder):
    model = make(seed=1, dtype=torch.float64)
    batch = ragged_batch([6, 1, 4], missing=1)
    result = fit(model, batch, num_iters=1, pseudocount=0.3)
    log_prob = model.distribution(batch).log_prob(batch.obs).sum()
    objective = log_prob + log_prior(model, 0.3)
    assert_allclose(result.log_prob_history, [log_prob.item()], **EXACT)
    assert_allclose(result.objective_history, [objective.item()], **EXACT)
    ((_, found),) = recorder
    for ours, expected in zip(found, gradients(model, -objective), strict=True):
        assert_close(ours, expected, **EXACT)


def mean_gradient(updates):
    return [torch.stack(parts).mean(0) for parts in zip(*(g for _, g in updates), strict=True)]


class TestMinibatches:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
    def test_an_epoch_averages_to_the_full_gradient(self, batch_size, recorder):
        model = PointCHMM(CLONES, 2, learn_initial=True, dtype=torch.float64)
        batch = ragged_batch([6, 1, 4, 3, 2, 5])
        epoch = 6 // batch_size
        result = fit(model, batch, num_iters=2 * epoch, batch_size=batch_size, pseudocount=0.2)
        log_prob = model.distribution(batch).log_prob(batch.obs).sum()
        expected = gradients(model, -log_prob - log_prior(model, 0.2))
        for half in (recorder[:epoch], recorder[epoch:]):
            for ours, full in zip(mean_gradient(half), expected, strict=True):
                assert_close(ours, full, **EXACT)
        history = result.log_prob_history.reshape(2, epoch)
        assert_allclose(history.mean(1), np.full(2, log_prob.item()), **EXACT)
        if 1 < epoch < 6:
            assert not np.isclose(history[0], history[1]).all()  # each epoch in an order of its own

    def test_unequal_minibatches_are_unbiased_over_orders(self, recorder):
        model = PointCHMM(CLONES, 2, dtype=torch.float64)
        batch = ragged_batch([4, 2, 3])
        for seed in range(120):
            fit(model, batch, num_iters=2, batch_size=2, seed=seed)
        log_prob = model.distribution(batch).log_prob(batch.obs).sum()
        (expected,) = gradients(model, -log_prob)
        for place in (0, 1):  # the minibatch of two, and the one of one
            draws = torch.stack([g for _, (g,) in recorder[place::2]])
            error = (draws.mean(0) - expected).abs()
            assert (error <= 4.5 * draws.std(0) / math.sqrt(120) + 1e-12).all()

    @pytest.mark.parametrize("burn_in", [0, 3, 32])
    def test_minibatches_of_segments_average_to_all_segments(self, burn_in, recorder):
        model = PointCHMM(CLONES, 2, learn_initial=True, dtype=torch.float64)
        batch = ragged_batch([13, 7])
        assert len(batch.segments(4).batch) == 6
        fit(model, batch, num_iters=1, segment_length=4, burn_in=burn_in)
        fit(model, batch, num_iters=3, segment_length=4, burn_in=burn_in, batch_size=2)
        (_, whole), *parts = recorder
        for mean, expected in zip(mean_gradient(parts), whole, strict=True):
            assert_close(mean, expected, **EXACT)

    def test_training_with_minibatches(self):
        batch = ragged_batch([20] * 12)
        model = PointCHMM(CLONES, 2)
        result = fit(model, batch, num_iters=60, batch_size=4)
        assert result.bits_per_step < 0.8 * bits_per_step(model, batch)
        assert_allclose(result.bits_per_step, bits_per_step(result.model, batch), **EXACT)


class TestSegments:
    @pytest.mark.parametrize("burn_in", [0, 2, 32])
    @pytest.mark.parametrize("length", [2, 3, 5, 50])
    def test_carried_beliefs_keep_the_likelihood_exact(self, length, burn_in):
        model = PointCHMM(CLONES, 2, learn_initial=True, dtype=torch.float64)
        batch = ragged_batch([9, 6, 1], missing=2)
        for data in (batch, batch[0]):
            result = fit(model, data, num_iters=1, segment_length=length, burn_in=burn_in)
            assert_allclose(result.log_prob_history, [log_likelihood(model, data)], **EXACT)

    @pytest.mark.parametrize(("length", "burn_in"), [(9, 0), (3, 32), (2, 7)])
    @pytest.mark.parametrize("learn_initial", [False, True])
    def test_gradient_is_exact_where_everything_earlier_is_seen(
        self, length, burn_in, learn_initial, recorder
    ):
        model = PointCHMM(CLONES, 2, learn_initial=learn_initial, dtype=torch.float64)
        batch = ragged_batch([9, 6], missing=1)
        fit(model, batch, num_iters=1)
        fit(model, batch, num_iters=1, segment_length=length, burn_in=burn_in)
        (_, whole), (_, segments) = recorder
        assert_close(whole, segments, **EXACT)

    def test_the_bias_falls_geometrically_with_the_burn_in(self, recorder):
        golden = load_golden("medium")
        counts, clones = golden.counts, CloneStructure(golden.num_clones)
        model = PointCHMM.from_counts(clones, counts, pseudocount=golden.pseudocount)
        walk = SequenceBatch.from_arrays(golden.obs, golden.actions, num_actions=4)
        fit(model, walk, num_iters=1)
        for burn_in in (0, 5, 10, 15):
            fit(model, walk, num_iters=1, segment_length=25, burn_in=burn_in)
        (whole,), *segments = (gradient for _, gradient in recorder)
        errors = [float((found - whole).norm() / whole.norm()) for (found,) in segments]
        assert 1e-3 < errors[0] < 0.1  # without burn-in there is something to see
        for one, next_one in itertools.pairwise(errors):
            assert next_one < one / 20
        assert errors[-1] < 1e-7

    def test_beliefs_are_refreshed_every_epoch(self):
        model = PointCHMM(CLONES, 2, dtype=torch.float64)
        batch = ragged_batch([30, 20])
        result = fit(model, batch, num_iters=6, segment_length=5, schedule="constant")
        # With one update an epoch, every entry is the exact likelihood of the model it describes.
        for k in range(1, 6):
            shorter = fit(model, batch, num_iters=k, segment_length=5, schedule="constant")
            expected = log_likelihood(shorter.model, batch)
            assert_allclose(result.log_prob_history[k], expected, **EXACT)


class TestSchedules:
    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("constant", [0.3] * 4),
            ("exponential", [0.3 * 0.01 ** (k / 4) for k in range(4)]),
            (
                "cosine",
                [0.3 * (0.01 + 0.99 * (1 + math.cos(math.pi * k / 4)) / 2) for k in range(4)],
            ),
        ],
    )
    def test_learning_rates(self, schedule, expected, recorder):
        fit(PointCHMM(CLONES, 2), ragged_batch(), num_iters=4, learning_rate=0.3, schedule=schedule)
        assert_allclose([rate for rate, _ in recorder], expected, rtol=1e-12)

    def test_clipping_is_per_observed_step(self, recorder):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([20], missing=4)
        fit(model, batch, num_iters=1)
        fit(model, batch, num_iters=1, clip_norm=1e-3)
        fit(model, batch, num_iters=1, clip_norm=1e3)
        free, clipped, loose = (g for _, (g,) in recorder)
        assert_close(loose, free, **EXACT)
        assert_allclose(clipped.norm(), 1e-3 * batch.num_observed, rtol=1e-5)
        assert_allclose(clipped / clipped.norm(), free / free.norm(), rtol=1e-6)

    def test_weight_decay_is_decoupled(self):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch()
        options = {"num_iters": 1, "learning_rate": 0.5, "schedule": "constant"}
        plain = fit(model, batch, **options).model.transition.logits
        decayed = fit(model, batch, weight_decay=0.2, **options).model.transition.logits
        assert_close(decayed, plain - 0.5 * 0.2 * model.transition.logits, **EXACT)


class TestZeros:
    OPTIONS = (
        {"weight_decay": 0.3},
        {"pseudocount": 0.1},
        {"entropy_weight": 0.1},
        {"clip_norm": 0.1},
        {"segment_length": 4},
    )

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("parameterization", ["softmax", "counts"])
    def test_structural_zeros_stay_exactly_zero(self, options, parameterization):
        counts = torch.rand(2, 6, 6, dtype=torch.float64) + 0.5
        counts[torch.rand(2, 6, 6) < 0.3] = 0.0
        counts[:, :, 0] = 1.0
        model = PointCHMM.from_counts(CLONES, counts, parameterization=parameterization)
        walk = ragged_batch([15, 10])
        batch = SequenceBatch.from_arrays(
            model.distribution(walk).sample(), walk.actions, lengths=walk.lengths
        )
        result = fit(model, batch, num_iters=10, **options)
        probs = result.model.transition.table().values.detach().exp()
        assert torch.equal(probs == 0, counts == 0)
        assert math.isfinite(result.bits_per_step) and np.isfinite(result.objective_history).all()
        for parameter in result.model.parameters():
            assert not parameter.isnan().any()

    def test_frozen_probabilities_stay(self):
        frozen = torch.full((2, 6, 6), math.nan, dtype=torch.float64)
        frozen[0, :, 2] = 0.25
        frozen[1, 4] = torch.tensor([0.5, 0.25, 0, 0, 0.25, 0])
        model = PointCHMM(CLONES, 2, frozen=frozen, dtype=torch.float64)
        result = fit(model, ragged_batch([15, 10]), num_iters=10, weight_decay=0.1)
        values = result.model.transition.table().values
        kept = ~frozen.isnan()
        assert torch.equal(values[kept], frozen[kept].log())
        assert not torch.equal(values[~kept], model.transition.table().values[~kept])


class TestObjectives:
    def test_weighted_tasks(self, recorder):
        model = PointCHMM(CLONES, 2, dtype=torch.float64)
        tasks = [ragged_batch([6, 4]), ragged_batch([5], seed=9), ragged_batch([3], seed=5)[0]]
        weights = [1.0, 0.25, 3.0]
        result = fit(model, tasks, num_iters=1, weights=weights)
        terms = [model.distribution(task).log_prob(task.obs).sum() for task in tasks]
        expected = sum(w * term for w, term in zip(weights, terms, strict=True))
        assert_allclose(result.objective_history, [expected.item()], **EXACT)
        ((_, (found,)),) = recorder
        assert_close(found, gradients(model, -expected)[0], **EXACT)
        assert result.settings["weights"] == weights

    def test_tasks_weigh_one_each(self):
        model = PointCHMM(CLONES, 2, dtype=torch.float64)
        tasks = [ragged_batch([6, 4]), ragged_batch([5], seed=9)]
        together = fit(model, tasks)
        expected = sum(log_likelihood(model, task) for task in tasks)
        assert_allclose(together.log_prob_history[0], expected, **EXACT)
        observed = sum(task.num_observed for task in tasks)
        assert together.data.num_observed == observed
        assert_allclose(
            together.bits_per_step_history[0], -expected / math.log(2) / observed, **EXACT
        )
        after = sum(log_likelihood(together.model, task) for task in tasks)
        assert_allclose(together.bits_per_step, -after / math.log(2) / observed, **EXACT)

    def test_auxiliary_loss_is_subtracted(self, recorder):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch()

        def auxiliary(trained):
            return trained.transition.table().values[0, 0].exp().square().sum() * 7

        result = fit(model, batch, num_iters=1, auxiliary_loss=auxiliary, pseudocount=0.1)
        log_prob = model.distribution(batch).log_prob(batch.obs).sum()
        objective = log_prob + log_prior(model, 0.1) - auxiliary(model)
        assert_allclose(result.objective_history, [objective.item()], **EXACT)
        assert_allclose(result.log_prob_history, [log_prob.item()], **EXACT)
        ((_, (found,)),) = recorder
        assert_close(found, gradients(model, -objective)[0], **EXACT)

    @pytest.mark.parametrize("weight", [0.5, -0.5])
    def test_entropy_of_the_rows(self, weight, recorder):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch()
        result = fit(model, batch, num_iters=1, entropy_weight=weight)
        log_table = model.transition.table().values
        entropy = -(log_table.exp() * log_table).sum()
        objective = model.distribution(batch).log_prob(batch.obs).sum() + weight * entropy
        assert_allclose(result.objective_history, [objective.item()], **EXACT)
        ((_, (found,)),) = recorder
        assert_close(found, gradients(model, -objective)[0], **EXACT)


class TestPromises:
    @every_model
    @pytest.mark.parametrize(
        "options", [{}, {"batch_size": 2}, {"segment_length": 3}], ids=["full", "mini", "segments"]
    )
    def test_leaves_everything_else_alone(self, make, options):
        model, batch = make(), ragged_batch([7, 5, 4])
        with touches_nothing(model):
            result = fit(model, batch, **options)
        assert result.data is batch and result.settings["method"] == "svi"
        assert not same_state(result.model, model)
        assert all(p.grad is None or not p.grad.any() for p in result.model.parameters())
        assert_allclose(result.bits_per_step, bits_per_step(result.model, batch), rtol=1e-5)

    def test_leaves_everything_alone_when_it_fails(self):
        model = PointCHMM.from_counts(CLONES, torch.eye(6).expand(2, 6, 6))
        batch = SequenceBatch.from_arrays([0, 1, 2], num_actions=2)
        message = "objective is -inf at update 0: the data are impossible.*learning_rate_grid"
        with touches_nothing(model), pytest.raises(ValueError, match=message):
            fit(model, batch)

    @pytest.mark.parametrize("options", [{"batch_size": 2}, {"segment_length": 3, "batch_size": 2}])
    def test_seeds(self, options):
        model, batch = PointCHMM(CLONES, 2), ragged_batch([7, 5, 4, 6])

        def history(seed):
            return fit(model, batch, num_iters=8, seed=seed, **options).log_prob_history

        assert np.array_equal(history(1), history(1))
        assert not np.array_equal(history(1), history(2))

    def test_histories_are_before_each_update(self):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([20])
        result = fit(model, batch, num_iters=5, schedule="constant")
        assert len(result.seconds_history) == result.num_iters == 5
        for k in range(1, 5):
            shorter = fit(model, batch, num_iters=k, schedule="constant")
            expected = log_likelihood(shorter.model, batch)
            assert_allclose(result.log_prob_history[k], expected, **EXACT)

    def test_tolerance_stops_and_says_so(self):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([20])
        options = {"pseudocount": 1.0, "schedule": "constant", "num_iters": 300}
        result = fit(model, batch, tol=1e-4, patience=10, **options)
        assert result.converged and result.num_iters == len(result.objective_history) - 1 < 300
        gain = max(result.objective_history[-10:]) - max(result.objective_history[:-10])
        assert gain < 1e-4 * math.log(2) * batch.num_observed
        options["num_iters"] = 12
        assert not fit(model, batch, **options).converged

    def test_an_interrupt_keeps_what_was_done(self, monkeypatch):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([20])
        expected = fit(model, batch, num_iters=3, schedule="constant")
        loss = interrupted_at(4, Trace_ELBO.differentiable_loss)
        monkeypatch.setattr(Trace_ELBO, "differentiable_loss", loss)
        with touches_nothing(model):
            result = fit(model, batch, num_iters=100, schedule="constant")
        assert result.interrupted and result.num_iters == 3
        assert_close(result.model.state_dict(), expected.model.state_dict(), **EXACT)

    def test_models_of_equal_names_in_the_users_store_do_not_mix(self):
        batch = ragged_batch([10])
        first, second = PointCHMM(CLONES, 2, seed=1), PointCHMM(CLONES, 2, seed=2)
        alone = fit(second, batch).model
        first(batch)  # a PyroModule registers its parameters when it runs
        second_too = fit(second, batch).model
        assert same_state(alone, second_too)

    def test_a_model_without_free_parameters_is_refused(self):
        model = PointCHMM(CLONES, 2)
        model.transition.logits.requires_grad_(False)
        with pytest.raises(ValueError, match=r"no free parameters.*expected at least one"):
            fit(model, ragged_batch())


class TestGrid:
    def test_best_first_and_all_from_one_start(self):
        model, batch = PointCHMM(CLONES, 2, dtype=torch.float64), ragged_batch([30])
        with touches_nothing(model):
            results = learning_rate_grid(
                model, batch, learning_rates=(1e-4, 0.2, 0.01), num_iters=15, progress=False
            )
        assert list(results) == [0.2, 0.01, 1e-4]
        values = [result.bits_per_step for result in results.values()]
        assert values == sorted(values)
        alone = fit(model, batch, learning_rate=0.01, num_iters=15)
        assert_allclose(results[0.01].objective_history, alone.objective_history, **EXACT)

    def test_rates_that_diverge_are_left_out(self):
        model, batch = PointCHMM(CLONES, 2), ragged_batch([30])
        options = {"num_iters": 4, "progress": False, "schedule": "constant"}
        results = learning_rate_grid(model, batch, learning_rates=(0.1, math.inf), **options)
        assert list(results) == [0.1]
        with pytest.raises(ValueError, match="no learning rate of"):
            learning_rate_grid(model, batch, learning_rates=(math.inf,), **options)

    def test_ctrl_c_ends_the_comparison(self, monkeypatch):
        loss = interrupted_at(4, Trace_ELBO.differentiable_loss)
        monkeypatch.setattr(Trace_ELBO, "differentiable_loss", loss)
        model, batch = PointCHMM(CLONES, 2), ragged_batch([30])
        results = learning_rate_grid(model, batch, learning_rates=(0.1, 0.2), progress=False)
        assert list(results) == [0.1] and results[0.1].interrupted

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"schedule": "linear"}, "schedule = 'linear', expected one of"),
            ({"batch_size": 0}, "batch_size = 0, expected at least 1"),
            ({"num_iters": 0}, "num_iters = 0, expected at least 1"),
            ({"learning_rates": (0.1, -0.1)}, "learning_rate = -0.1, expected a positive"),
            ({"learning_rates": ()}, "learning_rates is empty, expected at least one"),
        ],
        ids=str,
    )
    def test_bad_options_are_no_divergence(self, options, message):
        with pytest.raises(ValueError, match=f"^{message}"):
            learning_rate_grid(PointCHMM(CLONES, 2), ragged_batch([30]), progress=False, **options)


@every_model
def test_every_parameterization_trains(make):
    model, batch = make(seed=4), ragged_batch([40, 20, 30])
    result = fit(model, batch, num_iters=60)
    assert result.bits_per_step < 0.85 * bits_per_step(model, batch)
    assert result.bits_per_step_history[-1] < result.bits_per_step_history[0]


def test_map_reaches_the_fixed_point_of_em():
    batch = ragged_batch([30, 20])
    model = PointCHMM(CLONES, 2, dtype=torch.float64)
    em = fit_em(model, batch, num_iters=100, pseudocount=1.0, progress=False)
    result = fit(model, batch, num_iters=120, pseudocount=1.0)
    assert_allclose(result.objective_history[-1], em.objective_history[-1], rtol=1e-6)
    found, expected = (x.model.transition.table().values.exp() for x in (result, em))
    assert_close(found, expected, rtol=0, atol=2e-3)


def test_a_users_own_loop_trains_too():
    batch = ragged_batch([20, 10])
    model = PointCHMM(CLONES, 2, dtype=torch.float64)
    svi = SVI(model, lambda batch: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    expected = log_likelihood(model, batch)
    losses = [svi.step(batch) for _ in range(20)]
    assert_allclose(losses[0], -expected, **EXACT)
    assert losses[-1] < 0.9 * losses[0]
