"""Lhotse manifests that somebody has already made, Libriheavy's cuts among them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from valle2.corpus.candidates import Candidate, language_code, place, plain_id
from valle2.corpus.sources import Source
from valle2.errors import SourceError


def read_manifests(source: Source, folder: Path) -> Iterator[Candidate]:
    """Cuts of Lhotse manifests, Libriheavy's among them."""
    names = source.manifests or tuple(
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*.jsonl*"))
        if path.name.endswith((".jsonl", ".jsonl.gz"))
    )
    seen: set[str] = set()
    for name, cuts in _cut_sets(source, folder, names):
        for cut in cuts:
            for part in cut.trim_to_supervisions(keep_overlapping=False) if len(cut.supervisions) > 1 else (cut,):
                if not isinstance(part, MonoCut) or not part.has_recording:
                    raise SourceError(
                        f"{folder / name}: cut {part.id} has no single recording; expected cuts of one each"
                    )
                plain = plain_id(source, part.id)
                if plain in seen:
                    continue
                seen.add(plain)
                yield _of_cut(source, folder, plain, part)


def _of_cut(source: Source, folder: Path, name: str, cut: MonoCut) -> Candidate:
    origin = cut.recording.sources[0]
    if origin.type not in ("file", "url"):
        return Candidate(source, str(origin.source)[:80], name, None, reason="no_file",
                         detail=f"a Lhotse source of type {origin.type}; expected a file or a URL")  # fmt: skip
    location = str(origin.source)
    if "://" not in location:
        location = place(location, folder).as_posix()
    about = cut.supervisions[0] if cut.supervisions else SupervisionSegment(cut.id, cut.recording.id, 0.0, cut.duration)
    whole = abs(cut.duration - cut.recording.duration) < 0.5 / cut.recording.sampling_rate
    part = {} if whole else {"start": cut.start, "duration": cut.duration}
    text, language = _text_of(about, source), language_code(about.language)
    return Candidate(source, location, name, about.speaker, text, language, **part)


def _text_of(about: SupervisionSegment, source: Source) -> str | None:
    texts = (about.custom or {}).get("texts")
    if about.text or not texts:
        return about.text
    if source.text_variant >= len(texts):
        raise SourceError(
            f"source {source.name}: {about.id} has {len(texts)} texts and `text_variant` is {source.text_variant}; "
            f"expected 0 to {len(texts) - 1}"
        )
    return str(texts[source.text_variant])


def _cut_sets(source: Source, folder: Path, names: Iterable[str]) -> Iterator[tuple[str, CutSet]]:
    """Cuts of each manifest; recordings and supervisions are put together by their ids."""
    recordings: list[Recording] = []
    supervisions: list[SupervisionSegment] = []
    for name in names:
        if not (folder / name).is_file():
            raise SourceError(f"source {source.name}: no manifest {folder / name}; correct its `manifests`")
        match _load_manifest(folder / name):
            case CutSet() as cuts:
                yield name, cuts
            case RecordingSet() as found:
                recordings += found
            case SupervisionSet() as found:
                supervisions += found
    if supervisions and not recordings:
        raise SourceError(f"source {source.name}: supervisions without recordings in {folder}; add their manifest")
    if recordings:
        yield (
            "recordings",
            CutSet.from_manifests(
                RecordingSet.from_recordings(recordings),
                SupervisionSet.from_segments(supervisions) if supervisions else None,
            ),
        )


def _load_manifest(path: Path) -> Any:
    from lhotse.serialization import load_manifest_lazy

    try:
        return load_manifest_lazy(path)
    except (ValueError, AssertionError, LookupError, OSError, EOFError) as error:
        raise SourceError(
            f"{path} is no Lhotse manifest ({' '.join(str(error).split())[:200]}); name the right ones in `manifests`"
        ) from error
