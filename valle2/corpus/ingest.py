"""Declared sources to validated recordings: who speaks, under which licence, with whose consent, from which bytes.

A file that is no good is put aside in `quarantine.jsonl` with its reason and the rest goes on. Audio is decoded once,
whole, because a header tells nothing of a file that was cut short. Recordings stay where they are and are resampled
when they are read; of several channels the first is used. Next: `valle2.corpus.transcribe`.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from valle2.config.ingest import IngestConfig, IngestParams
from valle2.corpus import media
from valle2.corpus.audio_check import AudioCheck, check_audio
from valle2.corpus.candidates import Candidate
from valle2.corpus.journal import Journal, write_jsonl
from valle2.corpus.ledger import Ledger
from valle2.corpus.readers import candidates
from valle2.corpus.sources import Rights, read_rights, read_sources
from valle2.errors import SourceError
from valle2.progress import progress
from valle2.stage import file_sha256, finish, output, partial
from valle2.types import Seconds, StageResult

_KEPT = "audio"
"""Folder below the stage's output for audio that later stages could not read where it is."""
_ROUNDING = 0.01
"""Seconds by which a part may end behind its file's end, as index files round."""

Part = tuple[str, float, float | None]
"""A file's SHA-256, and start and duration (s) of what is meant of it."""


def ingest(config: IngestParams) -> StageResult:
    """Validate the declared sources: `data/` -> `artifacts/ingest/`.

    Raises:
        SourceError: No declaration or a wrong one, a source without files, or nothing left after validation.
        StorageError: A remote source does not answer.
    """
    found, rights = read(config.ingest)
    with partial("ingest", _inputs(found, config.ingest)) as work:
        checks = _check_all(found, work, config)
        accepted, quarantine = _sort_out(found, rights, checks, config.ingest)
        _tell(quarantine)
        if not accepted:
            raise SourceError(
                f"nothing is left of {len(found)} files ({_by_reason(quarantine)}); {_remedy(quarantine)}"
            )
        cuts = _cuts(accepted, rights, checks, config.ingest.sample_rate)
        seconds = _write(cuts, work / "out" / "cuts.jsonl")
        write_jsonl(work / "out" / "quarantine.jsonl", quarantine)
        _keep({kept for _, item in accepted if (kept := checks[item.location].kept)}, work)
        finish(work, "ingest")
    speakers = len({item.speaker for _, item in accepted})
    aside = f", {len(quarantine)} files quarantined" if quarantine else ""
    return StageResult(
        f"{len(accepted)} recordings of {speakers} speakers, {seconds / 3600:.2f} h{aside}",
        {
            "recordings": len(accepted), "speakers": speakers, "audio_seconds": round(seconds, 2),
            "quarantined": dict(Counter(row["reason"] for row in quarantine)),
        },
    )  # fmt: skip


def _write(cuts: Iterable[MonoCut], path: Path) -> Seconds:
    """Write cuts, one in memory at a time; returns how long they are."""
    seconds = 0.0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal seconds
        for cut in cuts:
            seconds += cut.duration
            yield cut.to_dict()

    write_jsonl(path, rows())
    return seconds


def read(config: IngestConfig) -> tuple[list[Candidate], dict[str, Rights]]:
    """What all declared sources hold, by id, and the rights of each source.

    Raises:
        SourceError: No declaration or a wrong one, or a source without files.
    """
    declaration = Path(config.sources)
    found: list[Candidate] = []
    rights: dict[str, Rights] = {}
    for source in read_sources(declaration):
        rights[source.name] = read_rights(source, declaration)
        found += candidates(source, source.place(declaration))
    return sorted(found, key=lambda item: item.id), rights


def dry_run(config: IngestParams) -> tuple[Iterator[MonoCut], list[dict[str, Any]]]:
    """What `ingest` would take and what it would refuse; nothing is published, and the run itself checks no file again.

    Returns:
        Recordings as they would be, and rows of the quarantine: file, reason, detail, seconds.

    Raises:
        SourceError: No declaration or a wrong one, or a source without files.
        StorageError: A remote source does not answer.
    """
    found, rights = read(config.ingest)
    with partial("ingest", _inputs(found, config.ingest)) as work:
        checks = _check_all(found, work, config)
    accepted, quarantine = _sort_out(found, rights, checks, config.ingest)
    return _cuts(accepted, rights, checks, config.ingest.sample_rate), quarantine


