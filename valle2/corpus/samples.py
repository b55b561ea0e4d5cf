"""A few pieces to hear of each reason of dropping and of each split: the same ones whenever the data is the same."""

import hashlib
from bisect import insort
from collections import defaultdict
from copy import deepcopy
from typing import Any

import numpy as np
from jaxtyping import Float
from lhotse import MonoCut
from lhotse.audio import AudioLoadingError, DurationMismatchError

from valle2.corpus.decisions import Piece
from valle2.types import SPLITS, Seconds

PER_OUTCOME = 3
SAMPLE_RATE = 16_000
MAX_SECONDS: Seconds = 6.0
_SHORTEST: Seconds = 0.02


class Chooser:
    """Keeps, of each outcome, the pieces whose ids have the smallest hashes: any, but not by chance."""

    def __init__(self) -> None:
        self._chosen: dict[str, list[tuple[str, str, Piece]]] = defaultdict(list)

    def add(self, piece: Piece) -> None:
        """Look at a piece."""
        chosen = self._chosen[piece.outcome]
        key = (hashlib.sha256(piece.id.encode()).hexdigest(), piece.id)
        if len(chosen) < PER_OUTCOME or key < chosen[-1][:2]:
            insort(chosen, (*key, piece), key=lambda item: item[:2])
            del chosen[PER_OUTCOME:]

    def chosen(self) -> list[Piece]:
        """Those of the splits, then those of the reasons by name."""
        reasons = sorted(set(self._chosen) - set(SPLITS))
        return [piece for outcome in (*SPLITS, *reasons) for *_, piece in self._chosen.get(outcome, [])]


def describe(piece: Piece) -> dict[str, Any]:
    """What is told of a sample beside its sound."""
    return {
        "id": piece.id, "outcome": piece.outcome, "is_kept": piece.is_kept, "recording": piece.recording,
        "source": piece.origin.source, "speaker": piece.origin.speaker, "start": round(piece.start, 3),
        "seconds": round(piece.seconds, 3), "text": piece.text, "recognised": piece.custom.get("asr_text"),
        "measures": piece.measures,
    }  # fmt: skip


def load(piece: Piece, recording: dict[str, Any]) -> Float[np.ndarray, " n"] | None:
    """The beginning of a piece, at most `MAX_SECONDS` of it, at `SAMPLE_RATE`.

    Args:
        piece: Which.
        recording: Its recording's row in `artifacts/ingest/cuts.jsonl`.

    Returns:
        Samples, or None where the file cannot be read any more, or there is too little to hear.
    """
    if piece.seconds < _SHORTEST:
        return None
    row = deepcopy(recording)  # it takes its argument apart
    row |= {"id": piece.id, "start": piece.start, "duration": min(piece.seconds, MAX_SECONDS), "supervisions": []}
    try:
        wave: np.ndarray = MonoCut.from_dict(row).resample(SAMPLE_RATE).load_audio()[0]
    except (AudioLoadingError, DurationMismatchError, OSError, ValueError):
        return None
    return wave
