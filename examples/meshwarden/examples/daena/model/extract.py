"""A local, deterministic text model. It stands for a provider: it knows nothing but its prompt.

The prompt's first paragraph is the question, the rest is material. The answer is made of the sentences of the material
that say most about the question and least twice: chosen by likeness to the question and to the material as a whole,
less what they share with those chosen before.

Source: Carbonell and Goldstein 1998, Maximal Marginal Relevance.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshwarden.examples.daena import field
from meshwarden.examples.daena.error import Invalid, Unknown
from meshwarden.examples.daena.words import TOKEN, likeness, rarity, sentences, tokens, weigh

PROVIDER: Final = "meshwarden.stand_in"
ALIAS: Final = "stand-in"
NAME: Final = "stand-in-extractive-1"
MAX_PROMPT_BYTES: Final = 32 << 10
MAX_TOKENS: Final = 1024
_MAX_SENTENCES: Final = 4
_CENTRALITY, _REPETITION = 0.2, 0.8


@dataclass(frozen=True)
class Completion:
    """What the model answers, and what it counted."""

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: str


def complete(model: str, prompt: str, max_tokens: int) -> Completion:
    """Answers a prompt; the same prompt always alike.

    Raises:
        Unknown: there is no such model.
        Invalid: the prompt is empty or too long, or `max_tokens` is out of its bounds.
    """
    if model not in (ALIAS, NAME):
        raise Unknown(f"model: {field.shown(model)}: give {ALIAS!r} or {NAME!r}")
    field.text("prompt", prompt, MAX_PROMPT_BYTES)
    field.count("max_tokens", max_tokens, 1, MAX_TOKENS)
    question, _, material = prompt.strip().partition("\n\n")
    choices = sentences(material) or sentences(question)
    input_tokens = len(tokens(prompt))
    if not input_tokens:  # of what no sign is one: control characters that are no white space
        raise Invalid("prompt: has no token")
    text, whole = _cut(_ordered(choices, _choose(question, choices, prompt)), max_tokens)
    return Completion(text, input_tokens, len(tokens(text)), "stop" if whole else "length")


def _choose(question: str, choices: Sequence[str], prompt: str) -> list[int]:
    """Which sentences answer, the best first."""
    rare = rarity([question, *choices])
    asked, about = weigh(question, rare), weigh(" ".join(choices), rare)
    vectors = [weigh(choice, rare) for choice in choices]
    merit = [likeness(vector, asked) + _CENTRALITY * likeness(vector, about) for vector in vectors]
    repeated = [0.0] * len(choices)
    seed = hashlib.sha256(prompt.encode()).digest()
    left, chosen = set(range(len(choices))), list[int]()
    while left and len(chosen) < _MAX_SENTENCES:
        best = max(left, key=lambda one: (merit[one] - _REPETITION * repeated[one], _lot(seed, one)))
        # What adds less than half of what the first said is left out.
        if chosen and merit[best] - _REPETITION * repeated[best] < merit[chosen[0]] / 2:
            break
        chosen.append(best)
        left.remove(best)
        for one in left:
            repeated[one] = max(repeated[one], likeness(vectors[one], vectors[best]))
    return chosen


def _lot(seed: bytes, number: int) -> bytes:
    """Settles a draw, by the prompt alone."""
    return hashlib.sha256(seed + number.to_bytes(4, "big")).digest()


def _ordered(choices: Sequence[str], chosen: Sequence[int]) -> str:
    return " ".join(choices[one] for one in sorted(chosen))


def _cut(text: str, max_tokens: int) -> tuple[str, bool]:
    """The text up to its last token that is allowed, and whether that is all of it."""
    end = 0
    for number, found in enumerate(TOKEN.finditer(text), 1):
        if number > max_tokens:
            return text[:end], False
        end = found.end()
    return text, True
