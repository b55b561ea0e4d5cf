"""Curated cuts to shards: units of work, workers, and parts put together to few large files.

What a worker does is in `valle2.corpus.tokenizer`, what a shard is in `valle2.shards`. Next: `valle2.training.loop`.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial as partial_call
from pathlib import Path
from typing import Any

from lhotse import CutSet

from valle2.codec import Codec, load_codec
from valle2.config.tokenize import TokenizeParams
from valle2.corpus.journal import iterate_jsonl
from valle2.corpus.tokenizer import Part, Tokenizer, is_done, part_folder
from valle2.errors import ShardError
from valle2.progress import progress
from valle2.shards import FIELDS, load_codes
from valle2.stage import output, partial, publish, tree_sha256, write_json
from valle2.types import SPLITS, Seconds, Split, StageResult
from valle2.workers import spread

_SUFFIX = {"cuts": "jsonl", "codes": "tar", "recording": "tar"}
_MB = 1_000_000
_COPIED = 1 << 20
"""Bytes in memory while files are put together."""


def tokenize(config: TokenizeParams) -> StageResult:
    """Encode the curated cuts: `artifacts/curate/*.jsonl` -> `artifacts/tokenize/`.

    Finished parts and shards survive a crash; running again goes on with the next one and gives the same bytes.

    Raises:
        ShardError: The curated cuts are missing, or a written shard does not read back whole.
        CodecError: The codec's weights are missing or wrong.
        WorkerError: A part cannot be done.
    """
    codec = load_codec(config.tokenize.codec, config.runtime.device)
    seconds = sum(row["duration"] for split in SPLITS for row in _curated(split))
    inputs = [config.tokenize.model_dump(), codec.digest, tree_sha256(output("curate"))]
    with partial("tokenize", inputs) as work:
        _encode(work, config, seconds)
        entries = {split: _join(work, split, config.tokenize.shard_mb * _MB) for split in SPLITS}
        manifest = _manifest(entries, codec, config.tokenize.codec)
        write_json(work / "out" / "manifest.json", manifest)
        publish(work / "out", output("tokenize"))
        shutil.rmtree(work)
    totals = [manifest["splits"][split] for split in SPLITS]
    cut_count, shards = sum(total["cuts"] for total in totals), sum(len(total["shards"]) for total in totals)
    frames = sum(total["frames"] for total in totals)
    return StageResult(
        f"{cut_count} cuts, {frames} frames of {codec.num_codebooks} codes in {shards} shards",
        {"audio_seconds": round(seconds, 2), "frames": frames, "shards": shards, "codec": codec.digest},
    )


def _curated(split: Split) -> Iterator[dict[str, Any]]:
    path = output("curate") / f"{split}.jsonl"
    if not path.is_file():
        raise ShardError(f"no curated cuts at {path}; run `valle2 curate`")
    yield from iterate_jsonl(path)


def _parts(split: Split, seconds: Seconds) -> Iterator[Part]:
    """Cuts in order, until there is enough sound for one."""
    index, waiting, length = 0, [], 0.0
    for row in _curated(split):
        waiting.append(row)
        length += row["duration"]
        if length >= seconds:
            yield Part(split, index, tuple(waiting))
            index, waiting, length = index + 1, [], 0.0
    if waiting:
        yield Part(split, index, tuple(waiting))


def _encode(work: Path, config: TokenizeParams, seconds: Seconds) -> None:
    """Have every part done that has not been yet."""
    folder = (work / "parts").absolute()
    folder.mkdir(exist_ok=True)
    joined = {split: sum(entry["parts"] for entry in _joined(work, split)) for split in SPLITS}
    with progress("tokenize", seconds, "s of audio") as advance:

        def waiting() -> Iterator[Part]:
            for split in SPLITS:
                for part in _parts(split, config.tokenize.part_seconds):
                    if part.index < joined[split] or is_done(part_folder(folder, split, part.index)):
                        advance(part.seconds)
                    else:
                        yield part

        for part, _ in spread(waiting(), partial_call(Tokenizer, config, folder), config.runtime, config.ray):
            advance(part.seconds)


def _joined(work: Path, split: Split) -> list[dict[str, Any]]:
    """Entries of the shards that are whole; each also says of how many parts it is."""
    return [json.loads(path.read_text()) for path in sorted((work / "done").glob(f"{split}.*.json"))]


def _join(work: Path, split: Split, size: float) -> list[dict[str, Any]]:
    """Put the parts of a split together, as many as make `size` bytes; returns the shards' entries."""
    entries = _joined(work, split)
    place = sum(entry["parts"] for entry in entries)
    while parts := _next_parts(work / "parts", split, place, size):
        index = len(entries)
        entry = {**_shard(work / "out" / "shards" / split, index, parts), "parts": len(parts)}
        write_json(work / "done" / f"{split}.{index:06d}.json", entry)
        for part in parts:
            shutil.rmtree(part)
        entries.append(entry)
        place += len(parts)
    return [{name: value for name, value in entry.items() if name != "parts"} for entry in entries]