def _inputs(found: list[Candidate], config: IngestConfig) -> list[Any]:
    return [config.model_dump(), [[item.location, *_stat(item.location)] for item in found]]


def _stat(location: str) -> tuple[int, int]:
    """Size and time of change, which tell that a file is another; of remote audio its name alone does."""
    name = location.rsplit("::", 1)[-1]
    path = Path(name)
    if "://" in name or not path.exists():
        return 0, 0
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _check_all(found: list[Candidate], work: Path, config: IngestParams) -> dict[str, AudioCheck]:
    """Check every file once, several at a time; what a killed run has checked is not checked again."""
    with (
        Journal(work / "checked.jsonl") as journal,
        Ledger("ingest", config.ingest.model_dump(), ["valle2.corpus.audio_check"], ["soundfile"]) as ledger,
        media.Fetcher(work / "fetched") as fetcher,
        ThreadPoolExecutor(config.runtime.num_threads) as pool,
        progress("ingest", len(found), "files") as advance,
    ):
        wanted = list(dict.fromkeys(item.location for item in found if not item.reason))
        left = [location for location in wanted if location not in journal.done]
        advance(len(found) - len(left))

        def check(location: str) -> AudioCheck:
            return _check_media(location, work, config.ingest, ledger, fetcher)

        for location, found_out in zip(left, pool.map(check, left), strict=True):
            journal.add(location, found_out.to_dict())
            advance()
        return {location: AudioCheck(**journal.done.pop(location)) for location in wanted}


def _check_media(location: str, work: Path, config: IngestConfig, ledger: Ledger, fetcher: media.Fetcher) -> AudioCheck:
    """Judge the audio at a location; a copy that later stages can read is left in `work` where they need one.

    Raises:
        StorageError: A remote source does not answer.
    """
    if media.is_local(location):
        return _check_known(Path(location), work, config, ledger)
    try:
        with fetcher.fetched(location) as path:
            check = _check_known(path, work, config, ledger)
            if check.reason or check.kept:
                return check
            kept = check.sha256[:20] + path.suffix
            (work / _KEPT).mkdir(parents=True, exist_ok=True)
            path.replace(work / _KEPT / kept)
            return replace(check, kept=kept)
    except FileNotFoundError as error:
        return AudioCheck("", "missing", str(error))


def _check_known(path: Path, work: Path, config: IngestConfig, ledger: Ledger) -> AudioCheck:
    """Judge a local file; one in a format of ffmpeg's is decoded to a copy."""
    check = _check_once(path, config, ledger)
    if check.reason != "not_audio" or path.suffix.lower() == ".raw":
        return check
    kept = f"{check.sha256[:20]}.flac"
    (work / _KEPT).mkdir(parents=True, exist_ok=True)
    building = work / _KEPT / f"{kept}.{threading.get_ident()}.tmp"  # the same bytes may be decoded twice at a time
    try:
        media.decode(path, building)
        decoded = check_audio(building, config)
    except media.TruncatedError as error:
        return replace(check, reason="truncated", detail=str(error))
    except media.MediaError:
        return check
    if decoded.reason:
        building.unlink()
    else:
        building.replace(work / _KEPT / kept)
    return replace(decoded, sha256=check.sha256, kept="" if decoded.reason else kept)


def _check_once(path: Path, config: IngestConfig, ledger: Ledger) -> AudioCheck:
    """Judge a file, or find how the same bytes were judged before."""
    try:
        item = [file_sha256(path), path.suffix.lower()]
    except OSError:
        return check_audio(path, config)
    if known := ledger.get(item):
        return AudioCheck(**known)
    check = check_audio(path, config)
    ledger.add(item, check.to_dict())
    return check


def _keep(names: Iterable[str], work: Path) -> None:
    """Move the copies that recordings need to the output."""
    for name in sorted(names):
        target = work / "out" / _KEPT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            (work / _KEPT / name).replace(target)


