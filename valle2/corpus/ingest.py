"""Declared sources to validated recordings: who speaks, under which licence, with whose consent, from which bytes.

A file that is no good is put aside in `quarantine.jsonl` with its reason and the rest goes on. Audio is decoded once,
whole, because a header tells nothing of a file that was cut short. Recordings stay where they are and are resampled
when they are read; of several channels the first is used. Next: `valle2.corpus.transcribe`.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

from valle2.config.ingest import IngestConfig, IngestParams
from valle2.corpus.audio_check import AudioCheck, check_audio
from valle2.corpus.journal import Journal, write_jsonl
from valle2.corpus.sources import Rights, Source, audio_files, read_rights, read_sources, speaker_of
from valle2.errors import SourceError
from valle2.progress import progress
from valle2.stage import output, partial, publish
from valle2.types import StageResult


@dataclass(frozen=True)
class Candidate:
    """A file that may become a recording."""

    source: Source
    rights: Rights
    path: Path
    id: str
    speaker: str | None
    text: str | None
    """As given beside the audio."""


def ingest(config: IngestParams) -> StageResult:
    """Validate the declared sources: `data/` -> `artifacts/ingest/`.

    Raises:
        SourceError: No declaration or a wrong one, a source without files, or nothing left after validation.
    """
    declaration = Path(config.ingest.sources)
    candidates: list[Candidate] = []
    for source in read_sources(declaration):
        found = list(_candidates(source, read_rights(source, declaration), declaration.parent / source.path))
        if not found:
            raise SourceError(f"source {source.name}: no audio in {declaration.parent / source.path}; expected wav, "
                              "flac, mp3 or ogg files" + _recipe_hint(source))  # fmt: skip
        candidates += found
    candidates.sort(key=lambda item: item.id)
    stats = [[item.path.as_posix(), item.path.stat().st_size, item.path.stat().st_mtime_ns] for item in candidates]
    with partial("ingest", [config.ingest.model_dump(), stats]) as work:
        checks = _check_all(candidates, work, config)
        cuts, quarantine = _sort_out(candidates, checks, config.ingest)
        _tell(quarantine)
        if not cuts:
            raise SourceError(
                f"nothing is left of {len(candidates)} files ({_by_reason(quarantine)}); {_remedy(quarantine)}"
            )
        write_jsonl(work / "out" / "cuts.jsonl", [cut.to_dict() for cut in cuts])
        write_jsonl(work / "out" / "quarantine.jsonl", quarantine)
        publish(work / "out", output("ingest"))
        shutil.rmtree(work)
    seconds = sum(cut.duration for cut in cuts)
    speakers = len({cut.supervisions[0].speaker for cut in cuts})
    aside = f", {len(quarantine)} files quarantined" if quarantine else ""
    return StageResult(
        f"{len(cuts)} recordings of {speakers} speakers, {seconds / 3600:.2f} h{aside}",
        {
            "recordings": len(cuts), "speakers": speakers, "audio_seconds": round(seconds, 2),
            "quarantined": dict(Counter(row["reason"] for row in quarantine)),
        },
    )  # fmt: skip


def _candidates(source: Source, rights: Rights, folder: Path) -> Iterator[Candidate]:
    match source.recipe:
        case None:
            for path in audio_files(folder):
                relative = path.relative_to(folder)
                sidecar = path.with_suffix(".txt")
                text = " ".join(sidecar.read_text().split()) if sidecar.is_file() else None
                yield Candidate(
                    source, rights, path, recording_id(source, relative), speaker_of(source, relative), text or None
                )
        case "librispeech":
            yield from _librispeech(source, rights, folder)


def _librispeech(source: Source, rights: Rights, folder: Path) -> Iterator[Candidate]:
    """Utterances as lhotse's recipe reads them, but a broken file is a candidate too, to be quarantined."""
    known = (*LIBRISPEECH, *MINI_LIBRISPEECH)
    parts = source.parts or [name for name in sorted(known) if (folder / name).is_dir()]
    for part in parts:
        if not (folder / part).is_dir():
            raise SourceError(f"source {source.name}: no part {part} in {folder}; correct its `parts`")
        for transcript in sorted((folder / part).rglob("*.trans.txt")):
            for line in transcript.read_text().splitlines():
                name, _, text = line.strip().partition(" ")
                path = transcript.parent / f"{name}.flac"
                if name and path.is_file():
                    yield Candidate(
                        source, rights, path, f"{source.name}-{name}", name.split("-")[0], text.strip() or None
                    )


def _recipe_hint(source: Source) -> str:
    if source.recipe is None:
        return ""
    return f" as lhotse's recipe {source.recipe} lays them out (test-other/1688/142285/1688-142285-0000.flac, ...)"


