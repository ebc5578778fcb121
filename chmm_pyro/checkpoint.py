r"""Fitted models on disk: a folder with ``config.json`` and the tensors that it names.

``config.json`` is plain JSON: what the model is, the labels of its symbols and actions, the
settings and history of the fit, versions, and the name and SHA-256 of a ``model-*.safetensors``
and, where the fit has draws of a posterior, of a ``draws-*.safetensors``.
Replacing ``config.json`` in one step is what publishes a new checkpoint: until then the old one is
complete, and other files of the folder are never touched.  Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .atomic import write_atomically
from .clones import CloneStructure
from .inference.result import FitResult
from .models.base import CloneModel
from .models.bayesian import BayesianCHMM
from .models.enumerated import EnumeratedCHMM
from .models.point import PointCHMM
from .models.relaxed import RelaxedCHMM
from .parameters import BlockTransition, CountTransition, SoftmaxTransition
from .posterior.saved import describe_prior, pack_draws, unpack_draws
from .tables import BlockColumns
from .vocabulary import Vocabulary

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "load_checkpoint",
    "load_draws",
    "package_version",
    "save_checkpoint",
]

FORMAT_VERSION = 1
"""What :func:`save_checkpoint` writes; :func:`load_checkpoint` reads this and all before."""

_CONFIG = "config.json"
_MODELS: dict[str, type[CloneModel]] = {
    model.__name__: model for model in (PointCHMM, EnumeratedCHMM, RelaxedCHMM)
}
_PARAMETERIZATIONS = {
    SoftmaxTransition: "softmax",
    CountTransition: "counts",
    BlockTransition: "blocks",
}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_TRIPLES = "transition.triples"
_HISTORIES = ("objective_history", "log_prob_history", "seconds_history")
_OUTCOMES = ("bits_per_step", "converged", "interrupted", "num_iters", "num_warmup", "wall_time")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: the model, on the CPU, with the very bits that were saved.
        vocabulary: labels of the symbols, or None.
        action_vocabulary: labels of the actions, or None.
        settings: the method and its options, and whatever the user added.
        history: of a :class:`~chmm_pyro.inference.result.FitResult` its histories (arrays),
            ``bits_per_step``, ``converged``, ``interrupted``, ``num_iters``, ``num_warmup`` and
            ``wall_time`` by name; empty for a model saved alone.
        version: of the package that wrote it.
    """

    model: CloneModel
    vocabulary: Vocabulary | None
    action_vocabulary: Vocabulary | None
    settings: dict[str, Any]
    history: dict[str, Any]
    version: str


