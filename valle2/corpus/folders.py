"""A tree of audio files, with what lies beside each, or with a table that says what each is."""

import csv
import json
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from valle2.corpus.candidates import Candidate, audio_files, place, recording_id, speaker_of, unlisted
from valle2.corpus.sources import Source
from valle2.errors import SourceError

_COLUMNS = {
    "file": ("file", "path", "audio", "audio_filepath", "file_name", "filename", "wav", "wav_path", "audio_path"),
    "text": ("text", "sentence", "transcript", "transcription", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "language": ("language", "lang", "locale"),
    "start": ("start", "offset"),
    "duration": ("duration",),
}  # fmt: skip
"""Names under which tables and JSON sidecars give a thing; the first that is there counts."""


def read_folder(source: Source, folder: Path) -> Iterator[Candidate]:
    """One candidate a file."""
    if source.table:
        yield from _table(source, folder)
        return
    for path in audio_files(folder):
        relative = path.relative_to(folder)
        try:
            facts = _sidecar(path)
        except SourceError as error:
            yield Candidate(source, path.as_posix(), recording_id(source, relative), speaker_of(source, relative),
                            reason="bad_sidecar", detail=str(error))  # fmt: skip
            continue
        yield Candidate(
            source, path.as_posix(), recording_id(source, relative),
            facts.get("speaker") or speaker_of(source, relative), facts.get("text"), facts.get("language", ""),
        )  # fmt: skip


def _sidecar(path: Path) -> dict[str, str]:
    """What lies beside a file: its text in a .txt or .lab, or facts in a .json."""
    for suffix in (".txt", ".lab"):
        if (beside := path.with_suffix(suffix)).is_file():
            return {"text": _read_text(beside)}
    beside = path.with_suffix(".json")
    return facts_of(parse_json(_read_text(beside), beside), beside) if beside.is_file() else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def parse_json(text: str, where: Path | str) -> Any:
    """Raises: SourceError: it is not JSON; the message says where."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not JSON ({error}); correct it, or take it away") from error


def facts_of(row: Any, where: Path | str) -> dict[str, str]:
    """What a row or a JSON object tells, under our names."""
    if not isinstance(row, Mapping):
        raise SourceError(f"{where} holds no JSON object; expected {{'text': ..., 'speaker': ...}}")
    told = {str(name).strip().lower(): value for name, value in row.items() if name is not None}
    facts = {}
    for key, names in _COLUMNS.items():
        value = next((told[name] for name in names if told.get(name) not in (None, "")), None)
        if value is not None:
            facts[key] = str(value)
    return facts


def _table(source: Source, folder: Path) -> Iterator[Candidate]:
    """Files that a table names; the rest is told as unlisted."""
    table = folder / source.table
    if not table.is_file():
        raise SourceError(f"source {source.name}: no table {table}; correct its `table`")
    named = set()
    for number, row in enumerate(_rows(table), 2 if table.suffix.lower() != ".jsonl" else 1):
        where = f"{table} line {number}"
        facts = facts_of(row, where)
        if "file" not in facts:
            raise SourceError(f"{where} names no file; expected a column named one of {', '.join(_COLUMNS['file'])}")
        path = place(facts["file"], table.parent, folder)
        named.add(path)
        relative = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        start, duration = (_seconds(facts.get(key), where) for key in ("start", "duration"))
        name = recording_id(source, relative)
        yield Candidate(
            source, path.as_posix(), name if start is None else f"{name}-{round(1000 * start):08d}",
            facts.get("speaker") or speaker_of(source, relative), facts.get("text"), facts.get("language", ""),
            start or 0.0, None if start is None else duration,
        )  # fmt: skip
    yield from unlisted(source, folder, named, source.table)


def _rows(table: Path) -> Iterator[Any]:
    text = _read_text(table)
    if table.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield parse_json(line, f"{table} line {number}")
        return
    first = text.split("\n", 1)[0]
    delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;|\t", key=first.count)
    if delimiter == "\t":
        yield from csv.DictReader(StringIO(text), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        yield from csv.DictReader(StringIO(text), delimiter=delimiter)


def _seconds(value: str | None, where: str) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError as error:
        raise SourceError(f"{where} has the time {value!r}; expected seconds") from error
