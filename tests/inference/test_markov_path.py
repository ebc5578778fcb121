"""Markov chains over paths and their relaxed draws against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import TOL
from goodness_of_fit import MIN_P_VALUE, p_value
from torch.testing import assert_close

from chmm_pyro.inference.markov_path import MarkovPath, follow, usable_edges

EXACT = TOL["exact"][torch.float64]


def random_edges(steps, width, seed=0, density=1.0):
    """Usable edges of a random support, and which steps exist."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(steps, width, width, generator=generator) < density
    allowed[0, 1:] = False
    allowed[0, 0, 0] = allowed[:, 0, 0] = True
    inside = torch.ones(steps, dtype=torch.bool)
    return usable_edges(allowed, inside)


def chain(steps=4, width=3, *, rows=None, seed=0, density=1.0, **options):
    usable = random_edges(steps, width, seed, density)
    generator = torch.Generator().manual_seed(seed + 100)
    logits = torch.randn(steps, rows or width, width, generator=generator, dtype=torch.float64)
    return MarkovPath(logits, usable, **options)


def all_paths(found):
    """Every possible path and its log-probability, one factor at a time."""
    steps, width, _ = found.event_shape
    paths = {}
    for path in itertools.product(range(width), repeat=steps):
        old, score = 0, 0.0
        for t, new in enumerate(path):
            if not found.usable[t, old, new]:
                break
            row = found.log_conditional[t, 0 if found.log_conditional.shape[1] == 1 else old]
            score += float(row[new])
            old = new
        else:
            paths[path] = score
    return paths


def edges_of(path, width):
    value = torch.zeros(len(path), width, width, dtype=torch.float64)
    for t, (old, new) in enumerate(zip((0, *path[:-1]), path, strict=True)):
        value[t, old, new] = 1
    return value


CHAINS = {
    "markov": {},
    "sparse": {"density": 0.5, "steps": 5},
    "independent": {"rows": 1},
    "one step": {"steps": 1},
}


@pytest.fixture(params=CHAINS)
def options(request):
    return CHAINS[request.param]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 13])
def test_follow_is_a_loop_over_products(count):
    torch.manual_seed(count)
    steps = torch.rand(2, count, 3, 3, dtype=torch.float64)
    first = torch.rand(2, 3, dtype=torch.float64)
    expected = [first]
    for t in range(count):
        expected.append((expected[-1].unsqueeze(-2) @ steps[:, t]).squeeze(-2))
    assert_close(follow(first, steps), torch.stack(expected, -2), **EXACT)


def test_usable_edges_lie_on_whole_paths():
    torch.manual_seed(1)
    allowed = torch.rand(6, 5, 3, 3) < 0.45
    allowed[:, 0, 1:] = False
    inside = torch.arange(5) < torch.tensor([5, 5, 5, 4, 2, 1]).unsqueeze(-1)
    allowed &= inside[..., None, None]
    found = [0, 0]
    for b in range(6):
        steps = int(inside[b].sum())
        expected = torch.zeros(5, 3, 3, dtype=torch.bool)
        for path in itertools.product(range(3), repeat=steps):
            edges = edges_of(path, 3).bool()
            if allowed[b, :steps][edges].all():
                expected[:steps] |= edges
        if expected.any():
            found[0] += 1
            assert torch.equal(usable_edges(allowed[b], inside[b]), expected)
        else:
            found[1] += 1
            with pytest.raises(ValueError, match="impossible at step"):
                usable_edges(allowed[b], inside[b])
    assert min(found) > 0


def test_impossible_data_are_named_by_step_and_sequence():
    allowed = torch.ones(2, 4, 2, 2, dtype=torch.bool)
    allowed[1, 2] = False
    with pytest.raises(ValueError, match=r"impossible at step 2 of sequence \[1\]"):
        usable_edges(allowed, torch.ones(2, 4, dtype=torch.bool))


def test_probabilities_sum_to_one_and_moments_are_sums_over_paths(options):
    found = chain(**options)
    paths = all_paths(found)
    scores = torch.tensor(list(paths.values()), dtype=torch.float64)
    values = torch.stack([edges_of(path, 3) for path in paths])
    assert_close(scores.exp().sum().item(), 1.0, **EXACT)
    assert_close(found.log_prob(values), scores, **EXACT)
    assert_close(found.mean, torch.einsum("n,n...->...", scores.exp(), values), **EXACT)
    assert_close(found.entropy(), -(scores.exp() * scores).sum(), **EXACT)
    best = max(paths, key=paths.__getitem__)
    assert tuple(found.mode().tolist()) == best


