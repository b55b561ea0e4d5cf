"""Training on shards as they come: the index of a split is made of their small `cuts` files alone.

Where in a shard's tar each cut's codes are follows from the lengths: `valle2.corpus.tokenizer` writes members in the
cuts' order and nothing else. The sum is checked against the file's size, and each member's header when it is read.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

from lhotse.serialization import deserialize_item

from valle2.config.model import TransformerConfig
from valle2.config.train import TrainConfig
from valle2.corpus.journal import iterate_jsonl
from valle2.errors import ShardError
from valle2.shards import ShardFiles, read_manifest
from valle2.stage import output
from valle2.text import Bpe
from valle2.training.cache import ShardCache
from valle2.training.codes import ShardCodes
from valle2.training.data import Corpus, fits, word_breaks
from valle2.training.index import IndexWriter, Utterance, alone
from valle2.types import Split

_NPY_HEADER = 128
"""Bytes that numpy writes before the codes of a cut."""
_ENTRY = 2
"""Bytes of a code."""


def stream(
    split: Split,
    bpe: Bpe,
    shape: TransformerConfig,
    num_codebooks: int,
    folder: Path,
    settings: TrainConfig,
    kind: str,
    *,
    with_breaks: bool = False,
) -> Corpus:
    """Index a split, or take the index of an earlier attempt; no codes are fetched yet.

    Args:
        split: Which.
        bpe: Tokenizer of the text.
        shape: Bounds of text and frames.
        num_codebooks: How many codebooks to keep, from the first; the AR model needs one.
        folder: The stage's work folder.
        settings: How many shards are in use at a time, and how much of the disk they may take.
        kind: Section to name in errors, ar or nar.
        with_breaks: Whether to keep where words meet.

    Raises:
        ShardError: A file is missing or not what the manifest names.
        StorageError: The same, of one in a storage; or the storage does not answer.
        TrainingError: The disk's share is too small.
    """
    root = output("tokenize")
    manifest = read_manifest(root)
    shards = manifest["splits"][split]["shards"]
    cache = ShardCache(ShardFiles(root, manifest), split, shards, settings.cache_gb, kind)
    cache.check(settings.stream_shards)
    with alone(folder):
        if not (folder / split).is_dir():
            with IndexWriter(folder / split) as index:
                for number, shard in enumerate(shards):
                    _index_shard(index, number, shard, cache, bpe, shape, with_breaks)
    return Corpus(folder, split, ShardCodes(cache.paths, num_codebooks), cache)


def _index_shard(
    index: IndexWriter,
    number: int,
    shard: dict[str, Any],
    cache: ShardCache,
    bpe: Bpe,
    shape: TransformerConfig,
    with_breaks: bool,
) -> None:
    count = place = 0
    with cache.cuts(number) as path:
        for cut in iterate_jsonl(path):
            spoken, about = cut["supervisions"][0], cut["custom"]["codes"]
            _, num_frames = about["shape"]
            name, text = cut["id"], bpe.encode(spoken["text"])
            place += _long_name(f"{name}.npy")
            if fits(len(text), num_frames, shape):
                breaks = word_breaks(deserialize_item(cut), bpe, text, num_frames) if with_breaks else []
                index.add(Utterance(name, spoken["speaker"], text, 0, num_frames, breaks, number, place))
            else:
                index.leave_out()
            place += _member(_NPY_HEADER + _ENTRY * about["shape"][0] * num_frames)
            place += _long_name(f"{name}.json") + _member(len(json.dumps(about, sort_keys=True)) + 1)
            count += 1
    size = -(-(place + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    if count != shard["cuts_count"] or size != shard["codes"]["bytes"]:
        raise ShardError(
            f"shard {shard['codes']['file']} is not laid out as expected: {count} cuts and {size} bytes, the manifest "
            f"names {shard['cuts_count']} and {shard['codes']['bytes']}; run `valle2 tokenize`, or set stream_shards "
            "to 0"
        )


def _member(size: int) -> int:
    """Bytes that a tar member takes, with its header."""
    return tarfile.BLOCKSIZE * (1 - (-size // tarfile.BLOCKSIZE))


def _long_name(name: str) -> int:
    """Bytes that a name takes in front of its header if that has no room for it."""
    size = len(name.encode())
    return 0 if size <= tarfile.LENGTH_NAME else _member(size + 1)
