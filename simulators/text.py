"""What simulated models write, how it is cut into pieces, and how many tokens it is said to have."""

import functools
import re
from itertools import cycle, islice

BYTES_PER_TOKEN = 4
"""How the simulators count: one token for so many bytes of text."""
DELTAS_DEFAULT_MAX = 24
"""A text is streamed in at most so many pieces, unless the number of events is given."""
ECHO_CHARS_MAX = 400
"""An unscripted answer repeats so much of the question at most."""
WORDS = ("The ", "quick ", "brown ", "fox ", "jumps ", "over ", "the ", "lazy ", "dog. ")
WORD_BYTES_MIN = min(map(len, WORDS))


@functools.lru_cache(maxsize=64)
def filler(words: int) -> str:
    """A text of so many words."""
    return "".join(islice(cycle(WORDS), words))


def filler_of_bytes(size: int) -> str:
    """A text of so many bytes."""
    return filler(size // WORD_BYTES_MIN + 1)[:size]


def echo(question: str, *, tokens_max: int) -> str:
    """What an unscripted answer says: the question, within the ceiling."""
    return f"You said: {question}"[: min(BYTES_PER_TOKEN * tokens_max, ECHO_CHARS_MAX)]


def text_pieces(text: str, count: int | None) -> list[str]:
    """`text` in `count` pieces of about the same length; without a count, in groups of words."""
    if count is None:
        words = re.findall(r"\s*\S+\s*", text) or [text]
        count = min(len(words), DELTAS_DEFAULT_MAX)
        return ["".join(words[len(words) * i // count : len(words) * (i + 1) // count]) for i in range(count)]
    return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]


def tokens_of(text: str) -> int:
    """How many tokens the simulators say that a text has: at least one, if there is any text."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
