"""A data version as one page, as figures, and as metrics: what came in, what was dropped and why, what was kept.

The same data gives the same bytes; how fast the stages were is therefore not in it (`valle2 data report` tells). The
page itself is `valle2.corpus.report_page`, what has changed between two versions `valle2.trust.changes`.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from valle2.audio import encode_wave
from valle2.config.transcribe import TranscribeParams
from valle2.corpus.decisions import Piece, origins, pieces
from valle2.corpus.figures import Figures
from valle2.corpus.journal import iterate_jsonl
from valle2.corpus.report_page import write_page
from valle2.corpus.samples import SAMPLE_RATE, Chooser, describe, load
from valle2.shards import read_manifest
from valle2.stage import file_sha256, finish, output, partial, write_json
from valle2.types import SPLITS, StageResult


def data_report(config: TranscribeParams) -> StageResult:
    """Report on what the data stages made: their outputs -> `artifacts/data-report/`.

    Raises:
        SourceError: An output of a data stage is missing, or belongs to another run than the others.
        ShardError: There are no shards.
    """
    known = origins()
    manifest = read_manifest(output("tokenize"))
    figures, chooser = Figures(config.transcribe.language), Chooser()
    for row in iterate_jsonl(output("ingest") / "cuts.jsonl"):
        figures.add_recording(row, known[row["id"]])
    for piece in pieces(known):
        figures.add_piece(piece)
        chooser.add(piece)
    samples, sounds = _samples(chooser.chosen())
    report = {
        "format": 1,
        "made_of": {"shards": file_sha256(output("tokenize") / "manifest.json")},
        "funnel": json.loads((output("curate") / "funnel.json").read_text()),
        "refused": _refused(output("ingest") / "quarantine.jsonl"),
        "shards": _shards(manifest),
        "samples": samples,
        **figures.to_json(),
    }
    report["metrics"] = _metrics(report)
    with partial("data-report", None) as work:
        write_json(work / "out" / "report.json", report)
        write_json(work / "out" / "metrics.json", report["metrics"])
        write_page(work / "out" / "report.html", report, sounds)
        finish(work, "data-report")
    return _result(report)


def _samples(chosen: list[Piece]) -> tuple[list[dict[str, Any]], list[bytes | None]]:
    """What is told of each sample, and its sound as FLAC."""
    wanted = {piece.recording for piece in chosen}
    recordings = {row["id"]: row for row in iterate_jsonl(output("ingest") / "cuts.jsonl") if row["id"] in wanted}
    rows, sounds = [], []
    for piece in chosen:
        wave = load(piece, recordings[piece.recording])
        sounds.append(None if wave is None else encode_wave(wave, SAMPLE_RATE, "FLAC"))
        rows.append({**describe(piece), "is_audible": wave is not None})
    return rows, sounds


def _refused(path: Path) -> dict[str, dict[str, Any]]:
    """Files that `ingest` refused, by reason."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"files": 0, "seconds": 0.0})
    for row in iterate_jsonl(path) if path.is_file() else ():
        own = found[row["reason"]]
        own["files"] += 1
        own["seconds"] += row["seconds"] or 0.0
        own.setdefault("example", row["file"])
        own.setdefault("detail", row["detail"])
    return {reason: {"hours": round(own.pop("seconds") / 3600, 5), **own} for reason, own in sorted(found.items())}


def _shards(manifest: dict[str, Any]) -> dict[str, Any]:
    """What is in the shards of each split, and how they are encoded."""
    splits = {}
    for split, of in manifest["splits"].items():
        files = [file for shard in of["shards"] for file in shard.values() if isinstance(file, dict)]
        splits[split] = {
            "shards": len(of["shards"]), "cuts": of["cuts"], "frames": of["frames"],
            "hours": round(of["seconds"] / 3600, 5), "bytes": sum(file["bytes"] for file in files),
        }  # fmt: skip
    facts = {name: manifest[name] for name in ("codec", "sample_rate", "frame_rate", "num_codebooks", "codebook_size")}
    return {"splits": splits, **facts}


def _metrics(report: dict[str, Any]) -> dict[str, Any]:
    """The figures that are worth comparing from version to version: numbers alone."""
    funnel = report["funnel"]
    kept = {split: part["hours"] for split, part in funnel["kept"].items()}
    dropped = {reason: part["hours"] for reason, part in funnel["dropped"].items()}
    taken = funnel["in"]["hours"]
    means = {name: of["mean_kept"] for name, of in report["measures"].items() if of["mean_kept"] is not None}
    shards = report["shards"]["splits"].values()
    return {
        "hours": {"in": taken, "kept": round(sum(kept.values()), 5), **kept},
        "share_kept": round(sum(kept.values()) / taken, 5) if taken else 0.0,
        "dropped_hours": dropped,
        "segments": {split: part["count"] for split, part in funnel["kept"].items()},
        "recordings": report["recordings"],
        "refused_files": sum(part["files"] for part in report["refused"].values()),
        "speakers": {**report["num_speakers"], "assumed": report["assumed_speakers"]["speakers"]},
        "assumed_hours": report["assumed_speakers"]["in"],
        "mean": means,
        "shards": {name: sum(of[name] for of in shards) for name in ("shards", "frames", "bytes")},
    }


def _result(report: dict[str, Any]) -> StageResult:
    metrics = report["metrics"]
    hours, speakers = metrics["hours"], metrics["speakers"]
    counts = ", ".join(f"{split} {speakers[split]}" for split in SPLITS)
    heard = sum(row["is_audible"] for row in report["samples"])
    figure = f"{metrics['share_kept']:.0%} of {hours['in']:.2f} h kept, speakers: {counts}; {heard} samples to hear"
    return StageResult(figure, {"page": (output("data-report") / "report.html").as_posix(), "samples": heard})
