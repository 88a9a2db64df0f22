"""The words after the colon: `--config=configs/coco.py:recognition,smoke`.

A word has one kind. A command gives at most one word of each kind, in any order.
"""

from collections.abc import Iterable, Mapping

from smoothsa_jax.errors import UserError, did_you_mean

# In the order in which the words enter a run's name.
KINDS = (
    "data variant",
    "system",
    "system variant",
    "size",
    "queries",
    "version",
    "task",
    "smooth",
    "smoke",
)


def split_words(text: str) -> tuple[str, ...]:
    """The words of `"recognition,smoke"`; none of an empty text."""
    return tuple(word.strip() for word in text.split(",")) if text.strip() else ()


def refuse_unknown(words: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a word that does not fit.

    Raises:
        UserError: the first unknown word, the words that fit, and the nearest of them.
    """
    fitting = sorted(filter(None, known))
    for word in words:
        if word not in fitting:
            takes = f"it takes {', '.join(fitting)}" if fitting else "it takes none"
            raise UserError(f"no word {word!r} fits here; {takes}{did_you_mean(word, fitting)}")


def choose(words: str, known: Mapping[str, str]) -> dict[str, str]:
    """The chosen word of each kind.

    Args:
        words: the text after the colon.
        known: word -> kind, of all words that fit.

    Returns:
        kind -> word, in the order of `KINDS`, for the kinds that are given.

    Raises:
        UserError: an unknown word, a word given twice, or two words of one kind.
    """
    given = split_words(words)
    refuse_unknown(given, known)
    chosen: dict[str, str] = {}
    for word in given:
        before = chosen.setdefault(known[word], word)
        if given.count(word) > 1:
            raise UserError(f"the word {word!r} is given {given.count(word)} times; give it once")
        if before != word:
            raise UserError(
                f"{before!r} and {word!r} are both of the kind {known[word]!r}; give one of them"
            )
    return {kind: chosen[kind] for kind in KINDS if kind in chosen}
