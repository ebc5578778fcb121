"""Does a sampler draw from the distribution that enumeration found?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
from scipy import stats

__all__ = ["MIN_P_VALUE", "p_value"]

SUITE_FAILURE_RATE = 1e-3
"""Chance that correct samplers fail any statistical test of the suite, for fresh seeds."""

MAX_STATISTICAL_TESTS = 200

MIN_P_VALUE = SUITE_FAILURE_RATE / MAX_STATISTICAL_TESTS
"""A statistical test asserts ``p_value(...) > MIN_P_VALUE``."""

MIN_EXPECTED = 8.0


def p_value(draws: Iterable[Hashable], probabilities: Mapping[Hashable, float]) -> float:
    """Chi-square p-value of draws against a finite distribution.

    Outcomes expected fewer than 8 times are pooled, rarest first.  A draw of probability zero
    gives 0.

    Args:
        draws: outcomes, such as state paths as tuples of ints.
        probabilities: of each outcome; they sum to one.
    """
    counts = Counter(draws)
    total = counts.total()
    if any(probabilities.get(outcome, 0.0) <= 0.0 for outcome in counts):
        return 0.0
    order = sorted(probabilities, key=probabilities.__getitem__)
    expected: list[float] = []
    observed: list[int] = []
    pooling = False
    for outcome in order:
        if not pooling:
            expected.append(0.0)
            observed.append(0)
        expected[-1] += total * probabilities[outcome]
        observed[-1] += counts[outcome]
        pooling = expected[-1] < MIN_EXPECTED
    if len(expected) < 2:
        raise ValueError(
            f"{total} draws leave {len(expected)} cell of {len(probabilities)} outcomes, expected "
            "at least 2; draw more."
        )
    scale = total / float(np.sum(expected))
    return float(stats.chisquare(observed, np.array(expected) * scale).pvalue)
