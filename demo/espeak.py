"""Speak text with espeak-ng, in process, and keep its own word times.

The library comes from the `espeakng-loader` wheel, so no system package is needed. The stock voice variants flutter
at random, so a sentence never sounds twice alike; a `Voice` here is a variant of our own without flutter, written
beside links to the wheel's data. The same wheel then gives the same samples, in any order and in any process.
"""

import atexit
import ctypes
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import espeakng_loader
import numpy as np

SAMPLE_RATE = 22050
"""Rate (Hz) of everything espeak-ng speaks."""

_RETRIEVAL, _PHONE_EVENTS, _UTF8 = 1, 1, 1
_END_OF_LIST, _WORD_EVENT, _PHONE_EVENT = 0, 1, 7
_RATE, _PITCH, _RANGE = 1, 3, 4


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: an accent, a pitch range and a vocal tract."""

    name: str
    accent: str
    """espeak-ng language, such as `en-us` or `en-gb-x-rp`."""
    pitch: tuple[int, int]
    """Lowest and highest fundamental frequency, Hz."""
    formants: tuple[int, int, int, int]
    """Frequency of formants 1 to 4, % of espeak-ng's default speaker."""
    tilt: int
    """Strength of formants 3 and up, % of the default."""
    rate: int
    """Words per minute."""

    def variant(self) -> str:
        """The voice as an espeak-ng variant file."""
        first, second, third, fourth = self.formants
        rows = [
            (0, first, 100, 100),
            (1, first, 100, 100),
            (2, second, 100, 100),
            (3, third, self.tilt, 100),
            (4, fourth, self.tilt, 100),
            (5, fourth, self.tilt, 100),
        ]
        lines = [
            "language variant",
            f"name {self.name}",
            "flutter 0",
            "roughness 0",
            f"pitch {self.pitch[0]} {self.pitch[1]}",
        ]
        return "\n".join(lines + ["formant " + " ".join(map(str, row)) for row in rows]) + "\n"


@dataclass(frozen=True)
class SpokenWord:
    """A word and where it sounds, in samples at `SAMPLE_RATE`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class SpokenPhone:
    """A phone in espeak-ng's own notation and where it starts, in samples at `SAMPLE_RATE`; it lasts to the next."""

    name: str
    start: int


@dataclass(frozen=True)
class Spoken:
    """A sentence as it was spoken.

    Attributes:
        samples: int16, mono, at `SAMPLE_RATE`; leading and trailing digital silence is cut.
        words: With their times, as espeak-ng's own events give them.
        phones: Likewise; a pause's name begins with `_`.
    """

    samples: np.ndarray
    words: list[SpokenWord]
    phones: list[SpokenPhone]


@cache
def _variants() -> Path:
    """A data folder for espeak-ng: links to the wheel's own, and an empty folder of variants."""
    root = Path(tempfile.mkdtemp(prefix="espeak-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    wheel = Path(espeakng_loader.get_data_path())
    variants = root / "espeak-ng-data" / "voices" / "!v"
    variants.mkdir(parents=True)
    for entry in wheel.iterdir():
        if entry.name != "voices":
            (root / "espeak-ng-data" / entry.name).symlink_to(entry)
    return variants


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_RETRIEVAL, 0, str(_variants().parents[1]).encode(), _PHONE_EVENTS)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"espeak-ng speaks at {rate} Hz, expected {SAMPLE_RATE}: reinstall espeakng-loader")
    return library


def speak(text: str, voice: Voice) -> Spoken:
    """Speak one sentence.

    Args:
        text: Plain words; no SSML.
        voice: Who speaks.
    """
    library = _library()
    chunks: list[np.ndarray] = []
    starts: list[tuple[int, int, int]] = []
    phones: list[tuple[str, int]] = []

    def receive(samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            event = events[index]
            if event.type == _WORD_EVENT:
                starts.append((event.text_position - 1, event.length, event.sample))
            elif event.type == _PHONE_EVENT:
                phones.append((event.id.string.decode(), event.sample))
            index += 1
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    file = _variants() / voice.name
    if not file.exists():
        file.write_text(voice.variant())
    if library.espeak_SetVoiceByName(f"{voice.accent}+{voice.name}".encode()) != 0:
        raise ValueError(f"espeak-ng has no accent {voice.accent!r}")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, 50), (_RANGE, 50)):
        library.espeak_SetParameter(parameter, value, 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    encoded = text.encode()
    if library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None) != 0:
        raise RuntimeError(f"espeak-ng could not speak {text!r}")
    library.espeak_Synchronize()

    samples = np.concatenate(chunks)
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 60)
    first, last = int(loud[0]), int(loud[-1]) + 1
    ends = [start for _, _, start in starts[1:]] + [last]
    words = [
        SpokenWord(text[at : at + length], max(start - first, 0), min(end, last) - first)
        for (at, length, start), end in zip(starts, ends, strict=True)
    ]
    return Spoken(samples[first:last], words, [SpokenPhone(name, max(start - first, 0)) for name, start in phones])
