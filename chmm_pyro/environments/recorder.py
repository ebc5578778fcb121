"""Recordings of Gymnasium environments as sequences of symbols and actions.

Needs the extra ``gym``: ``pip install "chmm-pyro[gym]"``.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from tqdm.auto import tqdm

from .._readers.labelled import Labels
from ..sequences import SequenceBatch
from ..vocabulary import Unseen

__all__ = ["label_of", "record"]

_Policy: TypeAlias = Callable[[Any, np.random.Generator], Any] | Sequence[Any] | None
_Position: TypeAlias = Callable[[Any], Any] | str | None

_MAX_ACTIONS = 10_000


def record(
    env: Any,
    policy: _Policy = None,
    num_steps: int = 10_000,
    seed: int = 0,
    *,
    actions: Sequence[Any] | None = None,
    discretise: Callable[[Any], Any] | None = None,
    position: _Position = None,
    reset_seed: int | None = None,
    vocabulary: Labels = None,
    unseen: Unseen = "error",
    progress: bool = True,
) -> SequenceBatch:
    """Act in a Gymnasium environment and keep what was seen and done.

    An episode that terminates or is truncated ends a sequence, the last observation included; the
    next one begins with a reset.  Every distinct observation is a symbol, see :func:`label_of`;
    every action of the environment has a number, used or not.

    Args:
        env: a single environment, not closed here.
        policy: ``policy(observation, rng)`` gives the next action, or a sequence of at least
            ``num_steps - 1`` actions, or None for uniformly random ones.
        num_steps: observations in all.
        seed: of the policy's generator and, without ``reset_seed``, of the first reset.
        actions: those to choose from, in the order of their numbers; by default all that the
            environment has.  Needed for continuous actions, handy for useless ones.
        discretise: what to keep of an observation, something hashable or an array; by default
            all.  Needed for observations of floats.  None, NaN and "" are missing observations.
        position: where the walker is: ``position(env)`` or the name of an attribute.  By default
            row, column and heading in MiniGrid, none elsewhere.
        reset_seed: seed of every reset.  Environments that draw their world at a reset then draw
            the same one, and whatever else they draw repeats too.
        vocabulary: labels of the symbols, usually those of an earlier recording.
        unseen: whether an observation outside ``vocabulary`` is an error or missing.
        progress: show a bar.  Ctrl-C keeps what was recorded.

    Returns:
        A batch with a sequence for each episode and both vocabularies.

    Raises:
        ValueError: ``num_steps``, or an action that is not among ``actions``.
        TypeError: continuous actions or observations that nothing makes discrete, and observations
            that cannot be hashed.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("FrozenLake-v1", is_slippery=False)
        >>> record(env, num_steps=1000, seed=0, progress=False).num_steps
        1000
    """
    _check(env, num_steps, policy)
    action_labels = _action_labels(env, actions)
    rng = np.random.default_rng(seed)
    choose = _chooser(policy, list(action_labels.values()), rng)
    locate = _locator(env, position)
    known: dict[Hashable, Hashable] = {}
    episodes: list[dict[str, Any]] = []

    def see(observation: Any) -> None:
        if discretise is None:
            label = label_of(observation)
        else:
            label = label_of(discretise(observation), floats=True)
        episodes[-1]["obs"].append(known.setdefault(label, label))  # equal labels share memory
        if locate is not None:
            # A copy: environments may move the same array on.
            episodes[-1]["positions"].append(np.array(locate(env)))

    def begin() -> Any:
        of_reset = seed if reset_seed is None and not episodes else reset_seed
        observation, _ = env.reset(seed=of_reset)
        episodes.append({"obs": [], "actions": [], **({} if locate is None else {"positions": []})})
        see(observation)
        return observation

    with tqdm(total=num_steps, desc="recording", disable=not progress) as bar:
        try:
            observation = begin()
            bar.update()
            over = False
            for _ in range(num_steps - 1):
                if over:
                    observation, over = begin(), False
                    bar.update()
                    continue
                action = choose(observation)
                label = _action_label(action, action_labels)
                observation, _, terminated, truncated, _ = env.step(action)
                episodes[-1]["actions"].append(label)
                see(observation)
                over = bool(terminated or truncated)
                bar.update()
        except KeyboardInterrupt:
            episodes = [_whole(episode) for episode in episodes]
            episodes = [episode for episode in episodes if episode["obs"]]
            if not episodes:
                raise
            steps = sum(len(episode["obs"]) for episode in episodes)
            warnings.warn(
                f"interrupted after {steps} of num_steps = {num_steps}; these are returned.",
                stacklevel=2,
            )
    for episode in episodes:
        if locate is not None:
            episode["positions"] = np.array(episode["positions"])
    return SequenceBatch.from_episodes(
        episodes, vocabulary=vocabulary, action_vocabulary=list(action_labels), unseen=unseen
    )


def label_of(observation: Any, *, floats: bool = False) -> Hashable:
    """The label of an observation: equal ones have equal labels.

    Numbers and texts are their own labels, arrays become tuples of their entries in C order,
    tuples and dicts tuples of the labels of their parts (dicts in the order of their keys).

    Args:
        observation: of a Gymnasium environment.
        floats: whether floats are labels; those of an environment hardly ever recur.

    Raises:
        TypeError: floats, unless allowed, or something that cannot be hashed.

    Example:
        >>> label_of({"image": np.array([[1, 0], [0, 2]]), "direction": np.int64(3)})
        (3, (1, 0, 0, 2))
    """
    if isinstance(observation, Mapping):
        return tuple(label_of(observation[key], floats=floats) for key in sorted(observation))
    if isinstance(observation, (tuple, list)):
        return tuple(label_of(part, floats=floats) for part in observation)
    if isinstance(observation, (np.ndarray, np.generic)):
        array = np.asarray(observation)
        if array.dtype.kind == "f" and not floats:
            raise TypeError(
                f"the observation has shape {array.shape} and dtype {array.dtype}, expected "
                "integers; pass discretise=<function of an observation>, such as "
                "`lambda obs: np.floor(obs / width).astype(int)`."
            )
        return array.item() if array.ndim == 0 else tuple(array.ravel().tolist())
    if isinstance(observation, float) and not floats:
        raise TypeError(
            f"the observation is the float {observation!r}, expected something discrete; pass "
            "discretise=<function of an observation>."
        )
    try:
        hash(observation)
    except TypeError as error:
        raise TypeError(
            f"the observation is a {type(observation).__name__} that cannot be hashed, expected "
            "numbers, texts, arrays, or tuples and dicts of these; pass discretise=<function of "
            "an observation>."
        ) from error
    return observation


def _check(env: Any, num_steps: Any, policy: _Policy) -> None:
    if not all(hasattr(env, name) for name in ("reset", "step", "action_space")):
        raise TypeError(
            f"env is a {type(env).__name__}, expected a Gymnasium environment; use "
            "gymnasium.make(...)."
        )
    if hasattr(env, "num_envs"):
        raise TypeError(
            f"env holds {env.num_envs} environments, expected a single one; record them one by one."
        )
    if isinstance(num_steps, bool) or not isinstance(num_steps, (int, np.integer)):
        raise TypeError(f"num_steps = {num_steps!r}, expected an integer >= 1; use int(num_steps).")
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}, expected at least 1 observation.")
    if policy is not None and not callable(policy) and len(policy) < num_steps - 1:
        raise ValueError(
            f"policy has {len(policy)} actions, expected at least num_steps - 1 = {num_steps - 1}; "
            "lower num_steps."
        )


def _action_labels(env: Any, actions: Sequence[Any] | None) -> dict[Hashable, Any]:
    """The actions to choose from by their labels."""
    if actions is None:
        found = _all_actions(env.action_space)
    else:
        found = list(actions)
        for action in found:
            if not env.action_space.contains(action):
                raise ValueError(
                    f"actions holds {action!r}, expected elements of the environment's "
                    f"{env.action_space}."
                )
    if not found:
        raise ValueError("actions is empty, expected at least one.")
    return {label_of(action, floats=True): action for action in found}


def _all_actions(space: Any) -> list[Any]:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return list(range(int(space.start), int(space.start + space.n)))
    if isinstance(space, spaces.MultiDiscrete):
        entries = [
            range(int(first), int(first + size))
            for first, size in zip(space.start.ravel(), space.nvec.ravel(), strict=True)
        ]
    elif isinstance(space, spaces.MultiBinary):
        entries = [range(2)] * math.prod(space.shape)
    else:
        raise TypeError(
            f"the environment's action space is {space}, expected Discrete, MultiDiscrete or "
            "MultiBinary; pass actions=[...], those to choose from."
        )
    total = math.prod(map(len, entries))
    if total > _MAX_ACTIONS:
        raise ValueError(
            f"the environment's action space {space} has {total} actions, expected at most "
            f"{_MAX_ACTIONS}; pass actions=[...], those to choose from."
        )
    return [
        np.array(action, dtype=space.dtype).reshape(space.shape)
        for action in itertools.product(*entries)
    ]


def _action_label(action: Any, labels: Mapping[Hashable, Any]) -> Hashable:
    label = label_of(action, floats=True)
    if label not in labels:
        raise ValueError(
            f"policy gave the action {action!r}, expected one of {len(labels)} "
            f"({', '.join(map(str, itertools.islice(labels, 5)))}, ...); see the argument actions."
        )
    return label


def _chooser(policy: _Policy, actions: list[Any], rng: np.random.Generator) -> Callable[[Any], Any]:
    if policy is None:
        return lambda observation: actions[rng.integers(len(actions))]
    if callable(policy):
        return lambda observation: policy(observation, rng)
    given: Iterator[Any] = iter(policy)
    return lambda observation: next(given)


def _locator(env: Any, position: _Position) -> Callable[[Any], Any] | None:
    if callable(position):
        return position
    inner = env.unwrapped
    if isinstance(position, str):
        if not hasattr(inner, position):
            raise ValueError(
                f"position = {position!r} is no attribute of {type(inner).__name__}, expected the "
                "name of one; or pass a function of the environment."
            )
        return lambda env: getattr(env.unwrapped, position)
    if hasattr(inner, "agent_pos") and hasattr(inner, "agent_dir"):
        return _minigrid_pose
    return None


def _minigrid_pose(env: Any) -> tuple[int, int, int]:
    """Row, column and heading: 0 right, 1 down, 2 left, 3 up."""
    column, row = env.unwrapped.agent_pos
    return int(row), int(column), int(env.unwrapped.agent_dir)


def _whole(episode: dict[str, Any]) -> dict[str, Any]:
    """An episode without what an interruption has left incomplete."""
    steps = min(len(values) for name, values in episode.items() if name != "actions")
    whole = {name: values[:steps] for name, values in episode.items()}
    return {**whole, "actions": episode["actions"][: max(steps - 1, 0)]}
