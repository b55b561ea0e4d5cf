"""What was truly said, where a corpus tells it: scores the transcription and is used for nothing else."""

from pathlib import Path

import jiwer

from valle2.corpus.journal import read_jsonl
from valle2.corpus.sources import read_sources
from valle2.text import normalise


class Truth:
    """Texts of a source's `truth.jsonl`, which lies beside its audio folder: rows {recording, segments}.

    Args:
        declaration: `sources.yaml`.
        language: For normalisation.
    """

    def __init__(self, declaration: Path, language: str) -> None:
        self._said = _read_truth(declaration)
        self._language = language
        self._references: list[str] = []
        self._hypotheses: list[str] = []

    def compare(self, file: str, heard: str) -> None:
        """Take note of all that was heard in a recording's file, if it is known what was said there."""
        if (said := self._said.get(file)) is not None:
            self._references.append(normalise(said, self._language))
            self._hypotheses.append(normalise(heard, self._language))

    @property
    def word_error_rate(self) -> float | None:
        """Errors per true word, dropped speech being deletions; None if nothing could be compared."""
        return round(float(jiwer.wer(self._references, self._hypotheses)), 5) if self._references else None


def _read_truth(declaration: Path) -> dict[str, str]:
    truth: dict[str, str] = {}
    for source in read_sources(declaration) if declaration.is_file() else ():
        if "://" in source.path:
            continue
        folder = declaration.parent / source.path
        path = folder.parent / "truth.jsonl"
        for row in read_jsonl(path) if path.is_file() else []:
            truth[(folder / row["recording"]).as_posix()] = " ".join(item["text"] for item in row["segments"])
    return truth
