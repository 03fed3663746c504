"""What is surely known of a share by counting: confidence sequences, which hold however often one looks.

A share of calls is bad; of `calls` looked at, `bad` were. With a probability of 1 - alpha the true share lies between
`at_least` and `at_most` at every moment of the count at once: so one may look after each call, and stop when one likes.
The price is that the bounds are somewhat wider than those of one look at the end.

It is the likelihood ratio of all shares alike against one share: a martingale if that is the true one, which by
Ville's inequality ever exceeds 1/alpha with a probability of alpha at most.

Source: H. Robbins, "Statistical methods related to the law of the iterated logarithm" (Annals of Mathematical
Statistics 41, 1970); S. Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of
Statistics 49, 2021).
"""

import math
from typing import Final

_STEPS: Final = 60
"""Halvings of an interval: as fine as a float is."""


def at_least(calls: int, bad: int, alpha: float) -> float:
    """The share of bad calls that the true one is not below, 0 to 1."""
    if bad == 0:
        return 0.0
    return _edge(calls, bad, alpha, outside=0.0)


def at_most(calls: int, bad: int, alpha: float) -> float:
    """The share of bad calls that the true one is not above, 0 to 1."""
    if bad == calls:
        return 1.0
    return _edge(calls, bad, alpha, outside=1.0)


def _edge(calls: int, bad: int, alpha: float, *, outside: float) -> float:
    """Where between the share that was seen and an end of all shares the ratio comes to 1/alpha."""
    good = calls - bad
    mixed = math.lgamma(bad + 1) + math.lgamma(good + 1) - math.lgamma(calls + 2)
    inside, limit = bad / calls, -math.log(alpha)
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if not 0 < middle < 1:
            break
        ratio = mixed - (bad * math.log(middle) if bad else 0.0) - (good * math.log1p(-middle) if good else 0.0)
        if ratio > limit:
            outside = middle
        else:
            inside = middle
    return outside
