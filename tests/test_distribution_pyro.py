"""CloneHMM as a site of any Pyro program: plates, handlers, latent parameters, prediction."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pyro
import pytest
import torch
from conftest import TOL
from goodness_of_fit import MIN_P_VALUE, p_value
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.testing import assert_close

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM

CLONES = CloneStructure([2, 3, 1])
NUM_ACTIONS, NUM_STATES, NUM_STEPS = 2, 6, 4
EXACT = TOL["exact"][torch.float64]

INITIAL = torch.linspace(-0.5, 0.7, NUM_STATES, dtype=torch.float64)
LOGITS = torch.sin(torch.arange(NUM_ACTIONS * NUM_STATES**2, dtype=torch.float64)).view(2, 6, 6) * 2
OBS = torch.tensor(
    [[0, 1, 2, 1], [1, 1, 0, 0], [2, 0, 1, 1], [1, 0, -1, 0], [0, 0, 2, 1], [1, 2, 0, 1]]
)
ACTIONS = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]])
LENGTHS = torch.tensor([4, 3, 1, 4, 2, 4])


@pytest.fixture(autouse=True)
def validation() -> Iterator[None]:
    with pyro.validation_enabled(True):
        yield


def hmm_of(chosen=slice(None), initial=INITIAL, logits=LOGITS):
    return CloneHMM(CLONES, initial, logits, ACTIONS[chosen], lengths=LENGTHS[chosen])


def in_a_plate(obs=OBS, **plate):
    """The sequences, or a subsample of them, with fixed parameters."""
    with pyro.plate("sequences", len(OBS), **plate) as chosen:
        return pyro.sample("obs", hmm_of(chosen), obs=None if obs is None else obs[chosen])


def with_latent_parameters(obs=OBS):
    normal = dist.Normal(torch.zeros(2, 6, 6, dtype=torch.float64), 1.0)
    logits = pyro.sample("logits", normal.to_event(3))
    with pyro.plate("sequences", len(OBS)):
        return pyro.sample("obs", hmm_of(logits=logits), obs=obs)


def traced(program, *args, **kwargs):
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


def test_plate():
    site = traced(in_a_plate).nodes["obs"]
    assert site["log_prob"].shape == (6,)
    assert_close(site["log_prob"], hmm_of().log_prob(OBS), **EXACT)


def test_plate_expands_one_distribution_to_many_sequences():
    def program():
        with pyro.plate("copies", 3):
            return pyro.sample("obs", CloneHMM(CLONES, INITIAL, LOGITS, ACTIONS[0]), obs=obs)

    obs = OBS[[0, 1, 5]]
    alone = CloneHMM(CLONES, INITIAL, LOGITS, ACTIONS[0])
    expected = torch.stack([alone.log_prob(row) for row in obs])
    assert_close(traced(program).nodes["obs"]["log_prob"], expected, **EXACT)
    obs = None
    drawn = program()
    assert drawn.shape == (3, NUM_STEPS) and drawn.min() >= 0 and drawn.max() < 3


def test_nested_plates():
    def program():
        with pyro.plate("models", 2, dim=-2), pyro.plate("sequences", 6, dim=-1):
            logits = torch.stack([LOGITS, 2 * LOGITS]).unsqueeze(1)
            pyro.sample("obs", hmm_of(logits=logits), obs=OBS)

    site = traced(program).nodes["obs"]
    expected = torch.stack([hmm_of().log_prob(OBS), hmm_of(logits=2 * LOGITS).log_prob(OBS)])
    assert_close(site["log_prob"], expected, **EXACT)


def test_subsampling_is_unbiased():
    parts = [torch.tensor(pair) for pair in ([0, 3], [1, 4], [2, 5])]
    sums = [traced(in_a_plate, subsample=part).log_prob_sum() for part in parts]
    for part, found in zip(parts, sums, strict=True):
        assert_close(found, 3.0 * hmm_of(part).log_prob(OBS[part]).sum(), **EXACT)
    assert_close(torch.stack(sums).mean(), hmm_of().log_prob(OBS).sum(), **EXACT)
    drawn = traced(in_a_plate, subsample_size=2)
    assert drawn.nodes["obs"]["log_prob"].shape == (2,)


def test_scale():
    logits = LOGITS.clone().requires_grad_()

    def program():
        with pyro.plate("sequences", 6):
            pyro.sample("obs", hmm_of(logits=logits), obs=OBS)

    scaled = traced(poutine.scale(program, scale=0.25)).log_prob_sum()
    whole = traced(program).log_prob_sum()
    assert_close(scaled, 0.25 * whole, **EXACT)
    (found,) = torch.autograd.grad(scaled, logits)
    (expected,) = torch.autograd.grad(whole, logits)
    assert_close(found, 0.25 * expected, **EXACT)


def test_mask():
    mask = torch.tensor([True, False, True, True, False, False])
    expected = torch.where(mask, hmm_of().log_prob(OBS), 0.0)
    handled = traced(poutine.mask(in_a_plate, mask=mask))
    assert_close(handled.nodes["obs"]["log_prob"], expected, **EXACT)
    assert_close(hmm_of().mask(mask).log_prob(OBS), expected, **EXACT)


def test_masked_impossible_sequences_leave_a_finite_gradient():
    logits = LOGITS.clone()
    logits[:, :, 5] = -torch.inf
    logits.requires_grad_()
    possible = torch.tensor([False, True, True, True, True, False])  # symbol 2 is state 5
    masked = hmm_of(logits=logits).mask(possible).log_prob(OBS).sum()
    (found,) = torch.autograd.grad(masked, logits)
    kept = hmm_of(possible, logits=logits).log_prob(OBS[possible]).sum()
    (expected,) = torch.autograd.grad(kept, logits)
    assert_close(masked, kept, **EXACT)
    assert_close(found, expected, **EXACT)


def test_to_event_sums_over_sequences():
    joint = hmm_of().to_event(1)
    assert joint.batch_shape == () and joint.event_shape == (6, NUM_STEPS)
    assert_close(joint.log_prob(OBS), hmm_of().log_prob(OBS).sum(), **EXACT)


def test_conditioning_is_observing():
    conditioned = pyro.condition(in_a_plate, data={"obs": OBS})
    assert_close(
        traced(conditioned, obs=None).log_prob_sum(), hmm_of().log_prob(OBS).sum(), **EXACT
    )
    undone = traced(poutine.uncondition(in_a_plate))
    assert not undone.nodes["obs"]["is_observed"]


def test_substituted_parameters():
    program = poutine.condition(with_latent_parameters, data={"logits": LOGITS})
    trace = traced(program)
    prior = dist.Normal(0.0, 1.0).log_prob(LOGITS).sum()
    assert_close(trace.log_prob_sum(), prior + hmm_of().log_prob(OBS).sum(), **EXACT)


def test_data_out_of_range_are_refused_by_the_program():
    wrong = OBS.clone()
    wrong[1, 0] = 3
    with pytest.raises(ValueError, match=r"obs\[1, 0\] = 3, expected a symbol below 3"):
        traced(in_a_plate, wrong)


def all_sequences(length):
    return torch.tensor(list(itertools.product(range(3), repeat=length)))


@pytest.mark.parametrize("parallel", [True, False])
def test_prior_prediction(parallel):
    draws = 3000 if parallel else 300
    samples = Predictive(in_a_plate, num_samples=draws, parallel=parallel)(obs=None)["obs"]
    assert samples.shape == (draws, 6, NUM_STEPS)
    inside = torch.arange(NUM_STEPS) < LENGTHS[:, None]
    assert (samples[:, ~inside] == 0).all()
    for number in (1, 4):
        length = int(LENGTHS[number])
        outcomes = all_sequences(length)
        alone = CloneHMM(CLONES, INITIAL, LOGITS, ACTIONS[number, : length - 1])
        probabilities = dict(
            zip(map(tuple, outcomes.tolist()), alone.log_prob(outcomes).exp().tolist(), strict=True)
        )
        found = map(tuple, samples[:, number, :length].tolist())
        assert p_value(found, probabilities) > MIN_P_VALUE


def test_posterior_prediction_uses_the_draws_of_the_parameters():
    # Two draws of the parameters: one always stays with its symbol, the other always leaves.
    stay = torch.full((2, 6, 6), -torch.inf, dtype=torch.float64)
    owner = torch.tensor(CLONES.symbol_of_state)
    same = owner[:, None] == owner
    logits = torch.stack([stay.masked_fill(same, 0.0), stay.masked_fill(~same, 0.0)])
    for parallel in (True, False):
        # Pyro wants the dimension of the plate spelled out where events have dimensions.
        draws = logits.unsqueeze(1) if parallel else logits
        predict = Predictive(with_latent_parameters, {"logits": draws}, parallel=parallel)
        obs = predict(obs=None)["obs"]
        assert obs.shape == (2, 6, NUM_STEPS)
        moved = (obs[:, :, 1:] != obs[:, :, :-1])[:, LENGTHS == NUM_STEPS]
        assert not moved[0].any() and moved[1].all()


def elbos():
    return [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    ]


@pytest.mark.parametrize("elbo", elbos(), ids=["plain", "vectorized", "mean field", "enumerated"])
def test_variational_inference_of_latent_parameters(elbo):
    guide = AutoNormal(with_latent_parameters, init_scale=0.01)
    svi = SVI(with_latent_parameters, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0] - 5.0


def test_the_elbo_of_a_point_is_the_joint_density():
    guide = AutoDelta(with_latent_parameters, init_loc_fn=lambda site: LOGITS)
    loss = Trace_ELBO().differentiable_loss(with_latent_parameters, guide)
    logits = LOGITS.clone().requires_grad_()
    joint = dist.Normal(0.0, 1.0).log_prob(logits).sum() + hmm_of(logits=logits).log_prob(OBS).sum()
    assert_close(loss, -joint, **EXACT)
    (found,) = torch.autograd.grad(loss, list(guide.parameters()))
    (expected,) = torch.autograd.grad(-joint, logits)
    assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("outside", [True, False], ids=["one choice", "a choice per sequence"])
def test_a_mixture_summed_out_by_enumeration(outside):
    initial = torch.stack([INITIAL, -INITIAL, 0 * INITIAL])
    tables = torch.stack([LOGITS, LOGITS.flip(-1), LOGITS.transpose(-1, -2)])
    tables.requires_grad_()
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)

    def choose():
        return pyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})

    def program():
        kind = choose() if outside else None
        with pyro.plate("sequences", 6):
            kind = kind if outside else choose()
            pyro.sample("obs", hmm_of(initial=initial[kind], logits=tables[kind]), obs=OBS)

    each = torch.stack(
        [hmm_of(initial=i, logits=t).log_prob(OBS) for i, t in zip(initial, tables, strict=True)]
    )
    each = each.sum(-1, keepdim=True) if outside else each
    expected = (each + weights.log()[:, None]).logsumexp(0).sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(program, lambda: None)
    assert_close(loss, -expected, **EXACT)
    (found,) = torch.autograd.grad(loss, tables)
    (gradient,) = torch.autograd.grad(-expected, tables)
    assert_close(found, gradient, **EXACT)


def test_threads_stay_as_the_user_set_them():
    # In a process of its own: compiled kernels start only once.
    script = """
        import torch
        from chmm_pyro import CloneHMM, CloneStructure

        torch.set_num_threads(1)
        logits = torch.zeros(1, 4, 4, requires_grad=True)
        hmm = CloneHMM(CloneStructure([2, 2]), torch.zeros(4), logits, torch.zeros(9).long())
        hmm.log_prob(torch.zeros(10).long()).backward()
        assert torch.get_num_threads() == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
