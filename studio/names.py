"""What did the user mean? Suggestions for names that are not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to `word`, or None when nothing is close; swapped letters (gpro) count as closest."""
    by_lower = {name.lower(): name for name in known}
    word = str(word).lower()
    found = get_close_matches(word, by_lower, n=5, cutoff=0.5)
    swapped = [name for name in found if sorted(name) == sorted(word)]
    return by_lower[(swapped or found)[0]] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """The part `; did you mean 'clip'?` of an error message, empty when nothing is close."""
    found = nearest(word, known)
    return f"; did you mean {found!r}?" if found else "."
