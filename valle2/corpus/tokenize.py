"""Curated cuts to shards: units of work, workers, and parts put together to few large files.

What a worker does is in `valle2.corpus.tokenizer`, what a shard is in `valle2.shards`. Next: `valle2.training.loop`.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial as partial_call
from pathlib import Path
from typing import Any

from lhotse import CutSet

from valle2.codec import Codec, load_codec
from valle2.config.tokenize import TokenizeConfig, TokenizeParams
from valle2.corpus.journal import iterate_jsonl
from valle2.corpus.ledger import Ledger, heard
from valle2.corpus.tokenizer import Part, Tokenizer, is_done, part_folder
from valle2.errors import ShardError
from valle2.progress import progress
from valle2.shards import FIELDS, load_codes
from valle2.stage import finish, output, partial, tree_sha256, write_json
from valle2.storage import BLOCK, Patience, send
from valle2.types import SPLITS, Seconds, Split, StageResult
from valle2.workers import spread

_SUFFIX = {"cuts": "jsonl", "codes": "tar", "recording": "tar"}
_MB = 1_000_000
_CODE = ("valle2.codec", "valle2.corpus.tokenizer")
"""Modules that make a cut's codes."""
_PACKAGES = ("torch", "encodec", "lhotse", "soundfile")


def tokenize(config: TokenizeParams) -> StageResult:
    """Encode the curated cuts: `artifacts/curate/*.jsonl` -> `artifacts/tokenize/`.

    Finished parts and shards survive a crash; running again goes on with the next one and gives the same bytes.

    Raises:
        ShardError: The curated cuts are missing, or a written shard does not read back whole.
        CodecError: The codec's weights are missing or wrong.
        WorkerError: A part cannot be done.
        StorageError: The disk is full, or `tokenize.to` cannot be written to.
    """
    codec = load_codec(config.tokenize.codec, config.runtime.device)
    seconds = sum(row["duration"] for split in SPLITS for row in _curated(split))
    inputs = [config.tokenize.model_dump(), codec.digest, tree_sha256(output("curate"))]
    encoding = [codec.codes_digest, config.runtime.device]
    with partial("tokenize", inputs) as work, Ledger("tokenize", encoding, _CODE, _PACKAGES) as ledger:
        joiner = _Joiner(work, config.tokenize)
        _encode(work, config, seconds, ledger, joiner)
        manifest = _manifest({split: joiner.entries(split) for split in SPLITS}, codec, config.tokenize)
        write_json(work / "out" / "manifest.json", manifest)
        finish(work, "tokenize")
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


def _parts(split: Split, seconds: Seconds, ledger: Ledger) -> Iterator[Part]:
    """Cuts in order, until there is enough sound for one."""
    index, waiting, length = 0, [], 0.0
    for row in _curated(split):
        waiting.append(row)
        length += row["duration"]
        if length >= seconds:
            yield _with_known(split, index, waiting, ledger)
            index, waiting, length = index + 1, [], 0.0
    if waiting:
        yield _with_known(split, index, waiting, ledger)


def _with_known(split: Split, index: int, rows: list[dict[str, Any]], ledger: Ledger) -> Part:
    found = {row["id"]: ledger.get(heard(row)) for row in rows}
    return Part(split, index, tuple(rows), {name: codes for name, codes in found.items() if codes is not None})


def _encode(work: Path, config: TokenizeParams, seconds: Seconds, ledger: Ledger, joiner: "_Joiner") -> None:
    """Have every part done that has not been yet; meanwhile those that are done are put together."""
    folder = (work / "parts").absolute()
    folder.mkdir(exist_ok=True)
    with progress("tokenize", seconds, "s of audio") as advance, ThreadPoolExecutor(1) as beside:

        def waiting() -> Iterator[Part]:
            for split in SPLITS:
                for part in _parts(split, config.tokenize.part_seconds, ledger):
                    if is_done(part_folder(folder, split, part.index)) or part.index < joiner.num_parts(split):
                        advance(part.seconds)
                    else:
                        yield part

        joining: Future[None] | None = None
        for part, found in spread(waiting(), partial_call(Tokenizer, config, folder), config.runtime, config.ray):
            rows = {row["id"]: row for row in part.rows}
            for name, codes in found.items():
                ledger.add(heard(rows[name]), codes)
            advance(part.seconds)
            if joining is None or joining.done():
                _result(joining)
                joining = beside.submit(joiner.join)
        _result(joining)
    joiner.join(to_the_end=True)


def _result(joining: "Future[None] | None") -> None:
    if joining is not None:
        joining.result()


class _Joiner:
    """Puts parts together, in their order, as many as make a shard, and sends shards where they belong."""

    def __init__(self, work: Path, config: TokenizeConfig) -> None:
        self._work = work
        self._size = config.shard_mb * _MB
        self._to = config.to.rstrip("/")
        self._patience = Patience()

    def num_parts(self, split: Split) -> int:
        """How many parts of a split are in shards already."""
        return sum(entry["parts"] for entry in self._done(split))

    def entries(self, split: Split) -> list[dict[str, Any]]:
        """The shards of a split, for the manifest."""
        return [{name: value for name, value in entry.items() if name != "parts"} for entry in self._done(split)]

    def _done(self, split: Split) -> list[dict[str, Any]]:
        """The manifest's entries of shards that are whole; each also says of how many parts it is."""
        return [json.loads(path.read_text()) for path in sorted((self._work / "done").glob(f"{split}.*.json"))]

    def join(self, to_the_end: bool = False) -> None:
        """Make what shards can be made of the parts that are there; `to_the_end`, smaller ones at the end too."""
        for split in SPLITS:
            done = self._done(split)
            index, place = len(done), sum(entry["parts"] for entry in done)
            while parts := self._next_parts(split, place, to_the_end):
                folder = self._work / "out" / "shards" / split
                entry = {**_shard(folder, index, parts), "parts": len(parts)}
                if self._to:
                    self._send(folder, split, entry)
                write_json(self._work / "done" / f"{split}.{index:06d}.json", entry)
                for part in parts:
                    shutil.rmtree(part)
                index, place = index + 1, place + len(parts)

    def _next_parts(self, split: Split, place: int, to_the_end: bool) -> list[Path]:
        found: list[Path] = []
        total = 0
        while total < self._size and is_done(part := part_folder(self._work / "parts", split, place + len(found))):
            found.append(part)
            total += sum((part / field).stat().st_size for field in FIELDS if (part / field).is_file())
        return found if total >= self._size or to_the_end else []

    def _send(self, folder: Path, split: Split, entry: dict[str, Any]) -> None:
        """Each file under a name of its content, so that versions of the data do not overwrite each other's."""
        for file in (entry[field] for field in FIELDS if field in entry):
            path = folder / file["file"]
            file["file"] = f"{path.stem}.{file['sha256'][:16]}{path.suffix}"
            send(path, f"{self._to}/{split}/{file['file']}", file["sha256"], self._patience)
            path.unlink()


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
                while piece := source.read(BLOCK):
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


def _manifest(entries: dict[Split, list[dict[str, Any]]], codec: Codec, config: TokenizeConfig) -> dict[str, Any]:
    return {
        "format": 1,
        **({"location": config.to.rstrip("/")} if config.to else {}),
        "codec": {"name": config.codec, "digest": codec.digest, "codes_digest": codec.codes_digest},
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
