"""EnCodec codes beside their audio in Lhotse Shar shards: verified before anything is read.

A shard is three files: `cuts.N.jsonl`, `codes.N.tar` (int16 [K, T], plain arrays: a TemporalArray loses last frames)
and `recording.N.tar` (24 kHz mono FLAC, the very samples that the codes were made of; `tokenize.store_audio` leaves it
out of train). A shard that is cut short reads without an error in Lhotse, hence the manifest with counts and checksums.
Where the manifest has a `location`, the files are there, under names that carry their checksum; who reads them fetches
each once, to `shards` in `valle2.tracking.home()`. They are made by `valle2.corpus.tokenize` and read by
`valle2.training.data` and `valle2.training.streaming`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16
from lhotse import CutSet
from lhotse.cut import Cut

from valle2.corpus.journal import iterate_jsonl
from valle2.errors import ShardError
from valle2.stage import file_sha256
from valle2.storage import Patience, fetch
from valle2.tracking import home
from valle2.types import Split

FIELDS = ("cuts", "codes", "recording")


def read_shards(root: Path, split: Split) -> CutSet:
    """The cuts of a split, lazily, with codes and audio, after every shard's checksum was verified.

    Args:
        root: A tokenize output, such as `artifacts/tokenize`.
        split: Which part.

    Returns:
        Cuts in a fixed order; read codes with `load_codes`, audio with `cut.load_audio()`.

    Raises:
        ShardError: A file is missing or is not what the manifest names; the message names it.
        StorageError: The same, of one in a storage; or the storage does not answer.
    """
    manifest = read_manifest(root)
    if split not in manifest["splits"]:
        raise ShardError(f"{root} has no split {split!r}; it holds {', '.join(manifest['splits'])}")
    shards = manifest["splits"][split]["shards"]
    if not shards:
        return CutSet([])
    find = ShardFiles(root, manifest)
    return CutSet.from_shar(
        fields={field: [str(find(split, shard[field])) for shard in shards] for field in FIELDS if field in shards[0]}
    )


def read_cuts(root: Path, split: Split) -> Iterator[dict[str, Any]]:
    """The cuts of a split as dicts, without codes and audio, which are neither fetched nor verified.

    Raises:
        ShardError: As `read_shards`.
        StorageError: As `ShardFiles`.
    """
    manifest = read_manifest(root)
    find = ShardFiles(root, manifest)
    for shard in manifest["splits"].get(split, {"shards": []})["shards"]:
        yield from iterate_jsonl(find(split, shard["cuts"]))


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


class ShardFiles:
    """Finds files of shards, verified.

    Args:
        root: A tokenize output.
        manifest: Its manifest.
    """

    def __init__(self, root: Path, manifest: Mapping[str, Any]) -> None:
        self._root = root
        self._location: str = manifest.get("location", "")
        self._patience = Patience()

    @property
    def remote(self) -> bool:
        """Whether files are fetched; they may then be removed, and are fetched again."""
        return bool(self._location)

    def path(self, split: Split, file: Mapping[str, Any]) -> Path:
        """Where a file is or will be."""
        if self._location:
            return home() / "shards" / file["sha256"][:2] / f"{file['sha256']}{Path(file['file']).suffix}"
        return self._root / "shards" / split / file["file"]

    def __call__(self, split: Split, file: Mapping[str, Any]) -> Path:
        """The file that a shard's entry in the manifest names.

        Raises:
            ShardError: It is missing or is not what the manifest names; the message names it.
            StorageError: The same, of one in a storage; or the storage does not answer.
        """
        path = self.path(split, file)
        if self._location:
            fetch(f"{self._location}/{split}/{file['file']}", path, file["sha256"], self._patience)
            return path
        if not path.is_file():
            raise ShardError(f"shard file {path} is missing; run `dvc checkout` or `valle2 tokenize`")
        found = file_sha256(path)
        if found != file["sha256"]:
            raise ShardError(
                f"shard file {path} is damaged: its SHA-256 is {found[:12]}…, the manifest names "
                f"{file['sha256'][:12]}…; run `dvc checkout --force` or `valle2 tokenize`"
            )
        return path