def recording_id(source: Source, relative: Path) -> str:
    """An id that is a plain file name, told from the path alone."""
    stem = relative.with_suffix("").as_posix()
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")
    return f"{source.name}-{plain}"


def _check_all(candidates: list[Candidate], work: Path, config: IngestParams) -> dict[str, AudioCheck]:
    """Check every file once, several at a time; what a killed run has checked is not checked again."""
    with (
        Journal(work / "checked.jsonl") as journal,
        ThreadPoolExecutor(config.runtime.num_threads) as pool,
        progress("ingest", len(candidates), "files") as advance,
    ):
        paths = list(dict.fromkeys(item.path.as_posix() for item in candidates))
        left = [path for path in paths if path not in journal.done]
        advance(len(paths) - len(left))
        for path, check in zip(left, pool.map(lambda path: check_audio(Path(path), config.ingest), left), strict=True):
            journal.add(path, check.to_dict())
            advance()
        return {path: AudioCheck(**journal.done[path]) for path in paths}


def _sort_out(
    candidates: list[Candidate], checks: dict[str, AudioCheck], config: IngestConfig
) -> tuple[list[MonoCut], list[dict[str, Any]]]:
    """Recordings that are good, and one row for each file that is not."""
    cuts: list[MonoCut] = []
    quarantine: list[dict[str, Any]] = []
    first_by_content: dict[str, Path] = {}
    ids: Counter[str] = Counter()
    for item in candidates:
        check = checks[item.path.as_posix()]
        refusal = _refusal(item, check, first_by_content)
        if refusal:
            seconds = round(check.num_samples / check.sample_rate, 4) if check.sample_rate else None
            quarantine.append(
                {"file": item.path.as_posix(), "reason": refusal[0], "detail": refusal[1], "seconds": seconds}
            )
            continue
        first_by_content[check.sha256] = item.path
        ids[item.id] += 1
        unique = item.id if ids[item.id] == 1 else f"{item.id}-{check.sha256[:8]}"
        cuts.append(_cut(item, unique, check, config.sample_rate))
    return sorted(cuts, key=lambda cut: cut.id), sorted(quarantine, key=lambda row: row["file"])


def _refusal(item: Candidate, check: AudioCheck, first_by_content: dict[str, Path]) -> tuple[str, str] | None:
    if check.reason:
        return check.reason, check.detail
    if item.speaker is None:
        return "no_speaker", (
            "the file lies in no speaker's folder; make one folder a speaker, or declare `speaker_from: file`"
        )
    refused = item.rights.refusal(item.speaker)
    if refused:
        return refused
    if check.sha256 in first_by_content:
        return "duplicate", f"the same bytes as {first_by_content[check.sha256].as_posix()}"
    return None


def _cut(item: Candidate, name: str, check: AudioCheck, sample_rate: int) -> MonoCut:
    channels = list(range(check.num_channels))
    recording = Recording(
        id=name,
        sources=[AudioSource("file", channels, item.path.as_posix())],
        sampling_rate=check.sample_rate,
        num_samples=check.num_samples,
        duration=check.num_samples / check.sample_rate,
        channel_ids=channels,
    ).resample(sample_rate)
    assert item.speaker is not None
    consent = item.rights.consent(item.speaker)
    assert consent is not None
    supervision = SupervisionSegment(
        name, name, 0.0, recording.duration, 0, text=item.text, language=item.source.language, speaker=item.speaker
    )
    custom = {
        "source": item.source.name,
        "licence": item.rights.licence(item.speaker),
        "attribution": item.source.attribution,
        "consent": consent.model_dump(mode="json"),
        "sha256": check.sha256,
    }
    return MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording, custom=custom)


def _tell(quarantine: list[dict[str, Any]]) -> None:
    """One line a reason, with its first file."""
    counts = Counter(row["reason"] for row in quarantine)
    for reason, count in sorted(counts.items()):
        row = next(row for row in quarantine if row["reason"] == reason)
        more = f" and {count - 1} more" if count > 1 else ""
        print(f"ingest: quarantined as {reason}: {row['file']}{more} ({row['detail']})", flush=True)


def _by_reason(quarantine: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{count} {reason}" for reason, count in Counter(row["reason"] for row in quarantine).most_common()
    )


def _remedy(quarantine: list[dict[str, Any]]) -> str:
    commonest = Counter(row["reason"] for row in quarantine).most_common(1)[0][0]
    row = next(row for row in quarantine if row["reason"] == commonest)
    return f"such as {row['file']}: {row['detail']}"
