"""Checkpoints: every kind of model comes back bit for bit, and nothing damaged is accepted."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import TEST_DATA, TOL

from chmm_pyro import atomic, checkpoint
from chmm_pyro.checkpoint import FORMAT_VERSION, load_checkpoint, load_draws, save_checkpoint
from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference import FitResult, fit_em, fit_gibbs, fit_svi
from chmm_pyro.models import BayesianCHMM, PointCHMM, block_concentration
from chmm_pyro.models.base import CloneModel
from chmm_pyro.parameters import SoftmaxTransition
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns
from chmm_pyro.vocabulary import Vocabulary

CLONES = CloneStructure([2, 3, 1])
SHAPE = (2, 6, 6)
V1 = TEST_DATA / "checkpoint_v1"
V1_NAMES = ["softmax", "masked", "counts", "blocks", "joint", "actions"]


def _batch() -> SequenceBatch:
    rng = np.random.default_rng(0)
    return SequenceBatch.from_arrays(rng.integers(3, size=40), rng.integers(2, size=39))


def _allowed() -> torch.Tensor:
    allowed = torch.ones(SHAPE, dtype=torch.bool)
    allowed[0, 1, 2] = allowed[1, 3, 0] = False
    return allowed


def _frozen() -> torch.Tensor:
    frozen = torch.full(SHAPE, torch.nan)
    frozen[1, 2, 2], frozen[0, 1, 2] = 0.25, 0.0
    frozen[0, 4] = torch.tensor([0.5, 0.5, 0, 0, 0, 0])
    return frozen


def _columns() -> BlockColumns:
    return BlockColumns.from_batch(CLONES, 2, _batch())


def _sparse_counts() -> CloneModel:
    counts = np.random.default_rng(1).gamma(1.0, size=SHAPE) * _allowed().numpy()
    return PointCHMM.from_counts(CLONES, counts, parameterization="counts")


def _zero_rows() -> CloneModel:
    counts = np.random.default_rng(1).integers(2, size=SHAPE)
    return PointCHMM.from_counts(CLONES, counts, dtype=torch.float32)


# A new model or parameterisation joins by adding a row.
MODELS: dict[str, Callable[..., CloneModel]] = {
    "softmax": lambda cls: cls(CLONES, 2, seed=3),
    "float64": lambda cls: cls(CLONES, 2, seed=3, dtype=torch.float64),
    "masked": lambda cls: cls(CLONES, 2, allowed=_allowed()),
    "frozen": lambda cls: cls(CLONES, 2, frozen=_frozen(), dtype=torch.float64),
    "masked and frozen": lambda cls: cls(CLONES, 2, allowed=_allowed(), frozen=_frozen()),
    "counts": lambda cls: cls(CLONES, 2, parameterization="counts"),
    "blocks": lambda cls: cls(CLONES, 2, parameterization="blocks", columns=_columns()),
    "joint": lambda cls: cls(CLONES, 2, action_model="joint"),
    "joint blocks": lambda cls: cls(
        CLONES, 2, action_model="joint", parameterization="blocks", columns=_columns()
    ),
    "learned initial": lambda cls: cls(CLONES, 2, learn_initial=True),
    "learned actions": lambda cls: cls(CLONES, 2, learn_actions=True, learn_initial=True),
}


def _assert_same(loaded: CloneModel, model: CloneModel) -> None:
    assert type(loaded) is type(model)
    assert type(loaded.transition) is type(model.transition)
    assert (loaded.clones, loaded.num_actions, loaded.action_model) == (
        model.clones,
        model.num_actions,
        model.action_model,
    )
    assert loaded.initial.learned == model.initial.learned
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in model.named_parameters()}
    batch = _batch()
    hmm, other = loaded.distribution(batch), model.distribution(batch)
    assert torch.equal(hmm.table.values, other.table.values)
    assert torch.equal(hmm.log_prob(batch.obs), other.log_prob(batch.obs))


@pytest.mark.parametrize("cls", checkpoint._MODELS.values(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name: str, cls: type[CloneModel], tmp_path: Path) -> None:
    model = MODELS[name](cls)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    save_checkpoint(tmp_path / "run", model)
    loaded = load_checkpoint(tmp_path / "run")
    _assert_same(loaded.model, model)
    assert (loaded.vocabulary, loaded.action_vocabulary) == (None, None)
    assert (loaded.settings, loaded.history) == ({}, {})


@pytest.mark.parametrize("make", [_sparse_counts, _zero_rows])
def test_structural_zeros_and_infinite_logits_survive(make: Any, tmp_path: Path) -> None:
    model = make()
    save_checkpoint(tmp_path, model)
    _assert_same(load_checkpoint(tmp_path).model, model)


def test_a_fit_brings_its_settings_histories_and_labels(tmp_path: Path) -> None:
    batch = SequenceBatch.from_episodes([list("abcab"), list("abca")])
    model = PointCHMM(CloneStructure([2, 2, 2]), 1)
    result = fit_svi(model, batch, num_iters=3, progress=False)
    save_checkpoint(tmp_path, result, settings={"data": "abc", "limit": math.inf})
    loaded = load_checkpoint(tmp_path)
    _assert_same_numbers(loaded.history, result)
    assert loaded.vocabulary == Vocabulary(["a", "b", "c"])
    assert loaded.settings == {**result.settings, "data": "abc", "limit": "inf"}
    again = fit_svi(loaded.model, batch, num_iters=1, progress=False)
    assert again.bits_per_step < result.bits_per_step


def _assert_same_numbers(history: dict[str, Any], result: Any) -> None:
    for name in ("objective_history", "log_prob_history", "seconds_history"):
        np.testing.assert_array_equal(history[name], getattr(result, name))
    for name in ("bits_per_step", "converged", "interrupted", "num_iters", "wall_time"):
        assert history[name] == getattr(result, name)


def test_labels_of_the_caller_win(tmp_path: Path) -> None:
    names = Vocabulary([("red", 1), 2, "exit"])
    actions = Vocabulary(["left", "right"])
    model = PointCHMM(CLONES, 2)
    save_checkpoint(tmp_path, model, vocabulary=names, action_vocabulary=actions)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.vocabulary, loaded.action_vocabulary) == (names, actions)


# ------------------------------------------------------------------------------ first format


@pytest.mark.parametrize("name", V1_NAMES)
def test_the_first_format_is_still_read(name: str) -> None:
    loaded = load_checkpoint(V1 / name)
    expected = json.loads((V1 / "expected.json").read_text())["log_prob"][name]
    obs, actions = "abcabbacabcacbab", ["left", "right", "right", "left", "right"] * 3
    batch = SequenceBatch.from_episodes(
        [(list(obs), actions)],
        vocabulary=loaded.vocabulary,
        action_vocabulary=loaded.action_vocabulary,
    )
    hmm = loaded.model.distribution(batch)
    dtype = hmm.table.values.dtype
    np.testing.assert_allclose(hmm.log_prob(batch.obs).item(), expected, **TOL["exact"][dtype])
    assert loaded.settings["method"] == "em"
    assert loaded.settings["note"] == name
    assert len(loaded.history["objective_history"]) == 3
    assert loaded.model.clones == CloneStructure([2, 3, 1])


def test_the_fixture_covers_every_kind_of_parameters() -> None:
    described = [json.loads((V1 / name / "config.json").read_text())["model"] for name in V1_NAMES]
    assert {d["parameterization"] for d in described} == {"softmax", "counts", "blocks"}
    assert {d["action_model"] for d in described} == {"conditional", "joint"}
    assert {d["dtype"] for d in described} == {"float32", "float64"}
    masked = load_checkpoint(V1 / "masked").model.transition
    assert isinstance(masked, SoftmaxTransition)
    assert masked.allowed is not None
    assert masked.table().values[0, 1, 2].exp().item() == pytest.approx(0.25)


# --------------------------------------------------------------------------------- replacing


def test_an_existing_checkpoint_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for seed in (1, 2):
        save_checkpoint(tmp_path, PointCHMM(CLONES, 2, seed=seed))
    _assert_same(load_checkpoint(tmp_path).model, PointCHMM(CLONES, 2, seed=2))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3  # notes, config, one file of tensors


@pytest.mark.parametrize("survived", [0, 1])
def test_a_crash_while_saving_loses_nothing(
    survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, PointCHMM(CLONES, 2, seed=1))
    written: list[Path] = []

    def crash_later(path: Path, data: bytes) -> None:
        if len(written) == survived:
            raise KeyboardInterrupt
        written.append(path)
        atomic.write_atomically(path, data)

    monkeypatch.setattr(checkpoint, "write_atomically", crash_later)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, PointCHMM(CLONES, 2, seed=2))
    _assert_same(load_checkpoint(tmp_path).model, PointCHMM(CLONES, 2, seed=1))


def test_a_reader_meets_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, PointCHMM(CLONES, 2, seed=1))
    read = checkpoint._read_tensors
    calls: list[Path] = []

    def replaced_meanwhile(folder: Path, config: dict[str, Any]) -> Any:
        calls.append(folder)
        if len(calls) == 1:
            save_checkpoint(folder, PointCHMM(CLONES, 2, seed=2))
        return read(folder, config)

    monkeypatch.setattr(checkpoint, "_read_tensors", replaced_meanwhile)
    _assert_same(load_checkpoint(tmp_path).model, PointCHMM(CLONES, 2, seed=2))


def test_a_half_written_file_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "states.csv"
    atomic.write_atomically(target, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        atomic.write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["states.csv"]


# ------------------------------------------------------------------------------ refusing


def _change(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *outer, last = path.split("__")
            place = config
            for key in outer:
                place = place[key]
            place[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def _tensors(folder: Path) -> Path:
    return next(folder.glob("model-*.safetensors"))


def _truncate_tensors(folder: Path) -> None:
    _tensors(folder).write_bytes(_tensors(folder).read_bytes()[:-7])


def _flip_a_bit(folder: Path) -> None:
    data = bytearray(_tensors(folder).read_bytes())
    data[-1] ^= 1
    _tensors(folder).write_bytes(data)


def _truncate_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])


def _replace_tensors(data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        _tensors(folder).write_bytes(data)
        _change(tensors__sha256=hashlib.sha256(data).hexdigest())(folder)

    return apply


def _drop_entry(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model"]["num_actions"]
    (folder / "config.json").write_text(json.dumps(config))


_LOGITS = {"transition.logits": torch.zeros(SHAPE), "initial.logits": torch.zeros(6)}
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer format": (
        _change(format_version=FORMAT_VERSION + 1, package_version="9.0"),
        r"format 2 \(written by chmm-pyro 9.0\), expected at most 1; upgrade",
    ),
    "truncated tensors": (_truncate_tensors, "truncated or changed"),
    "one wrong bit": (_flip_a_bit, "truncated or changed"),
    "missing tensors": (lambda folder: _tensors(folder).unlink(), "safetensors is missing"),
    "no tensors": (_replace_tensors(b"not a file of tensors"), "holds no tensors"),
    "truncated config": (_truncate_config, "config.json cannot be read"),
    "empty config": (lambda f: (f / "config.json").write_text(""), "config.json cannot be read"),
    "config of another kind": (
        lambda f: (f / "config.json").write_text("[1, 2]"),
        "config.json cannot be read",
    ),
    "unknown class": (_change(model__class="QuantumCHMM"), "'QuantumCHMM' is unknown, expected"),
    "unknown parameterisation": (_change(model__parameterization="cubic"), "'cubic', expected"),
    "fewer clones": (_change(model__num_clones=[2, 2, 1]), r"\(2, 6, 6\), expected \(2, 5, 5\)"),
    "huge clones": (_change(model__num_clones=[10**9]), r"\(2, 6, 6\), expected \(2, 1000000000"),
    "no clones": (_change(model__num_clones=[2, 3, 0]), r"num_clones\[2\] = 0"),
    "clones of text": (_change(model__num_clones="many"), "num_clones"),
    "other dtype": (_change(model__dtype="float64"), "float32, expected torch.float64"),
    "unknown dtype": (_change(model__dtype="float8"), "float8"),
    "more parameters": (_change(model__learn_actions=True), "action_logits"),
    "missing tensor": (
        _replace_tensors(safetensors.torch.save({"initial.logits": torch.zeros(6)})),
        "transition.logits' is not described",
    ),
    "foreign tensor": (
        _replace_tensors(safetensors.torch.save({**_LOGITS, "extra": torch.zeros(2)})),
        "extra",
    ),
    "missing entry": (_drop_entry, "num_actions"),
    "repeated label": (_change(vocabulary=["a", "a", "b"]), "distinct labels"),
    "histories of text": (_change(history={"log_prob_history": ["?"]}), "could not convert"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(damage: str, tmp_path: Path) -> None:
    apply, message = DAMAGE[damage]
    save_checkpoint(tmp_path, PointCHMM(CLONES, 2))
    apply(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["newer format", "truncated config", "unknown class"])
def test_a_damaged_checkpoint_can_be_replaced(damage: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, PointCHMM(CLONES, 2, seed=1))
    DAMAGE[damage][0](tmp_path)
    save_checkpoint(tmp_path, PointCHMM(CLONES, 2, seed=2))
    _assert_same(load_checkpoint(tmp_path).model, PointCHMM(CLONES, 2, seed=2))


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a checkpoint: there is no config\.json"):
        load_checkpoint(tmp_path / "nothing")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model = PointCHMM(CLONES, 2)
    with pytest.raises(TypeError, match="is Linear, expected a FitResult or one of PointCHMM"):
        save_checkpoint(tmp_path, torch.nn.Linear(1, 1))  # type: ignore[arg-type]

    class Other(PointCHMM):
        pass

    with pytest.raises(TypeError, match="is Other, expected"):
        save_checkpoint(tmp_path, Other(CLONES, 2))
    with pytest.raises(ValueError, match="vocabulary has 4 labels, expected at most 3"):
        save_checkpoint(tmp_path, model, vocabulary=Vocabulary(range(4)))
    with pytest.raises(TypeError, match=r"settings\['f'\] is function, expected what JSON"):
        save_checkpoint(tmp_path, model, settings={"f": _columns})
    labels = Vocabulary([frozenset({1}), "a", "b"])
    with pytest.raises(TypeError, match="cannot be written to JSON"):
        save_checkpoint(tmp_path, model, vocabulary=labels)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        save_checkpoint(tmp_path / "file", model)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a checkpoint was unpickled")

    result = fit_em(PointCHMM(CLONES, 2), _batch(), num_iters=1, progress=False)
    save_checkpoint(tmp_path, result)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    _assert_same(load_checkpoint(tmp_path).model, result.model)


# ---------------------------------------------------------------------------------- draws


BAYESIAN: dict[str, dict[str, Any]] = {
    "plain": {"concentration": 0.3},
    "by block": {"concentration": block_concentration(CLONES, np.arange(1.0, 10).reshape(3, 3))},
    "every prior": {
        "concentration": 0.3,
        "sticky": 0.5,
        "hyperprior": (2.0, 1.0),
        "stick_concentration": 2.0,
        "learn_initial": True,
        "initial_concentration": 0.7,
        "learn_actions": True,
        "action_concentration": 2.0,
    },
    "joint float32": {"concentration": 0.3, "action_model": "joint", "dtype": torch.float32},
}


def _sampled(**options: Any) -> FitResult:
    model = BayesianCHMM(CLONES, 2, **options)
    return fit_gibbs(model, _batch(), num_iters=3, num_warmup=1, num_chains=2, progress=False)


@pytest.mark.parametrize("name", BAYESIAN)
def test_draws_and_their_prior_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    fit = _sampled(**BAYESIAN[name])
    save_checkpoint(tmp_path, fit)
    model, draws = load_draws(tmp_path)
    assert draws.keys() == fit.draws.keys()
    for key, value in fit.draws.items():
        assert draws[key].dtype == value.dtype and torch.equal(draws[key], value)
    prior = fit.prior_model
    assert (model.sites, model.action_model, model.dtype) == (
        prior.sites,
        prior.action_model,
        prior.dtype,
    )
    values = model.values_of({n: draws[n].double() for n in model.public_names})
    expected = prior.values_of({n: fit.draws[n].double() for n in model.public_names})
    torch.manual_seed(0)
    one = model.sample_prior(2)
    torch.manual_seed(0)
    other = prior.sample_prior(2)
    for site in model.sites:
        assert torch.equal(values[site], expected[site])
        assert torch.equal(one[site], other[site]), "the same concentrations"
    _assert_same(load_checkpoint(tmp_path).model, fit.model)


def test_a_new_fit_replaces_draws_and_all(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _sampled(concentration=0.3))
    (tmp_path / "notes.txt").write_text("mine")
    assert len(list(tmp_path.glob("draws-*.safetensors"))) == 1
    save_checkpoint(tmp_path, _sampled(concentration=0.5))
    assert len(list(tmp_path.glob("draws-*.safetensors"))) == 1
    assert float(load_draws(tmp_path)[0].transition_prior.base[0, 0, 0]) == 0.5
    save_checkpoint(tmp_path, PointCHMM(CLONES, 2))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors", ".txt"]
    with pytest.raises(ValueError, match="fit without posterior draws, expected one by gibbs"):
        load_draws(tmp_path)


@pytest.mark.parametrize("name", V1_NAMES)
def test_old_checkpoints_have_no_draws(name: str) -> None:
    with pytest.raises(ValueError, match=r"without posterior draws.*fit again"):
        load_draws(V1 / name)


def test_damaged_draws_are_refused_and_the_model_still_loads(tmp_path: Path) -> None:
    fit = _sampled(concentration=0.3)
    save_checkpoint(tmp_path, fit)
    (path,) = tmp_path.glob("draws-*.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"draws-.* is truncated or changed.*save it again"):
        load_draws(tmp_path)
    _assert_same(load_checkpoint(tmp_path).model, fit.model)
    path.unlink()
    with pytest.raises(ValueError, match=r"draws-.* is missing"):
        load_draws(tmp_path)


def test_draws_of_another_model_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _sampled(concentration=0.3))
    config = json.loads((tmp_path / "config.json").read_text())
    config["draws"]["prior"]["num_clones"] = [2, 3, 2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"of shape \(2, 6, 6\), expected \(2, 7, 7\)"):
        load_draws(tmp_path)
