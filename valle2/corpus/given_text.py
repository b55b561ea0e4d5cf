"""Which part of a recording's given text is said in which of its windows.

What was recognised is laid over the given text word by word, with the fewest changes; a window is then given the words
that lie over its own. What was not said, or is not in the text, shows as disagreement of the two.
"""

from collections.abc import Sequence
from dataclasses import replace

from rapidfuzz.distance import Levenshtein

from valle2.asr import Window
from valle2.text import normalise


def give_text(windows: Sequence[Window], text: str, language: str) -> list[Window]:
    """Put the given text in the place of the recognised one.

    Args:
        windows: Of a whole recording in order, as recognised.
        text: Of the whole recording.
        language: For comparing.

    Returns:
        The same windows; `text` is a piece of the given one, as written, and `heard` is what was recognised. All pieces
        together are the given text; where nothing was recognised at all, they are empty.
    """
    heard, places = _words([window.text for window in windows], language)
    words = text.split()
    written, owners = _words(words, language)
    window_of: dict[int, int] = {}
    for change in Levenshtein.opcodes(heard, written) if heard else ():
        for step, target in enumerate(range(change.dest_start, change.dest_end)):
            place = max(change.src_start - 1, 0) if change.tag == "insert" else change.src_start + step
            window_of.setdefault(owners[target], places[place])
    pieces: list[list[str]] = [[] for _ in windows]
    window = places[0] if places else 0
    for index, word in enumerate(words if heard else ()):
        window = window_of.get(index, window)
        pieces[window].append(word)
    return [replace(item, text=" ".join(own), heard=item.text) for item, own in zip(windows, pieces, strict=True)]


def _words(texts: Sequence[str], language: str) -> tuple[list[str], list[int]]:
    """Normalised words of texts, and to which text each belongs."""
    words: list[str] = []
    owners: list[int] = []
    for place, text in enumerate(texts):
        own = normalise(text, language).split()
        words += own
        owners += [place] * len(own)
    return words, owners
