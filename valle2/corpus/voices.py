"""Names for the voices that were told apart in a recording.

A recording of hours is heard in stretches, by several workers, and each stretch knows its own voices alone. They are
put together here by their embeddings. Voices of different recordings are not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Embedding = Sequence[float]
"""Of unit length; empty where there is none."""


def name_voices(name: str, stretches: Sequence[dict[str, Any]], same_voice: float) -> None:
    """Give segments their speakers.

    Where there is but one voice, what was assumed is found true, and its name stays.

    Args:
        name: Of the recording.
        stretches: Rows in order: `segments`, and `voices`, pairs of a label and an embedding; a segment's `custom` has
            its label as `voice`. Changed in place.
        same_voice: Least cosine between embeddings of one voice.
    """
    numbers = link([[embedding for _, embedding in row["voices"]] for row in stretches], same_voice)
    several = max((number for own in numbers for number in own), default=0) > 0
    for row, own in zip(stretches, numbers, strict=True):
        number_of = {label: number for (label, _), number in zip(row["voices"], own, strict=True)}
        for segment in row["segments"]:
            custom = segment["custom"]
            if "voice" not in custom:
                continue
            number = number_of[custom.pop("voice")]
            custom.pop("speaker_assumed", None)
            custom["diarised"] = True
            if several:
                segment["supervisions"][0]["speaker"] = f"{name}-spk{number:02d}"


def link(stretches: Sequence[Sequence[Embedding]], same_voice: float) -> list[list[int]]:
    """Number voices as they are first heard, one of an earlier stretch as it was then.

    Two voices of the same stretch are never one; the most similar go first.

    Args:
        stretches: Embeddings of each stretch's voices.
        same_voice: Least cosine between a voice and the mean of those that it is taken for.
    """
    sums: list[np.ndarray] = []
    found: list[list[int]] = []
    for voices in stretches:
        pairs = sorted(
            (-_cosine(total, voice), place, number)
            for place, voice in enumerate(voices)
            for number, total in enumerate(sums)
            if len(voice) and total.any()
        )
        own: dict[int, int] = {}
        for distance, place, number in pairs:
            if -distance >= same_voice and place not in own and number not in own.values():
                own[place] = number
        for place, voice in enumerate(voices):
            if place in own:
                sums[own[place]] = sums[own[place]] + np.asarray(voice)
            else:
                own[place] = len(sums)
                sums.append(np.asarray(voice) if len(voice) else np.zeros(1))
        found.append([own[place] for place in range(len(voices))])
    return found


def _cosine(total: np.ndarray, voice: Embedding) -> float:
    return float(total @ np.asarray(voice)) / float(np.linalg.norm(total))
