"""Near-duplicate audio: the same sound in another file, encoding, loudness or cut.

The fingerprint is Haitsma and Kalker's (ISMIR 2002, section 4): a word of 32 bits for every 11.6 ms, the signs of
energy differences between neighbouring bands and frames. Two clips are the same sound if few of their bits differ where
they overlap. Machines that speak by rule make other sentences of nearly the same sounds: where the difference is not
very small, the words have to agree too.
"""

import base64
import difflib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float, UInt32
from scipy.signal import get_window, resample_poly, stft

_RATE = 6_000
_WINDOW = 2_220
"""Samples: 0.37 s."""
_HOP = 70
"""Samples: 11.67 ms."""
_BANDS = np.geomspace(300.0, 2_000.0, 34)
"""Hz; edges of 33 bands."""
_OVERLAP = 0.8
"""Share of the shorter clip that has to be in the other."""
_SHORTEST = 30
"""Words that are compared at least: 0.35 s."""
_DISTINCT = 0.2
"""Different words per word under which a clip is too monotonous to be told from another."""
_SAME_WORDS = 0.8
"""Share of the shorter text's words that has to be in the other."""
_NEIGHBOURS = 4
"""Clips with the same word that are taken for candidates; words that many clips share tell nothing."""


def fingerprint(wave: Float[np.ndarray, " n"], sample_rate: int) -> UInt32[np.ndarray, " t"]:
    """Words of a clip in order of time; none if it is shorter than 0.4 s."""
    ratio = Fraction(_RATE, sample_rate)
    wave = resample_poly(wave, ratio.numerator, ratio.denominator)
    if len(wave) < _WINDOW + _HOP:
        return np.zeros(0, np.uint32)
    window = get_window("hann", _WINDOW)
    frequencies, _, spectrum = stft(wave, _RATE, window, _WINDOW, _WINDOW - _HOP, boundary=None, padded=False)
    power = np.abs(spectrum) ** 2
    edges = np.searchsorted(frequencies, _BANDS)
    energy = np.add.reduceat(power, edges, axis=0)[:-1]
    slope = energy[:-1] - energy[1:]
    bits = (slope[:, 1:] - slope[:, :-1]) > 0
    words: np.ndarray = (bits.astype(np.uint32) << np.arange(32, dtype=np.uint32)[:, None]).sum(0, dtype=np.uint32)
    return words


def pack(words: UInt32[np.ndarray, " t"]) -> str:
    """As it stands in a JSON file."""
    return base64.b64encode(words.astype("<u4").tobytes()).decode()


def unpack(text: str) -> UInt32[np.ndarray, " t"]:
    """What `pack` has packed."""
    return np.frombuffer(base64.b64decode(text), "<u4").astype(np.uint32)


def duplicate_groups(clips: Sequence[UInt32[np.ndarray, " t"]], texts: Sequence[str], max_error: float) -> list[int]:
    """The same number for clips that are the same sound: the place of the first of them.

    Args:
        clips: Fingerprints.
        texts: What is said in each, normalised.
        max_error: Share of bits that may differ where the words agree; else half of it. The paper takes 0.35 without
            words, and 0 tells nothing for the same.
    """
    groups = list(range(len(clips)))

    def first(place: int) -> int:
        while groups[place] != place:
            groups[place] = groups[groups[place]]
            place = groups[place]
        return place

    if max_error > 0:
        for one, other, shift in _candidates(clips):
            if first(one) == first(other) or (error := bit_error(clips[one], clips[other], shift)) > max_error:
                continue
            if error <= max_error / 2 or same_words(texts[one], texts[other]):
                low, high = sorted((first(one), first(other)))
                groups[high] = low
    return [first(place) for place in range(len(clips))]


def same_words(one: str, other: str) -> bool:
    """Whether the words of the shorter text are in the other, in order, but for one in five."""
    shorter, longer = sorted((one.split(), other.split()), key=len)
    common = difflib.SequenceMatcher(None, longer, shorter, autojunk=False).get_matching_blocks()
    return sum(block.size for block in common) >= _SAME_WORDS * len(shorter)


def bit_error(one: UInt32[np.ndarray, " t"], other: UInt32[np.ndarray, " u"], shift: int) -> float:
    """Share of differing bits where `other`, `shift` words later, overlaps `one`; 1 if they overlap too little."""
    start, end = max(shift, 0), min(len(one), len(other) + shift)
    if end - start < max(_OVERLAP * min(len(one), len(other)), _SHORTEST):
        return 1.0
    differing = one[start:end] ^ other[start - shift : end - shift]
    return float(np.unpackbits(differing.view(np.uint8)).mean())


def _candidates(clips: Sequence[UInt32[np.ndarray, " t"]]) -> list[tuple[int, int, int]]:
    """Pairs of clips that share at least two words at the same distance, and that distance; in a fixed order."""
    told = [len(np.unique(words)) >= _DISTINCT * max(len(words), 1) for words in clips]
    lengths = [len(words) if own else 0 for words, own in zip(clips, told, strict=True)]
    if not sum(lengths):
        return []
    keys = np.concatenate([words for words, own in zip(clips, told, strict=True) if own])
    owners = np.repeat(np.arange(len(clips), dtype=np.int32), lengths)
    places = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    order = np.argsort(keys, kind="stable")
    keys, owners, places = keys[order], owners[order], places[order]
    found = []
    for step in range(1, _NEIGHBOURS + 1):
        same = np.flatnonzero((keys[:-step] == keys[step:]) & (owners[:-step] != owners[step:]))
        found.append(np.stack([owners[same], owners[same + step], places[same] - places[same + step]], axis=1))
    pairs, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    return [(int(one), int(other), int(shift)) for one, other, shift in pairs[counts >= 2]]