def _sort_out(
    found: list[Candidate], rights: dict[str, Rights], checks: dict[str, AudioCheck], config: IngestConfig
) -> tuple[list[tuple[str, Candidate]], list[dict[str, Any]]]:
    """What is good, with a name of its own each, and one row for each file that is not."""
    accepted: list[tuple[str, Candidate]] = []
    quarantine: list[dict[str, Any]] = []
    first_by_content: dict[Part, str] = {}
    ids: Counter[str] = Counter()
    for item in found:
        check = checks[item.location] if not item.reason else AudioCheck("", item.reason, item.detail)
        refusal = _refusal(item, rights[item.source.name], check, first_by_content, config)
        if refusal:
            seconds = round(_duration(item, check), 4) if check.sample_rate else None
            quarantine.append(
                {"file": item.location, "reason": refusal[0], "detail": refusal[1], "seconds": seconds}
                | ({"start": item.start} if item.duration is not None else {})
            )
            continue
        first_by_content[check.sha256, item.start, item.duration] = item.location
        ids[item.id] += 1
        unique = item.id if ids[item.id] == 1 else f"{item.id}-{check.sha256[:8]}"
        accepted.append((unique, item))
    quarantine.sort(key=lambda row: (row["file"], row.get("start", 0)))
    return sorted(accepted, key=lambda pair: pair[0]), quarantine


def _cuts(
    accepted: list[tuple[str, Candidate]], rights: dict[str, Rights], checks: dict[str, AudioCheck], sample_rate: int
) -> Iterator[MonoCut]:
    for name, item in accepted:
        yield _cut(item, rights[item.source.name], name, checks[item.location], sample_rate)


def _duration(item: Candidate, check: AudioCheck) -> float:
    """Seconds of what is meant of a file."""
    whole = check.num_samples / check.sample_rate
    return whole - item.start if item.duration is None else min(item.duration, whole - item.start)


def _refusal(
    item: Candidate, rights: Rights, check: AudioCheck, first_by_content: dict[Part, str],
    config: IngestConfig,
) -> tuple[str, str] | None:  # fmt: skip
    if check.reason:
        return check.reason, check.detail
    if item.speaker is None:
        return "no_speaker", (
            "the file lies in no speaker's folder; make one folder a speaker, or declare `speaker_from: file`"
        )
    if refused := rights.refusal(item.speaker):
        return refused
    if item.duration is not None:
        whole = check.num_samples / check.sample_rate
        if item.start < 0 or item.start + item.duration > whole + _ROUNDING:
            end = item.start + item.duration
            return "outside_file", f"{item.start:.2f} to {end:.2f} s of a file of {whole:.2f} s; correct the index"
        if _duration(item, check) < config.min_duration:
            return "too_short", f"{item.duration:.2f} s; ingest.min_duration is {config.min_duration} s"
    if first := first_by_content.get((check.sha256, item.start, item.duration)):
        return "duplicate", f"the same bytes as {first}"
    return None


def _cut(item: Candidate, rights: Rights, name: str, check: AudioCheck, sample_rate: int) -> MonoCut:
    channels = list(range(check.num_channels))
    location = (output("ingest") / _KEPT / check.kept).as_posix() if check.kept else item.location
    recording = Recording(
        id=name,
        sources=[AudioSource("file", channels, location)],
        sampling_rate=check.sample_rate,
        num_samples=check.num_samples,
        duration=check.num_samples / check.sample_rate,
        channel_ids=channels,
    ).resample(sample_rate)
    assert item.speaker is not None
    consent = rights.consent(item.speaker)
    assert consent is not None
    duration = recording.duration if item.duration is None else _duration(item, check)
    supervision = SupervisionSegment(
        name, name, 0.0, duration, 0, text=item.text, language=item.language, speaker=item.speaker
    )
    custom = {
        "source": item.source.name,
        "licence": rights.licence(item.speaker),
        "attribution": item.source.attribution,
        "consent": consent.model_dump(mode="json"),
        "sha256": check.sha256,
        **({"file": item.location} if check.kept else {}),
        **({"speaker_assumed": True} if item.speaker_assumed else {}),
    }
    return MonoCut(name, item.start, duration, 0, [supervision], recording=recording, custom=custom)


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
