"""The step-by-step program against the sum over all paths, and against the collapsed model."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import pyro
import pytest
import reference
import torch
from conftest import TOL
from goodness_of_fit import MIN_P_VALUE, p_value
from instances import Instance, random_instance
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO, infer_discrete
from torch.testing import assert_close

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.models.enumerated import EnumeratedCHMM
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

CLONES = (2, 3, 1)
ACTIONS = 2
EXACT = TOL["exact"][torch.float64]

KINDS = {
    "conditional": {},
    "joint": {"action_model": "joint"},
    "learned initial": {"learn_initial": True},
    "learned actions": {"learn_actions": True},
    "zeros": {"zeros": 0.4, "learn_initial": True},
    "zeros, joint": {"zeros": 0.4, "learn_initial": True, "action_model": "joint"},
}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_length = pytest.mark.parametrize("steps", [1, 2, 5])


class Case(NamedTuple):
    """A model of each class with the same parameters, and sequences that both can produce."""

    enumerated: EnumeratedCHMM
    point: PointCHMM
    batch: SequenceBatch
    instance: Instance

    def log_prob(self, leaves):
        """Sum over all paths of all sequences."""
        return sum(
            reference.log_prob_torch(
                CLONES,
                actions=part.actions,
                obs=part.obs,
                action_model=self.instance.action_model,
                **leaves,
            )
            for part in self.batch
        )

    def leaves(self):
        """Fresh parameters for :meth:`log_prob`, those of the models."""
        initial = self.point.initial.logits.detach().clone().requires_grad_()
        transition = self.point.transition.table().values.detach().clone().requires_grad_()
        found = {"initial_logits": initial, "transition_logits": transition}
        if self.point.action_logits is not None:
            found["action_logits"] = self.point.action_logits.detach().clone().requires_grad_()
        return found


def make_case(steps, kind, lengths=None, seed=0, missing=()):
    """Ragged sequences (unless told) of at most ``steps`` steps; ``missing`` are (number, step)."""
    kind = dict(kind)
    zeros, action_model = kind.pop("zeros", 0.0), kind.get("action_model", "conditional")
    instance = random_instance(
        CLONES, steps, ACTIONS, seed=seed, zeros=zeros, action_model=action_model
    )
    if lengths is None:
        lengths = [steps, 1, max(steps - 2, 1), steps]
    rng = np.random.default_rng(seed)
    obs, actions = zip(*(walk(instance, length, rng) for length in lengths), strict=True)
    for number, step in missing:
        obs[number][step] = MISSING
    batch = SequenceBatch.from_arrays(list(obs), list(actions), num_actions=ACTIONS)
    models = []
    for cls in (EnumeratedCHMM, PointCHMM):
        allowed = torch.tensor(np.isfinite(instance.transition_logits)) if zeros else None
        model = cls(CloneStructure(CLONES), ACTIONS, dtype=torch.float64, allowed=allowed, **kind)
        with torch.no_grad():
            logits = torch.tensor(instance.transition_logits)
            model.transition.logits.copy_(logits.nan_to_num(neginf=0.0))
            if kind.get("learn_initial"):
                model.initial.logits.copy_(torch.tensor(instance.initial_logits))
            if kind.get("learn_actions"):
                model.action_logits.copy_(torch.tensor([0.3, -0.9]))
        models.append(model)
    return Case(*models, batch, instance)


def walk(instance, length, rng):
    """Symbols and actions of a path drawn from the model (actions uniformly where it can)."""
    initial, table = np.exp(instance.log_initial), np.exp(instance.log_transition)
    owner = instance.clones.symbol_of_state
    path, actions = [rng.choice(len(initial), p=initial)], []
    for _ in range(length - 1):
        action = rng.integers(ACTIONS)
        row = table[action, path[-1]]
        actions.append(action)
        path.append(rng.choice(len(row), p=row / row.sum()))
    return owner[path].copy(), np.array(actions, np.int64)


def empty_guide(*args, **arguments):
    pass


def loss_of(model, batch, elbo=None, **arguments):
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if elbo is None else elbo
    return elbo.differentiable_loss(model, empty_guide, batch, **arguments)


def gradients(model):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


NAMES = {
    "initial.logits": "initial_logits",
    "transition.logits": "transition_logits",
    "action_logits": "action_logits",
}


@every_kind
@every_length
@pytest.mark.parametrize("missing", [(), [(0, 0), (3, -1)]], ids=["observed", "missing"])
def test_loss_and_gradient(kind, steps, missing):
    case = make_case(steps, kind, missing=missing)
    leaves = case.leaves()
    expected = case.log_prob(leaves)
    expected.backward()
    loss = loss_of(case.enumerated, case.batch)
    loss.backward()
    assert_close(loss, -expected, **EXACT)
    # The leaves of the oracle are log-probabilities, as good as logits.
    for name, found in gradients(case.enumerated).items():
        assert_close(found, -leaves[NAMES[name]].grad, **EXACT)

    collapsed = -case.point.distribution(case.batch).log_prob(case.batch.obs).sum()
    collapsed.backward()
    assert_close(loss, collapsed, **EXACT)
    assert gradients(case.point).keys() == gradients(case.enumerated).keys()
    for name, found in gradients(case.enumerated).items():
        assert_close(found, gradients(case.point)[name], **EXACT)


@every_kind
@every_length
def test_a_single_sequence_without_telling_pyro_the_plates(kind, steps):
    case = make_case(steps, kind, lengths=[steps])
    expected = case.log_prob(case.leaves())
    assert_close(loss_of(case.enumerated, case.batch[0], TraceEnum_ELBO()), -expected, **EXACT)
    assert_close(loss_of(case.enumerated, case.batch[0]), -expected, **EXACT)


def test_one_clone_per_symbol_is_a_markov_chain():
    model = EnumeratedCHMM(CloneStructure([1, 1, 1]), ACTIONS, dtype=torch.float64)
    batch = SequenceBatch.from_arrays([0, 2, 1, 1], [1, 0, 0])
    table = model.transition.logits.log_softmax(-1)
    expected = math.log(3) - (table[1, 0, 2] + table[0, 2, 1] + table[0, 1, 1])
    assert_close(loss_of(model, batch), expected, **EXACT)


@pytest.mark.parametrize("parameterization", ["counts", "blocks"])
def test_other_parameterizations(parameterization):
    data = make_case(5, {}, missing=[(0, 2)]).batch
    columns = None
    if parameterization == "blocks":
        # Pairs of the first sequence only: the others meet the lumped rest of the rows.
        columns = BlockColumns.from_batch(CloneStructure(CLONES), ACTIONS, data.select([0]))
    enumerated, point = (
        cls(
            CloneStructure(CLONES),
            ACTIONS,
            parameterization=parameterization,
            columns=columns,
            dtype=torch.float64,
        )
        for cls in (EnumeratedCHMM, PointCHMM)
    )
    loss = loss_of(enumerated, data)
    expected = -point.distribution(data).log_prob(data.obs).sum()
    assert_close(loss, expected, **EXACT)
    loss.backward()
    expected.backward()
    for name, found in gradients(enumerated).items():
        assert_close(found, gradients(point)[name], **EXACT)


@pytest.mark.parametrize("shape", [(), (4,)], ids=["shared", "per sequence"])
def test_initial_logits_of_the_caller(shape):
    case = make_case(5, {}, missing=[(1, 0)])
    logits = torch.randn(*shape, 6, dtype=torch.float64)
    logits[..., 1] = -torch.inf
    expected = case.point.distribution(case.batch, initial_logits=logits).log_prob(case.batch.obs)
    found = loss_of(case.enumerated, case.batch, initial_logits=logits)
    assert_close(found, -expected.sum(), **EXACT)
    states = case.enumerated.decode(case.batch, initial_logits=logits)
    hmm = case.point.distribution(case.batch, initial_logits=logits)
    assert torch.equal(states, hmm.posterior_mode(case.batch.obs).states)


def test_scaled_like_any_pyro_program():
    case = make_case(3, {})
    whole = loss_of(case.enumerated, case.batch)
    assert_close(loss_of(poutine.scale(case.enumerated, scale=2.5), case.batch), 2.5 * whole)


@pytest.mark.parametrize(
    "kind", [KINDS["conditional"], KINDS["zeros, joint"]], ids=["plain", "zeros"]
)
def test_values_enumerated_at_each_step(kind):
    case = make_case(5, kind, lengths=[5, 5, 3], missing=[(2, 1), (0, 4)])
    with poutine.enum(first_available_dim=-2), torch.no_grad():
        trace = poutine.trace(case.enumerated).get_trace(case.batch)
    trace.compute_log_prob()
    widths = []
    for t in range(5):
        allowed = [
            6 if part.obs[t] == MISSING else CLONES[part.obs[t]]
            for part in case.batch
            if t < len(part.obs)
        ]
        site = trace.nodes[f"clone_{t}"]
        assert site["value"].numel() == max(allowed)
        # A step's factor holds the clones of two steps and the sequences, nothing more.
        before = widths[-1] if widths else 1
        assert site["log_prob"].numel() == before * max(allowed) * 3
        widths.append(max(allowed))
    assert max(widths[0], widths[2], widths[3]) <= max(CLONES)
    assert widths[1] == widths[4] == 6


def test_training_follows_the_collapsed_model():
    case = make_case(
        6, {"learn_initial": True}, lengths=[6, 1, 4, 2, 6], missing=[(0, 3), (2, 0), (4, 5)]
    )
    enumerated, point = (
        fit_svi(model, case.batch, num_iters=20, progress=False)
        for model in (case.enumerated, case.point)
    )
    assert_close(enumerated.objective_history, point.objective_history, rtol=1e-9, atol=0.0)
    moved = case.point.state_dict()
    for name, value in point.model.state_dict().items():
        assert_close(enumerated.model.state_dict()[name], value, rtol=0.0, atol=1e-8)
        assert (value - moved[name]).abs().max() > 0.5
    assert enumerated.bits_per_step == pytest.approx(point.bits_per_step, rel=1e-9)


def test_training_on_segments_passes_filter_states_on():
    case = make_case(12, {}, lengths=[12, 7])
    options = {"num_iters": 4, "segment_length": 4, "batch_size": 3, "progress": False}
    enumerated, point = (
        fit_svi(model, case.batch, **options) for model in (case.enumerated, case.point)
    )
    for name, value in point.model.state_dict().items():
        assert_close(enumerated.model.state_dict()[name], value, rtol=0.0, atol=1e-8)


def test_pyros_own_svi_trains_it():
    case = make_case(5, {})
    svi = SVI(
        case.enumerated,
        empty_guide,
        pyro.optim.Adam({"lr": 0.1}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )
    losses = [svi.step(case.batch) for _ in range(10)]
    assert losses[-1] < losses[0] - 1.0


@every_kind
def test_most_probable_states(kind):
    case = make_case(5, kind, lengths=[5, 3, 1, 5, 4, 5], missing=[(0, 2), (3, 4), (4, 0)])
    hmm = case.point.distribution(case.batch)
    expected = hmm.posterior_mode(case.batch.obs).states
    assert torch.equal(case.enumerated.decode(case.batch), expected)
    for part, row in zip(case.batch, expected, strict=True):
        assert torch.equal(case.enumerated.decode(part), row[: len(part.obs)])


@pytest.mark.parametrize(
    "kind", [KINDS["conditional"], KINDS["zeros, joint"]], ids=["plain", "zeros"]
)
def test_states_drawn_from_the_posterior(kind):
    case = make_case(4, kind, lengths=[4, 2], missing=[(0, 2)], seed=3)
    copies = 4000
    batch = case.batch.select([0] * copies + [1] * copies)
    draws = case.enumerated.decode(batch, temperature=1)
    assert (draws[copies:, 2:] == MISSING).all()
    for number, part in enumerate(case.batch):
        exact = reference.enumerate_paths(
            CLONES,
            reference.log_normalise(case.point.initial.logits.detach().numpy()),
            case.instance.log_transition,
            part.actions,
            part.obs,
        )
        paths = draws[number * copies : (number + 1) * copies, : len(part.obs)]
        assert p_value(map(tuple, paths.tolist()), exact.paths) > MIN_P_VALUE


def clone_by_clone(case, part):
    """Probabilities of paths if every clone is drawn given the past alone, by the program."""
    initial = case.point.initial.logits.detach().softmax(-1).numpy()
    table = np.exp(case.instance.log_transition)
    paths = {}
    for path in reference.all_paths(CLONES, part.obs).tolist():
        rows = [initial, *(table[a, z] for a, z in zip(part.actions, path, strict=False))]
        value = 1.0
        for row, symbol, state in zip(rows, part.obs, path, strict=True):
            block = row if symbol == MISSING else row[case.instance.clones.states(int(symbol))]
            value *= row[state] / block.sum()
        paths[tuple(path)] = value
    return paths


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive(parallel):
    case = make_case(3, {}, lengths=[3], missing=[(0, 1)])
    part = case.batch[0]
    draws = 4000 if parallel else 100
    samples = Predictive(case.enumerated, num_samples=draws, parallel=parallel)(part)
    states = case.enumerated.states(samples, part)
    assert states.shape == (draws, 3)
    assert p_value(map(tuple, states.tolist()), clone_by_clone(case, part)) > MIN_P_VALUE


def test_predictive_of_the_posterior():
    case = make_case(2, {}, lengths=[2], missing=[(0, 1)])
    part = case.batch[0]
    posterior = infer_discrete(case.enumerated, first_available_dim=-2)
    samples = Predictive(posterior, num_samples=150)(part)
    states = case.enumerated.states(samples, part)
    exact = reference.enumerate_paths(
        CLONES, np.zeros(6), case.instance.log_transition, part.actions, part.obs
    )
    assert p_value(map(tuple, states.tolist()), exact.paths) > MIN_P_VALUE


def test_parameters_move_between_the_models():
    options = {"learn_initial": True, "learn_actions": True, "dtype": torch.float64}
    clones = CloneStructure(CLONES)
    enumerated = EnumeratedCHMM(clones, ACTIONS, seed=1, **options)
    point = PointCHMM(clones, ACTIONS, seed=2, **options)
    batch = make_case(5, {}).batch
    enumerated.load_state_dict(point.state_dict())
    expected = -point.distribution(batch).log_prob(batch.obs).sum()
    assert_close(loss_of(enumerated, batch), expected, **EXACT)
    fresh = PointCHMM(clones, ACTIONS, seed=3, **options)
    fresh.load_state_dict(enumerated.state_dict())
    assert_close(-fresh.distribution(batch).log_prob(batch.obs).sum(), expected, **EXACT)


def test_a_copy_has_parameters_of_its_own():
    case = make_case(3, {})
    other = copy.deepcopy(case.enumerated)
    before = loss_of(case.enumerated, case.batch)
    with torch.no_grad():
        other.transition.logits.mul_(2.0)
    assert_close(loss_of(case.enumerated, case.batch), before, rtol=0.0, atol=0.0)
    assert loss_of(other, case.batch) != before


def test_from_counts():
    counts = torch.arange(2 * 36, dtype=torch.float64).view(2, 6, 6)
    batch = make_case(4, {}).batch
    enumerated, point = (
        cls.from_counts(CloneStructure(CLONES), counts, pseudocount=0.1)
        for cls in (EnumeratedCHMM, PointCHMM)
    )
    expected = -point.distribution(batch).log_prob(batch.obs).sum()
    assert_close(loss_of(enumerated, batch), expected, **EXACT)


def test_impossible_sequences_are_refused():
    case = make_case(3, {}, lengths=[3])
    allowed = torch.ones(ACTIONS, 6, 6, dtype=torch.bool)
    allowed[:, :2, 5] = False
    model = EnumeratedCHMM(CloneStructure(CLONES), ACTIONS, allowed=allowed)
    batch = SequenceBatch.from_arrays([[0, 1, 2], [1, 0, 2]], [[0, 1], [0, 0]])
    assert loss_of(model, batch.select([0])).isfinite()
    with pytest.raises(ValueError, match=r"sequence 1 of batch has probability zero"):
        loss_of(model, batch)
    nowhere = torch.full((6,), -torch.inf, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"initial_logits is -inf throughout"):
        case.enumerated.decode(case.batch, initial_logits=nowhere)


def test_long_sequences_are_refused(monkeypatch):
    case = make_case(5, {})
    monkeypatch.setattr(EnumeratedCHMM, "max_steps", 4)
    with pytest.raises(ValueError, match=r"5 steps, expected at most max_steps = 4; use PointCHMM"):
        loss_of(case.enumerated, case.batch)
    assert loss_of(case.enumerated, case.batch.select([1, 2])).isfinite()


@pytest.mark.parametrize(
    ("obs", "actions", "message"),
    [
        ([0, 3], [0], r"obs\[1\] = 3, expected a symbol below 3"),
        ([0, 1], [2], r"actions\[0\] = 2, expected an action in 0 .. 1"),
    ],
)
def test_data_that_do_not_fit_the_model(obs, actions, message):
    model = EnumeratedCHMM(CloneStructure(CLONES), ACTIONS)
    with pytest.raises(ValueError, match=message):
        loss_of(model, SequenceBatch.from_arrays(obs, actions))
