"""EnCodec codes beside their audio in Lhotse Shar shards: written byte-stable, verified before anything is read.

A shard is three files: `cuts.N.jsonl`, `codes.N.tar` (int16 [K, T], plain arrays: a TemporalArray loses last frames)
and `recording.N.tar` (24 kHz mono FLAC, the very samples that the codes were made of). A shard that is cut short reads
without an error in Lhotse, hence the manifest with counts and checksums. What the codes are is in `valle2.codec`; who
reads them is `valle2.training.data`.
"""

import io
import json
import math
import shutil
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Int16
from lhotse import CutSet, MonoCut, Recording
from lhotse.array import Array
from lhotse.cut import Cut
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.tar import TarWriter

from valle2.codec import Codec, load_codec
from valle2.config.tokenize import TokenizeParams
from valle2.errors import ShardError
from valle2.progress import Advance, progress
from valle2.stage import file_sha256, output, partial, publish, tree_sha256, write_json, write_text
from valle2.types import SPLITS, Split, StageResult

FIELDS = ("cuts", "codes", "recording")
_SUFFIX = {"cuts": "jsonl", "codes": "tar", "recording": "tar"}
_FULL_SCALE = 32768
_BATCH = 16
"""Cuts of similar length that are encoded together."""


@dataclass(frozen=True)
class Encoded:
    """A cut's samples at the codec's rate, and their codes."""

    samples: Int16[np.ndarray, " n"]
    codes: Int16[np.ndarray, "k t"]


