"""Tokens, sentences and how alike texts are. Pure."""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

TOKEN: Final = re.compile(r"\w+|[^\w\s]")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_COMMON_TEXT: Final = (
    "a about after all also and any are because been before but can does done each for from had has have how into its "
    "may more most must not one only other our over should since so such than that the their them then there these "
    "they this those too under very was were what when where which while who why will with would you your"
)
_COMMON: Final = frozenset(_COMMON_TEXT.split())
Weights = Mapping[str, float]


def tokens(text: str) -> list[str]:
    """Words and signs: what the model counts and is paid by."""
    return TOKEN.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line ends one too."""
    return [found for part in _SENTENCE.split(text) if (found := part.strip())]


def terms(text: str) -> Counter[str]:
    """How often each word that says something comes; plural and singular are one."""
    words = (word.lower() for word in TOKEN.findall(text))
    return Counter(_stem(word) for word in words if len(word) > 2 and word not in _COMMON)


def rarity(texts: Iterable[str]) -> dict[str, float]:
    """The inverse document frequency of each term: {term: weight}.

    Source: Spärck Jones 1972, smoothed.
    """
    found = [set(terms(text)) for text in texts]
    in_how_many = Counter(term for one in found for term in one)
    return {term: math.log((1 + len(found)) / (1 + count)) + 1 for term, count in in_how_many.items()}


def weigh(text: str, rare: Mapping[str, float]) -> dict[str, float]:
    """A text as a vector of length 1: {term: weight}; empty where nothing in it says anything."""
    weights = {term: count * rare.get(term, 1.0) for term, count in terms(text).items()}
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    return {term: weight / length for term, weight in weights.items()} if length else {}


def likeness(one: Weights, other: Weights) -> float:
    """The cosine of two weighed texts, 0 to 1."""
    if len(other) < len(one):
        one, other = other, one
    return sum(weight * other.get(term, 0.0) for term, weight in one.items())


@functools.lru_cache(4096)
def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
