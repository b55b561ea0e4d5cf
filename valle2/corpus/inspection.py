"""All that the stages know of one recording or segment: where it comes from, what was decided about it, and why."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float
from lhotse import MonoCut

from valle2.corpus.journal import iterate_jsonl, read_jsonl
from valle2.corpus.sound import source_rate
from valle2.errors import SourceError
from valle2.shards import ShardFiles, read_manifest
from valle2.stage import output
from valle2.types import SPLITS


@dataclass(frozen=True)
class Inspection:
    """What is known, as it is shown.

    Attributes:
        facts: Plain values by heading, in the order of the stages.
        cut: With its audio, unless a stage has not come so far.
        words: Text, start and end (s) within the cut.
    """

    facts: dict[str, Any]
    cut: MonoCut
    words: list[tuple[str, float, float]] = field(default_factory=list)


def inspect(name: str) -> Inspection:
    """Look a recording or a segment up in the outputs of the stages.

    Args:
        name: Id of a recording of `ingest`, or of a segment of `transcribe`.

    Raises:
        SourceError: There is nothing of that name; the message names what is near.
    """
    recordings = _rows("ingest/cuts.jsonl")
    segments = _rows("transcribe/segments.jsonl")
    if name in segments:
        row = segments[name]
        recording = recordings.get(row["recording"]["id"], {})
        return _segment(name, row, recording)
    if name in recordings:
        return _recording(name, recordings[name], segments)
    refused = [row for row in _list("ingest/quarantine.jsonl") if name in (row["file"], Path(row["file"]).name)]
    if refused:
        raise SourceError(f"{refused[0]['file']} was refused as {refused[0]['reason']}: {refused[0]['detail']}")
    near = difflib.get_close_matches(name, [*recordings, *segments], 3, 0.5)
    hint = f"; there is {', '.join(near)}" if near else "; ids are in artifacts/ingest/cuts.jsonl" if recordings else ""
    raise SourceError(f"no recording or segment {name}{hint}{'' if recordings else '; run `valle2 ingest`'}")


def _segment(name: str, row: dict[str, Any], recording: dict[str, Any]) -> Inspection:
    about = row["supervisions"][0]
    words = [(word[0], word[1], word[1] + word[2]) for word in about.get("alignment", {}).get("word", [])]
    scores = [word[3] for word in about.get("alignment", {}).get("word", []) if len(word) > 3 and word[3] is not None]
    facts: dict[str, Any] = {"segment": name, **_origin(recording or row)}
    facts["time"] = f"{row['start']:.3f} to {row['start'] + row['duration']:.3f} s of {row['recording']['id']}"
    facts["text"] = about["text"]
    if heard := row["custom"].get("asr_text"):
        facts["recognised"] = heard
    facts["words"] = len(words)
    if scores:
        facts["alignment score"] = f"{sum(scores) / len(scores):.3f} (least {min(scores):.3f})"
    return Inspection(facts | _decision(name), MonoCut.from_dict(row), words)


def _recording(name: str, row: dict[str, Any], segments: dict[str, dict[str, Any]]) -> Inspection:
    facts: dict[str, Any] = {"recording": name, **_origin(row)}
    if (text := row["supervisions"][0].get("text")) is not None:
        facts["given text"] = text
    own = [segment for segment in segments.values() if segment["recording"]["id"] == name]
    lost = [part for part in _list("transcribe/dropped.jsonl") if part["recording"] == name]
    parts = [(segment["start"], segment["start"] + segment["duration"], segment["id"]) for segment in own]
    parts += [(part["start"], part["end"], f"dropped as {part['reason']}") for part in lost]
    for start, end, what in sorted(parts):
        facts[f"{start:.3f} to {end:.3f} s"] = what
    return Inspection(facts, MonoCut.from_dict(row))


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    custom = row["custom"]
    recording = row["recording"]
    consent = custom.get("consent", {})
    return {
        "file": custom.get("file") or recording["sources"][0]["source"],
        "sha256": custom["sha256"],
        "source": custom["source"],
        "speaker": row["supervisions"][0]["speaker"],
        "licence": custom["licence"],
        "consent": ", ".join(str(consent[key]) for key in ("basis", "record", "date") if consent.get(key)),
        "length": f"{recording['duration']:.3f} s, {source_rate(recording)} Hz",
    }


def _decision(name: str) -> dict[str, Any]:
    """Kept for which split, or dropped for which reason; with what was measured, and the shard."""
    measured = ("dnsmos", "words_per_second", "clipped", "silence", "snr", "bandwidth")
    for row in _list("curate/dropped.jsonl"):
        if row["id"] == name:
            return {"decision": f"dropped as {row['reason']}", **{key: row[key] for key in measured if key in row}}
    for split in SPLITS:
        row = _rows(f"curate/{split}.jsonl").get(name, {})
        if row:
            facts = {key: row["custom"][key] for key in measured if key in row["custom"]}
            return {"decision": f"kept for {split}", **facts, **_shard(name)}
    return {"decision": "none yet; run `valle2 curate`"}


def _shard(name: str) -> dict[str, Any]:
    root = output("tokenize")
    if not (root / "manifest.json").is_file():
        return {}
    manifest = read_manifest(root)
    find = ShardFiles(root, manifest)
    for split in SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            path = find(split, shard["cuts"])
            for row in iterate_jsonl(path):
                if row["id"] == name:
                    codebooks, frames = row["custom"]["codes"]["shape"]
                    place = (
                        f"{manifest['location']}/{split}/{shard['cuts']['file']}" if "location" in manifest else path
                    )
                    return {"shard": str(place), "codes": f"{codebooks} codebooks, {frames} frames"}
    return {}


def _rows(name: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in _list(name)}


def _list(name: str) -> list[dict[str, Any]]:
    stage, file = name.split("/")
    path = Path("artifacts") / stage / file
    return read_jsonl(path) if path.is_file() else []


def draw(found: Inspection, path: Path) -> None:
    """Write a spectrogram with the words above their times.

    Raises:
        SourceError: The place cannot be written, or its suffix names no picture.
    """
    try:
        draw_wave(found.cut.load_audio()[0], found.cut.sampling_rate, path, found.cut.id, found.words)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"cannot draw {path} ({' '.join(str(error).split())}); give a .png in a folder that is there"
        ) from error


def draw_wave(
    wave: Float[np.ndarray, " n"],
    sample_rate: int,
    to: Path | BinaryIO,
    title: str,
    words: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Write a spectrogram.

    Args:
        wave: Mono, in [-1, 1].
        sample_rate: Hz.
        to: Where; into an open file, as PNG.
        title: Above it.
        words: Text, start and end (s).
    """
    from matplotlib.figure import Figure

    seconds = len(wave) / sample_rate
    figure = Figure(figsize=(max(6.0, min(2.0 * seconds, 40.0)), 4.0), layout="constrained")
    axes = figure.subplots()
    wave = np.pad(wave, (0, max(0, 2 * _WINDOW - len(wave))))
    axes.specgram(wave + _FLOOR, NFFT=_WINDOW, noverlap=768, Fs=sample_rate, cmap="magma", vmin=-150)
    axes.set(xlabel="s", ylabel="Hz", xlim=(0, seconds), title=title, ylim=(0, sample_rate / 2))
    for text, start, end in words:
        axes.axvspan(start, end, ymin=0.93, alpha=0.5, color="white")
        axes.text((start + end) / 2, 0.96 * sample_rate / 2, text, ha="center", va="center", fontsize=8)
    figure.savefig(to, dpi=120, format=None if isinstance(to, Path) else "png")


_WINDOW = 1024
"""Samples of a column of the picture."""
_FLOOR = 1e-9
"""Added to samples, so that digital silence has a level."""