def tokenize(config: TokenizeParams) -> StageResult:
    """Encode the curated cuts: `artifacts/curate/*.jsonl` -> `artifacts/tokenize/`.

    Finished shards survive a crash; running again goes on with the next one and gives the same bytes.

    Raises:
        ShardError: The curated cuts are missing, or a written shard does not read back whole.
        CodecError: The codec's weights are missing or wrong.
    """
    cuts = {split: _curated(split) for split in SPLITS}
    codec = load_codec(config.tokenize.codec, config.runtime.device)
    inputs = [config.tokenize.model_dump(), codec.digest, tree_sha256(output("curate"))]
    seconds = sum(cut.duration for members in cuts.values() for cut in members)
    with (
        partial("tokenize", inputs) as work,
        progress("tokenize", seconds, "s of audio") as advance,
        # One torch thread each: the codes then depend on no thread count, and small convolutions gain nothing by more.
        ThreadPoolExecutor(config.runtime.num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        entries: dict[str, list[dict[str, Any]]] = {}
        for split, members in cuts.items():
            chunk = config.tokenize.cuts_per_shard
            groups = [members[start : start + chunk] for start in range(0, len(members), chunk)]
            entries[split] = [
                _shard(work, split, index, group, codec, pool, advance) for index, group in enumerate(groups)
            ]
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


def read_shards(root: Path, split: Split) -> CutSet:
    """The cuts of a split, lazily, with codes and audio, after every shard's checksum was verified.

    Args:
        root: A tokenize output, such as `artifacts/tokenize`.
        split: Which part.

    Returns:
        Cuts in a fixed order; read codes with `load_codes`, audio with `cut.load_audio()`.

    Raises:
        ShardError: A file is missing or is not what the manifest names; the message names it.
    """
    manifest = read_manifest(root)
    if split not in manifest["splits"]:
        raise ShardError(f"{root} has no split {split!r}; it holds {', '.join(manifest['splits'])}")
    shards = manifest["splits"][split]["shards"]
    folder = root / "shards" / split
    for shard in shards:
        _verify(folder, shard)
    if not shards:
        return CutSet([])
    return CutSet.from_shar(
        fields={field: [str(folder / shard[field]["file"]) for shard in shards] for field in FIELDS}
    )


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a tokenize output: splits with counts, shards with checksums, codec, rates.

    Raises:
        ShardError: It is missing or not whole.
    """
    path = root / "manifest.json"
    if not path.is_file():
        raise ShardError(f"no shards in {root} (no manifest.json); run `valle2 tokenize`")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ShardError(f"{path} is not JSON ({error}); remove {root} and run `valle2 tokenize`") from error
    return manifest


def load_codes(cut: Cut) -> Int16[np.ndarray, "k t"]:
    """A cut's codes.

    Raises:
        ShardError: There are more or fewer frames than the cut's audio needs.
    """
    codes: np.ndarray = cut.load_codes()
    expected = math.ceil(round(cut.num_samples * cut.custom["frame_rate"] / cut.sampling_rate, 6))
    if codes.shape[1] != expected:
        raise ShardError(
            f"cut {cut.id} has {codes.shape[1]} frames of codes for {cut.num_samples} samples, expected {expected}; "
            "remove artifacts/tokenize and run `valle2 tokenize`"
        )
    return codes


def _curated(split: Split) -> list[MonoCut]:
    path = output("curate") / f"{split}.jsonl"
    if not path.is_file():
        raise ShardError(f"no curated cuts at {path}; run `valle2 curate`")
    with path.open() as lines:
        return [MonoCut.from_dict(json.loads(line)) for line in lines]


def _shard(
    work: Path, split: Split, index: int, cuts: list[MonoCut], codec: Codec, pool: Executor, advance: Advance
) -> dict[str, Any]:
    """Write one shard, or find it written; return its manifest entry."""
    done = work / "done" / f"{split}.{index:06d}.json"
    folder = work / "out" / "shards" / split
    if done.is_file():
        entry: dict[str, Any] = json.loads(done.read_text())
        if all((folder / entry[field]["file"]).is_file() for field in FIELDS):
            advance(sum(cut.duration for cut in cuts), f"{split} shard {index} was done")
            return entry
    folder.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(cuts)), key=lambda place: cuts[place].duration)
    batches = [order[first : first + _BATCH] for first in range(0, len(order), _BATCH)]
    made: dict[int, Encoded] = {}

    def encode(batch: list[int]) -> list[Encoded]:
        return _encode([cuts[place] for place in batch], codec)

    for batch, items in zip(batches, pool.map(encode, batches), strict=True):
        made |= dict(zip(batch, items, strict=True))
        advance(sum(cuts[place].duration for place in batch))
    encoded = [made[place] for place in range(len(cuts))]
    names = {field: f"{field}.{index:06d}.{_SUFFIX[field]}" for field in FIELDS}
    _write_shard(folder, names, cuts, encoded, codec)
    entry = {field: {"file": name, "sha256": file_sha256(folder / name)} for field, name in names.items()}
    entry["cuts_count"] = len(cuts)
    entry["frames"] = sum(item.codes.shape[1] for item in encoded)
    entry["samples"] = sum(len(item.samples) for item in encoded)
    _read_back(folder, entry)
    write_json(done, entry)
    return entry


def _encode(cuts: list[MonoCut], codec: Codec) -> list[Encoded]:
    """The 16-bit samples of each cut and the codes of these very samples."""
    waves = [cut.resample(codec.sample_rate).load_audio()[0] * _FULL_SCALE for cut in cuts]
    samples = [np.clip(np.rint(wave), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16) for wave in waves]
    padded = np.zeros((len(cuts), max(map(len, samples))), np.float32)
    for row, own in zip(padded, samples, strict=True):
        row[: len(own)] = own.astype(np.float32) / _FULL_SCALE
    codes = codec.encode(torch.from_numpy(padded), torch.tensor([len(own) for own in samples])).cpu().numpy()
    return [
        Encoded(own, found[:, : -(-len(own) // codec.hop_length)].astype(np.int16))
        for own, found in zip(samples, codes, strict=True)
    ]


def _write_shard(
    folder: Path, names: dict[str, str], cuts: list[MonoCut], encoded: list[Encoded], codec: Codec
) -> None:
    lines = []
    with (
        TarWriter(str(folder / names["recording"]), None) as audio_tar,
        TarWriter(str(folder / names["codes"]), None) as codes_tar,
    ):
        rate = codec.sample_rate
        for cut, item in zip(cuts, encoded, strict=True):
            wave, array = item.samples, item.codes
            recording = to_shar_placeholder(Recording(cut.id, [], rate, len(wave), len(wave) / rate, channel_ids=[0]))
            manifest = Array(storage_type="shar", storage_path="", storage_key="", shape=list(array.shape))
            custom = {**(cut.custom or {}), "frame_rate": codec.frame_rate, "codes": manifest}
            stored = MonoCut(cut.id, 0, len(wave) / rate, 0, cut.supervisions, None, recording, custom)
            _add(audio_tar, f"{cut.id}.flac", flac_bytes(wave, rate), recording)
            _add(codes_tar, f"{cut.id}.npy", _npy_bytes(array), manifest)
            lines.append(json.dumps(stored.to_dict(), sort_keys=True, ensure_ascii=False) + "\n")
    write_text(folder / names["cuts"], "".join(lines))


def _add(tar: TarWriter, name: str, data: bytes, manifest: Recording | Array) -> None:
    """One member and, as Shar wants it, its manifest right behind."""
    tar.write(name, io.BytesIO(data))
    meta = (json.dumps(manifest.to_dict(), sort_keys=True) + "\n").encode()
    tar.write(f"{name.rsplit('.', 1)[0]}.json", io.BytesIO(meta), count=False)


def flac_bytes(samples: Int16[np.ndarray, " n"], sample_rate: int) -> bytes:
    """16-bit FLAC of int16 samples; the same samples are always the same bytes."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _read_back(folder: Path, entry: dict[str, Any]) -> None:
    cuts = list(CutSet.from_shar(fields={field: [str(folder / entry[field]["file"])] for field in FIELDS}))
    frames = sum(load_codes(cut).shape[1] for cut in cuts)
    if len(cuts) != entry["cuts_count"] or frames != entry["frames"]:
        raise ShardError(
            f"{folder / entry['codes']['file']} reads back {len(cuts)} cuts and {frames} frames, written were "
            f"{entry['cuts_count']} and {entry['frames']}; check the disk and run `valle2 tokenize` again"
        )


def _verify(folder: Path, shard: dict[str, Any]) -> None:
    for field in FIELDS:
        path = folder / shard[field]["file"]
        if not path.is_file():
            raise ShardError(f"shard file {path} is missing; run `dvc checkout` or `valle2 tokenize`")
        found = file_sha256(path)
        if found != shard[field]["sha256"]:
            raise ShardError(
                f"shard file {path} is damaged: its SHA-256 is {found[:12]}…, the manifest names "
                f"{shard[field]['sha256'][:12]}…; run `dvc checkout --force` or `valle2 tokenize`"
            )


def _manifest(entries: dict[str, list[dict[str, Any]]], codec: Codec, name: str) -> dict[str, Any]:
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
