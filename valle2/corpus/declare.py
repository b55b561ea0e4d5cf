"""Taking in audio that is already there: a data folder with its licence and consent declared, and a copy of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from valle2.corpus.journal import write_jsonl
from valle2.corpus.readers import candidates
from valle2.corpus.sources import Source, explain, read_sources
from valle2.errors import SourceError


def declare(
    path: Path | str, to: Path, *, name: str = "", consent_basis: str, consent_record: str = "", in_place: bool = False,
    **fields: Any,
) -> Path:  # fmt: skip
    """Make a data folder of audio that is already there.

    Files are copied, so that what happens in the data folder never touches the originals and DVC can version them; with
    `in_place` they stay where they are. Declaring another source into the same folder adds it.

    Args:
        path: Root of the audio, laid out as its kind says; or a URL, whose audio stays where it is.
        to: The data folder, such as `data`.
        name: Of the source; empty: the folder's.
        consent_basis: Why these voices may be used; written for every speaker, and editable there one by one.
        consent_record: Where the proof is.
        in_place: Declare the audio where it is, instead of copying it.
        fields: Of `Source`: `kind`, `licence`, `attribution`, `language`, `speaker_from`, `recipe`, `table`, ...

    Returns:
        The declaration's file.

    Raises:
        SourceError: There is no audio, or the name is taken.
    """
    remote = "://" in str(path)
    place = str(path).rstrip("/") if remote else Path(path).resolve().as_posix()
    if not remote and not Path(place).is_dir():
        raise SourceError(f"{path} is no folder; expected one with audio")
    if not remote and Path(place) in (to.resolve(), *to.resolve().parents):
        raise SourceError(f"{to} lies inside {path}; declare into a folder outside the source")
    name = name or "".join(char if char.isalnum() else "-" for char in Path(place).name.lower()).strip("-")
    declaration = to / "sources.yaml"
    present = list(read_sources(declaration)) if declaration.is_file() else []
    if name in [source.name for source in present]:
        raise SourceError(f"{declaration} has a source {name!r} already; pass another --name, or remove {to}")
    row = {
        "name": name, "path": place if in_place or remote else f"{name}/audio",
        "speakers": f"{name}/speakers.jsonl", **{key: value for key, value in fields.items() if value},
    }  # fmt: skip
    try:
        source = Source.model_validate(row)
    except ValidationError as error:
        raise SourceError(f"the declaration is not right: {explain(error)}") from error
    speakers = sorted({item.speaker for item in candidates(source, place) if item.speaker})
    if not in_place and not remote:
        _take_in(Path(place), to / name / "audio")
    consent = {"basis": consent_basis, "record": consent_record, "scope": ["training", "evaluation", "synthesis"]}
    write_jsonl(
        to / name / "speakers.jsonl",
        [
            {"speaker": speaker, "licence": source.licence, "consent": consent if consent_basis else None}
            for speaker in speakers
        ],
    )
    declaration.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(known.model_dump_json(exclude_defaults=True)) for known in (*present, source)]
    declaration.write_text(yaml.safe_dump({"sources": rows}, sort_keys=False, allow_unicode=True))
    return declaration


def _take_in(path: Path, folder: Path) -> None:
    """Copy a tree, whole or not at all; never link it, or a change in the data folder would change the user's own."""
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted(path.rglob("*")):
        target = building / file.relative_to(path)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    building.rename(folder)