def test_straight_through_draws_have_the_probabilities(options):
    found = chain(**options, relaxation="straight_through")
    torch.manual_seed(0)
    draws = found.sample((4000,))
    assert found.support.check(draws).all() and ((draws == 0) | (draws == 1)).all()
    paths = [tuple(path) for path in draws.sum(-2).argmax(-1).tolist()]
    probabilities = {path: torch.tensor(x).exp().item() for path, x in all_paths(found).items()}
    assert p_value(paths, probabilities) > MIN_P_VALUE


def test_relaxed_draws_are_inside_and_sharpen_to_the_exact_ones(options):
    logits_of = {"gumbel": 0.7, "straight_through": 0.7, "cold": 1e-3}
    draws = {}
    for name, temperature in logits_of.items():
        relaxation = "gumbel" if name == "cold" else name
        found = chain(**options, relaxation=relaxation, temperature=temperature)
        torch.manual_seed(5)
        draws[name] = found.rsample((50,))
        assert found.support.check(draws[name]).all()
    relaxed = draws["gumbel"]
    assert ((relaxed > 0) == found.usable).all()
    near = (draws["cold"] - draws["straight_through"]).abs().flatten(1).amax(1) < 1e-6
    assert near.float().mean() > 0.9  # the others had two picks almost tied


def test_gradient_of_draws(options):
    found = chain(**options)

    def draw(logits):
        torch.manual_seed(2)
        return MarkovPath(logits, found.usable, temperature=0.8).rsample()

    logits = chain(**options).log_conditional.nan_to_num(neginf=0.0).requires_grad_()
    assert torch.autograd.gradcheck(draw, [logits], fast_mode=True)

    def straight(logits):
        torch.manual_seed(2)
        hard = MarkovPath(
            logits, found.usable, temperature=0.8, relaxation="straight_through"
        ).rsample()
        return (hard * torch.arange(hard.numel()).view(hard.shape)).sum()

    (found_gradient,) = torch.autograd.grad(straight(logits), logits)
    relaxed = draw(logits)
    weights = torch.arange(relaxed.numel()).view(relaxed.shape)
    (expected,) = torch.autograd.grad((relaxed * weights).sum(), logits)
    assert_close(found_gradient, expected, **EXACT)


def test_gradients_of_moments(options):
    logits = chain(**options).log_conditional.nan_to_num(neginf=0.0).requires_grad_()
    usable = chain(**options).usable
    assert torch.autograd.gradcheck(lambda x: MarkovPath(x, usable).mean, [logits], fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x: MarkovPath(x, usable).entropy(), [logits], fast_mode=True
    )


def test_padding_has_no_weight():
    usable = torch.stack([random_edges(4, 3), random_edges(4, 3)])
    usable[1, 2:] = False
    logits = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    found = MarkovPath(logits, usable)
    short = MarkovPath(logits[1, :2], usable[1, :2])
    assert (found.rsample()[1, 2:] == 0).all()
    assert_close(found.mean[1, :2], short.mean, **EXACT)
    assert_close(found.entropy()[1], short.entropy(), **EXACT)
    assert_close(found.mode()[1, :2], short.mode())
    found.log_prob(found.rsample()).sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[1, 2:] == 0).all()


def test_long_chains_stay_inside(dtype):
    usable = random_edges(10_000, 4, density=0.7)
    torch.manual_seed(0)
    logits = 5 * torch.randn(10_000, 4, 4, dtype=dtype)
    for relaxation in ("gumbel", "straight_through", "mean"):
        found = MarkovPath(logits, usable, relaxation=relaxation)
        value = found.rsample()
        assert found.support.check(value)
        assert found.log_prob(value).isfinite()


def test_bad_options():
    usable = random_edges(2, 2)
    with pytest.raises(ValueError, match="relaxation = 'soft', expected one of"):
        MarkovPath(torch.zeros(2, 2, 2), usable, relaxation="soft")
    with pytest.raises(ValueError, match="temperature = 0, expected a positive"):
        MarkovPath(torch.zeros(2, 2, 2), usable, temperature=0)
