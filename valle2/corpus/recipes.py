"""Corpora that lhotse knows by name, read with its recipes."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from lhotse import AudioSource, Recording

from valle2.corpus.candidates import Candidate, language_code, plain_id, unlisted
from valle2.corpus.sources import Source
from valle2.errors import SourceError

_PLACEHOLDER_RATE = 16_000


def read_recipe(source: Source, folder: Path) -> Iterator[Candidate]:
    """Utterances as lhotse's recipe reads them; the audio itself is left unread."""
    assert source.recipe is not None
    try:
        with _headers_unread(), redirect_stderr(StringIO()):
            sets = list(_prepare(source, folder))
    except (AssertionError, LookupError, ValueError, OSError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SourceError(
            f"source {source.name}: lhotse's recipe {source.recipe} cannot read {folder} ({found}); expected the "
            f"corpus's own layout, {_LAYOUTS[source.recipe]}"
        ) from error
    named = set()
    for recordings, supervisions in sets:
        for about in sorted(supervisions, key=lambda about: about.id):
            path = Path(recordings[about.recording_id].sources[0].source)
            named.add(path)
            text = (about.custom or {}).get("normalized_text") or about.text
            speaker = about.speaker or (source.name if source.recipe == "ljspeech" else None)
            yield Candidate(
                source, path.as_posix(), plain_id(source, about.id), speaker, text,
                language_code(about.language),
            )  # fmt: skip
    yield from unlisted(source, folder, named, f"lhotse's recipe {source.recipe}")


_LAYOUTS = {
    "librispeech": "such as test-other/1688/142285/1688-142285-0000.flac with 1688-142285.trans.txt",
    "libritts": "such as dev-clean/84/121123/84_121123_000007_000001.wav with 84_121123.trans.tsv and .book.tsv",
    "libritts-r": "such as dev-clean/84/121123/84_121123_000007_000001.wav with 84_121123.trans.tsv and .book.tsv",
    "vctk": "wav48/p225/p225_001.wav (or wav48_silence_trimmed), txt/p225/p225_001.txt and speaker-info.txt",
    "ljspeech": "wavs/LJ001-0001.wav and metadata.csv",
    "hifitts": "92_manifest_clean_train.json and the audio that it names",
    "mls": "mls_german/train/audio/... with transcripts.txt, and metainfo.txt",
    "emilia": "raw/EN/EN_B00000.jsonl and the mp3 files that it names",
}


def _prepare(source: Source, folder: Path) -> Iterator[tuple[Any, Any]]:
    """The recipe's recordings and supervisions, of the parts that are wanted."""
    from lhotse import recipes
    from lhotse.recipes.emilia import prepare_emilia
    from lhotse.recipes.hifitts import prepare_single_partition, to_partition_id
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH
    from lhotse.recipes.libritts import LIBRITTS

    match source.recipe:
        case "librispeech":
            parts = _parts(source, folder, (*LIBRISPEECH, *MINI_LIBRISPEECH))
            yield from _sets(recipes.prepare_librispeech(folder, dataset_parts=parts))
        case "libritts" | "libritts-r":
            parts = _parts(source, folder, LIBRITTS)
            prepare = recipes.prepare_libritts if source.recipe == "libritts" else recipes.prepare_librittsr
            yield from _sets(prepare(folder, dataset_parts=parts))
        case "vctk":
            trimmed = (folder / "wav48_silence_trimmed").is_dir()
            for mic in ("mic2", "mic1") if trimmed else ("mic2",):
                found = list(_sets(recipes.prepare_vctk(folder, use_edinburgh_vctk_url=trimmed, mic_id=mic)))
                if any(len(supervisions) for _, supervisions in found):
                    yield from found
                    break
        case "ljspeech":
            yield from _sets(recipes.prepare_ljspeech(folder))
        case "hifitts":
            for path in sorted(folder.glob("*_manifest_*.json")):
                if not source.parts or to_partition_id(path) in source.parts:
                    speaker, _, quality, _ = path.stem.split("_")
                    yield prepare_single_partition(path, folder, speaker, quality)
        case "mls":
            opus = any(True for _ in folder.rglob("*.opus"))
            for language, splits in recipes.prepare_mls(folder, opus=opus).items():
                if not source.parts or f"mls_{language}" in source.parts:
                    yield from _sets(splits)
        case "emilia":
            languages = _parts(source, folder / "raw", ("DE", "EN", "FR", "JA", "KO", "ZH"))
            for language in languages:
                cuts = prepare_emilia(folder, language.lower(), 1)
                recordings, supervisions, _ = cuts.decompose()
                yield recordings, supervisions


def _parts(source: Source, folder: Path, known: Iterable[str]) -> list[str]:
    """Parts to read: those that are declared, or all that are there."""
    for part in source.parts:
        if not (folder / part).is_dir():
            raise SourceError(f"source {source.name}: no part {part} in {folder}; correct its `parts`")
    return list(source.parts) or [name for name in sorted(set(known)) if (folder / name).is_dir()]


def _sets(found: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs of recordings and supervisions, however deep a recipe nests them."""
    if "recordings" in found:
        yield found["recordings"], found["supervisions"]
        return
    for _, inner in sorted(found.items()):
        yield from _sets(inner)


@contextmanager
def _headers_unread() -> Iterator[None]:
    """Lhotse's recipes read each file's header, and one broken file stops them; meanwhile they get a placeholder."""
    original = Recording.__dict__["from_file"]

    def placeholder(path: Any, recording_id: Any = None, *_: Any, **__: Any) -> Recording:
        name = recording_id(path) if callable(recording_id) else recording_id or Path(path).stem
        sources = [AudioSource("file", [0], str(path))]
        return Recording(name, sources, _PLACEHOLDER_RATE, _PLACEHOLDER_RATE, 1.0)

    Recording.from_file = staticmethod(placeholder)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Recording.from_file = original  # type: ignore[method-assign]