def _next_parts(folder: Path, split: Split, place: int, size: float) -> list[Path]:
    found: list[Path] = []
    total = 0
    while total < size and is_done(part := part_folder(folder, split, place + len(found))):
        found.append(part)
        total += sum((part / field).stat().st_size for field in FIELDS if (part / field).is_file())
    return found


def _shard(folder: Path, index: int, parts: Sequence[Path]) -> dict[str, Any]:
    """Write one shard's files; return its manifest entry."""
    folder.mkdir(parents=True, exist_ok=True)
    entry: dict[str, Any] = {}
    for field in (field for field in FIELDS if (parts[0] / field).is_file()):
        name = f"{field}.{index:06d}.{_SUFFIX[field]}"
        sha256, bytes_written = _put_together(folder / name, [part / field for part in parts], field != "cuts")
        entry[field] = {"file": name, "sha256": sha256, "bytes": bytes_written}
    facts = [json.loads((part / "facts.json").read_text()) for part in parts]
    entry |= {name: sum(own[name] for own in facts) for name in ("cuts_count", "frames", "samples")}
    _read_back(folder, entry)
    return entry


def _put_together(target: Path, parts: Sequence[Path], is_tar: bool) -> tuple[str, int]:
    """The parts end to end, a tar with its end; returns SHA-256 and size."""
    building = target.with_name(target.name + ".tmp")
    sha256 = hashlib.sha256()
    with building.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                while piece := source.read(_COPIED):
                    sha256.update(piece)
                    file.write(piece)
        if is_tar:
            ends = 2 * tarfile.BLOCKSIZE
            end = bytes(ends + -(file.tell() + ends) % tarfile.RECORDSIZE)
            sha256.update(end)
            file.write(end)
        size = file.tell()
    building.replace(target)
    return sha256.hexdigest(), size


def _read_back(folder: Path, entry: dict[str, Any]) -> None:
    cuts = list(
        CutSet.from_shar(fields={field: [str(folder / entry[field]["file"])] for field in FIELDS if field in entry})
    )
    frames = sum(load_codes(cut).shape[1] for cut in cuts)
    if len(cuts) != entry["cuts_count"] or frames != entry["frames"]:
        raise ShardError(
            f"{folder / entry['codes']['file']} reads back {len(cuts)} cuts and {frames} frames, written were "
            f"{entry['cuts_count']} and {entry['frames']}; check the disk and run `valle2 tokenize` again"
        )


def _manifest(entries: dict[Split, list[dict[str, Any]]], codec: Codec, name: str) -> dict[str, Any]:
    return {
        "format": 1,
        "codec": {"name": name, "digest": codec.digest, "codes_digest": codec.codes_digest},
        "sample_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
        "splits": {
            split: {
                "cuts": sum(shard["cuts_count"] for shard in shards),
                "frames": sum(shard["frames"] for shard in shards),
                "seconds": sum(shard["samples"] for shard in shards) / codec.sample_rate,
                "shards": shards,
            }
            for split, shards in entries.items()
        },
    }
