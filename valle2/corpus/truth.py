"""What was truly said, where a corpus tells it: scores the transcription and is used for nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
from lhotse import MonoCut

from valle2.corpus.journal import read_jsonl
from valle2.corpus.sources import read_sources
from valle2.text import normalise


def word_error_rate(
    recordings: Sequence[MonoCut], segments: Sequence[dict[str, Any]], declaration: Path, language: str
) -> float | None:
    """WER of all segments of a recording, in order, against the source's `truth.jsonl`; dropped speech is deletions.

    Args:
        recordings: As ingested.
        segments: As transcribed, as dicts.
        declaration: `sources.yaml`; a source's truth lies beside its audio folder, rows {recording, segments}.
        language: For normalisation.

    Returns:
        Errors per true word; None if no source tells.
    """
    truth = _read_truth(declaration)
    heard: dict[str, list[str]] = defaultdict(list)
    for row in segments:
        heard[row["recording"]["id"]].append(row["supervisions"][0]["text"])
    references, hypotheses = [], []
    for recording in recordings:
        said = truth.get(recording.recording.sources[0].source)
        if said is not None:
            references.append(normalise(said, language))
            hypotheses.append(normalise(" ".join(heard[recording.recording.id]), language))
    return round(float(jiwer.wer(references, hypotheses)), 5) if references else None


def _read_truth(declaration: Path) -> dict[str, str]:
    truth: dict[str, str] = {}
    for source in read_sources(declaration) if declaration.is_file() else ():
        folder = declaration.parent / source.path
        path = folder.parent / "truth.jsonl"
        for row in read_jsonl(path) if path.is_file() else []:
            truth[(folder / row["recording"]).as_posix()] = " ".join(item["text"] for item in row["segments"])
    return truth