def save_checkpoint(
    path: str | PathLike[str],
    result_or_model: FitResult | CloneModel,
    *,
    vocabulary: Vocabulary | None = None,
    action_vocabulary: Vocabulary | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Save a fit or a model; an older checkpoint at ``path`` is replaced in one step.

    Args:
        path: a folder, made if it does not exist.
        result_or_model: a fit with its history, settings and posterior draws, or a model alone.
            Guides and data are not saved.
        vocabulary: labels of the symbols; by default those of the data fitted.
        action_vocabulary: labels of the actions; by default those of the data fitted.
        settings: added to those of the fit; values that JSON can hold.

    Raises:
        TypeError: a class of models that checkpoints do not know, or labels or settings that JSON
            cannot hold.
        ValueError: a vocabulary that does not fit the model, or a path that is a file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> model = PointCHMM(CloneStructure([2, 1]), num_actions=1)
        >>> with TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, model, vocabulary=Vocabulary(["door", "wall"]))
        ...     loaded = load_checkpoint(folder)
        >>> loaded.vocabulary
        Vocabulary(['door', 'wall'])
        >>> torch.equal(loaded.model.transition.logits, model.transition.logits)
        True
    """
    folder = Path(path)
    result = result_or_model if isinstance(result_or_model, FitResult) else None
    model = result.model if result is not None else result_or_model
    if not isinstance(model, CloneModel) or _MODELS.get(type(model).__name__) is not type(model):
        raise TypeError(
            f"result_or_model is {type(model).__name__}, expected a FitResult or one of "
            f"{', '.join(_MODELS)}; save other modules' state_dict with safetensors."
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path = {str(path)!r} is a file, expected a folder; choose another name.")
    if result is not None:
        vocabulary = vocabulary or result.data.vocabulary
        action_vocabulary = action_vocabulary or result.data.action_vocabulary
    tensors = model.state_dict()
    if isinstance(model.transition, BlockTransition):
        tensors[_TRIPLES] = torch.from_numpy(model.transition.columns.triples)
    data = safetensors.torch.save({k: v.contiguous().cpu() for k, v in tensors.items()})
    files = {"tensors": (_named("model", data), data)}
    config: dict[str, Any] = {
        "format": "chmm-pyro checkpoint",
        "format_version": FORMAT_VERSION,
        "package_version": package_version(),
        "tensors": files["tensors"][0],
        "model": _describe(model),
        "vocabulary": _labels("vocabulary", vocabulary, model.clones.num_symbols),
        "action_vocabulary": _labels("action_vocabulary", action_vocabulary, model.num_actions),
        "settings": _plain(
            "settings", {**({} if result is None else result.settings), **(settings or {})}
        ),
        "history": {} if result is None else _history(result),
    }
    prior = None if result is None else result.prior_model
    if result is not None and result.draws is not None and isinstance(prior, BayesianCHMM):
        packed = pack_draws(prior, result.draws)
        files["draws"] = (_named("draws", packed), packed)
        config["draws"] = {**files["draws"][0], "prior": describe_prior(prior)}
    text = json.dumps(config, indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    stale = _named_files(folder)
    for name, content in files.values():
        write_atomically(folder / name["file"], content)
    write_atomically(folder / _CONFIG, text.encode())
    for path in stale - {folder / name["file"] for name, _ in files.values()}:
        path.unlink(missing_ok=True)


def _named(kind: str, data: bytes) -> dict[str, str]:
    digest = hashlib.sha256(data).hexdigest()
    return {"file": f"{kind}-{digest[:12]}.safetensors", "sha256": digest}


def load_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote, with this version or an earlier one.

    Raises:
        FileNotFoundError: no checkpoint at ``path``.
        ValueError: a newer format, a damaged file, an unknown class of models, or tensors that do
            not fit the description.
    """
    folder = Path(path)
    config, tensors = _read(folder, "tensors")
    try:
        return Checkpoint(
            model=_rebuild(config["model"], tensors),
            vocabulary=_vocabulary(config["vocabulary"]),
            action_vocabulary=_vocabulary(config["action_vocabulary"]),
            settings=dict(config["settings"]),
            history=_read_history(config["history"]),
            version=str(config["package_version"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{error} is not described" if isinstance(error, KeyError) else str(error)
        raise _unreadable(folder, reason) from error


def load_draws(path: str | PathLike[str]) -> tuple[BayesianCHMM, dict[str, Tensor]]:
    """The posterior draws of a fit that :func:`save_checkpoint` wrote.

    Returns:
        The model with priors, and draws ``(chain, draw, ...)`` by name as in
        :class:`~chmm_pyro.inference.result.FitResult`.

    Raises:
        FileNotFoundError: no checkpoint at ``path``.
        ValueError: a fit without draws, or a damaged file.
    """
    folder = Path(path)
    if "draws" not in _open(folder):
        raise ValueError(
            f"path = {str(path)!r} holds a fit without posterior draws, expected one by gibbs, "
            "nuts or vb; fit again with `chmm fit --method gibbs` or fit_gibbs."
        )
    config, tensors = _read(folder, "draws")
    try:
        return unpack_draws(config["draws"]["prior"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is not described" if isinstance(error, KeyError) else str(error)
        raise _unreadable(folder, reason) from error


def _open(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says."""
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(
            f"path = {str(folder)!r} is not a checkpoint: there is no {_CONFIG} in it; check its "
            "spelling, or write one with save_checkpoint."
        )
    return _read_config(folder)


def _read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and one of its files of tensors."""
    for _ in range(3):  # a writer may replace the checkpoint between the two reads
        config = _open(folder)
        try:
            return config, _read_tensors(folder, config[kind])
        except FileNotFoundError:
            continue
    raise _unreadable(folder, f"{config[kind]['file']} is missing")


def _unreadable(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"path = {str(folder)!r} holds a checkpoint that cannot be loaded: {reason}; expected what "
        "save_checkpoint wrote, so save it again or restore it from a copy."
    )


def package_version() -> str:
    """The installed version of chmm-pyro."""
    try:
        return version("chmm-pyro")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


# ------------------------------------------------------------------------------ the model


def _describe(model: CloneModel) -> dict[str, Any]:
    return {
        "class": type(model).__name__,
        "num_clones": list(model.clones.num_clones),
        "num_actions": model.num_actions,
        "parameterization": _PARAMETERIZATIONS[type(model.transition)],
        "action_model": model.action_model,
        "learn_initial": model.initial.learned,
        "learn_actions": model.action_logits is not None,
        "dtype": str(model.initial.logits.dtype).removeprefix("torch."),
    }


def _rebuild(described: dict[str, Any], tensors: dict[str, Tensor]) -> CloneModel:
    tensors = dict(tensors)
    name = described["class"]
    if name not in _MODELS:
        raise ValueError(f"the model class {name!r} is unknown, expected {' or '.join(_MODELS)}")
    clones = CloneStructure(described["num_clones"])
    num_actions = int(described["num_actions"])
    dtype = _DTYPES[described["dtype"]]
    parameterization = described["parameterization"]
    width, columns = clones.num_states, None
    if parameterization == "blocks":
        triples = tensors.pop(_TRIPLES).numpy()
        columns = BlockColumns(clones, num_actions, triples)
        width = columns.width
    # Compared before a model of the described size is built.
    expected = (num_actions, clones.num_states, width)
    table = tensors["transition." + ("free_counts" if parameterization == "counts" else "logits")]
    if tuple(table.shape) != expected:
        raise ValueError(f"the transitions have shape {tuple(table.shape)}, expected {expected}")
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            raise ValueError(f"{key} has dtype {tensor.dtype}, expected {dtype}")
    model = _MODELS[name](
        clones,
        num_actions,
        learn_initial=described["learn_initial"],
        action_model=described["action_model"],
        learn_actions=described["learn_actions"],
        parameterization=parameterization,
        allowed=tensors.get("transition.allowed"),
        frozen=tensors.get("transition.frozen"),
        columns=columns,
        dtype=dtype,
    )
    model.load_state_dict(tensors)
    return model


# ------------------------------------------------------------------------------ reading


def _named_files(folder: Path) -> set[Path]:
    """The files of tensors that the checkpoint in ``folder`` names, if it can be read."""
    try:
        config = _read_config(folder)
        kinds = [kind for kind in ("tensors", "draws") if kind in config]
        return {folder / Path(config[kind]["file"]).name for kind in kinds}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        newer = config["format_version"] > FORMAT_VERSION
        if not newer:
            str(config["tensors"]["file"]), str(config["tensors"]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, f"{_CONFIG} cannot be read ({error})") from error
    if newer:
        raise ValueError(
            f"path = {str(folder)!r} holds a checkpoint of format {config['format_version']} "
            f"(written by chmm-pyro {config.get('package_version')}), expected at most "
            f"{FORMAT_VERSION}; upgrade chmm-pyro to read it."
        )
    return config


def _read_tensors(folder: Path, named: dict[str, Any]) -> dict[str, Tensor]:
    name = Path(named["file"]).name
    data = (folder / name).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != named["sha256"]:
        raise _unreadable(
            folder,
            f"{name} ({len(data):,} bytes) is truncated or changed: its SHA-256 begins with "
            f"{found[:12]}, not with {named['sha256'][:12]}",
        )
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise _unreadable(folder, f"{name} holds no tensors ({error})") from error


# ------------------------------------------------------------------------------ JSON


def _labels(name: str, vocabulary: Vocabulary | None, size: int) -> list[Any] | None:
    if vocabulary is None:
        return None
    if len(vocabulary) > size:
        raise ValueError(
            f"{name} has {len(vocabulary)} labels, expected at most {size} as the model; pass the "
            "one of the training data."
        )
    return vocabulary.to_jsonable()


def _vocabulary(labels: list[Any] | None) -> Vocabulary | None:
    return None if labels is None else Vocabulary.from_jsonable(labels)


def _plain(name: str, value: Any) -> Any:
    """``value`` as JSON holds it; infinite numbers become strings."""
    if isinstance(value, dict):
        return {str(key): _plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(name, value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(
        f"{name} is {type(value).__name__}, expected what JSON can hold; convert it to a number, "
        "a str, or a list or dict of these."
    )


def _history(result: FitResult) -> dict[str, Any]:
    return {name: _plain(name, getattr(result, name)) for name in (*_HISTORIES, *_OUTCOMES)}


def _read_history(history: dict[str, Any]) -> dict[str, Any]:
    found = dict(history)
    for name in _HISTORIES:
        if found.get(name) is not None:
            found[name] = np.array([float(value) for value in found[name]])
    if "bits_per_step" in found:
        found["bits_per_step"] = float(found["bits_per_step"])
    return found
