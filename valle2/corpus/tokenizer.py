"""Curated cuts to parts of shards: what a worker of `tokenize` does.

Codes of a cut are the same in whatever company it is encoded, so that those of earlier runs serve as well. A part is
the inside of a shard's files: `valle2.corpus.tokenize` puts parts end to end. Tars are written without their end,
member by member, so that this is a copy of bytes.
"""

import base64
import io
import json
import os
import shutil
import socket
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from jaxtyping import Int16
from lhotse import MonoCut, Recording
from lhotse.array import Array
from lhotse.shar.utils import to_shar_placeholder

from valle2.codec import Codec, load_codec
from valle2.config.tokenize import TokenizeParams
from valle2.stage import write_json
from valle2.types import Seconds, Split

_FULL_SCALE = 32768
_BATCH = 16
"""Cuts of similar length that are encoded together."""


@dataclass(frozen=True)
class Part:
    """Curated cuts that one worker encodes."""

    split: Split
    index: int
    rows: tuple[dict[str, Any], ...]
    """Cuts as dicts."""
    known: dict[str, str]
    """Packed codes of earlier runs, by id."""

    @property
    def name(self) -> str:
        """What it holds."""
        return f"{self.split} segments {self.rows[0]['id']} to {self.rows[-1]['id']}"

    @property
    def seconds(self) -> Seconds:
        """How much sound there is."""
        return float(sum(row["duration"] for row in self.rows))


@dataclass(frozen=True)
class Encoded:
    """A cut's samples at the codec's rate, and their codes."""

    samples: Int16[np.ndarray, " n"]
    codes: Int16[np.ndarray, "k t"]


class Tokenizer:
    """The codec, loaded once; call it with a part and its files are in `folder`.

    Raises:
        CodecError: The codec's weights are missing or wrong.
    """

    def __init__(self, config: TokenizeParams, folder: Path) -> None:
        # Small convolutions gain nothing by more, and the codes then depend on no thread count.
        torch.set_num_threads(1)
        self._folder = folder
        self._store_audio = config.tokenize.store_audio
        self._codec = load_codec(config.tokenize.codec, config.runtime.device)

    def __call__(self, part: Part) -> dict[str, str]:
        """Returns packed codes by id, of those that were not known."""
        target = part_folder(self._folder, part.split, part.index)
        building = target.with_name(f"{target.name}.{socket.gethostname()}-{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        # Lhotse takes its argument apart.
        cuts = [MonoCut.from_dict(deepcopy(row)) for row in part.rows]
        samples = [_samples(cut, self._codec) for cut in cuts]
        known = {place: unpack(part.known[cut.id]) for place, cut in enumerate(cuts) if cut.id in part.known}
        found = known | self._encode(samples, [place for place in range(len(cuts)) if place not in known])
        encoded = [Encoded(own, found[place]) for place, own in enumerate(samples)]
        _write(building, cuts, encoded, self._codec, self._store_audio or part.split != "train")
        facts = {
            "cuts_count": len(cuts),
            "frames": sum(item.codes.shape[1] for item in encoded),
            "samples": sum(len(item.samples) for item in encoded),
        }
        write_json(building / "facts.json", facts)
        _put(building, target)
        return {cut.id: pack(item.codes) for cut, item in zip(cuts, encoded, strict=True) if cut.id not in part.known}

    def _encode(
        self, samples: Sequence[Int16[np.ndarray, " n"]], places: Sequence[int]
    ) -> dict[int, Int16[np.ndarray, "k t"]]:
        """Codes of the samples at these places, those of similar length encoded together."""
        order = sorted(places, key=lambda place: len(samples[place]))
        found: dict[int, Int16[np.ndarray, "k t"]] = {}
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            found |= dict(zip(batch, _codes([samples[place] for place in batch], self._codec), strict=True))
        return found


def part_folder(folder: Path, split: Split, index: int) -> Path:
    """Where a part's files are: `cuts`, `codes`, `recording` and `facts.json`."""
    return folder / f"{split}.{index:06d}"


def is_done(part: Path) -> bool:
    """Whether a part is there, which is then whole."""
    return (part / "facts.json").is_file()


def _put(building: Path, target: Path) -> None:
    """The worker of a run that was killed may still be at the same part."""
    try:
        building.replace(target)
    except OSError:
        if not is_done(target):
            raise
        shutil.rmtree(building)


def pack(codes: Int16[np.ndarray, "k t"]) -> str:
    """Codes as text, compressed; see `unpack`."""
    return f"{len(codes)} {base64.b64encode(zlib.compress(codes.astype('<i2').tobytes())).decode()}"


def unpack(packed: str) -> Int16[np.ndarray, "k t"]:
    """Codes of what `pack` made of them."""
    num_codebooks, text = packed.split()
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i2").astype(np.int16)
    return flat.reshape(int(num_codebooks), -1)


def _samples(cut: MonoCut, codec: Codec) -> Int16[np.ndarray, " n"]:
    """The cut's sound at the codec's rate, as it is stored."""
    wave = cut.resample(codec.sample_rate).load_audio()[0] * _FULL_SCALE
    return np.clip(np.rint(wave), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _codes(samples: Sequence[Int16[np.ndarray, " n"]], codec: Codec) -> list[Int16[np.ndarray, "k t"]]:
    """The codes of these very samples."""
    padded = np.zeros((len(samples), max(map(len, samples))), np.float32)
    for row, own in zip(padded, samples, strict=True):
        row[: len(own)] = own.astype(np.float32) / _FULL_SCALE
    codes = codec.encode(torch.from_numpy(padded), torch.tensor([len(own) for own in samples])).cpu().numpy()
    return [
        found[:, : -(-len(own) // codec.hop_length)].astype(np.int16) for own, found in zip(samples, codes, strict=True)
    ]


def _write(folder: Path, cuts: Sequence[MonoCut], encoded: Sequence[Encoded], codec: Codec, with_audio: bool) -> None:
    rate = codec.sample_rate
    with ExitStack() as files:
        lines = files.enter_context((folder / "cuts").open("w"))
        codes = files.enter_context((folder / "codes").open("wb"))
        audio = files.enter_context((folder / "recording").open("wb")) if with_audio else None
        for cut, item in zip(cuts, encoded, strict=True):
            wave, array = item.samples, item.codes
            recording = to_shar_placeholder(Recording(cut.id, [], rate, len(wave), len(wave) / rate, channel_ids=[0]))
            manifest = Array(storage_type="shar", storage_path="", storage_key="", shape=list(array.shape))
            custom = {**(cut.custom or {}), "frame_rate": codec.frame_rate, "codes": manifest}
            stored = MonoCut(cut.id, 0, len(wave) / rate, 0, cut.supervisions, None, recording, custom)
            _add(codes, f"{cut.id}.npy", _npy_bytes(array), manifest)
            if audio:
                _add(audio, f"{cut.id}.flac", flac_bytes(wave, rate), recording)
            lines.write(json.dumps(stored.to_dict(), sort_keys=True, ensure_ascii=False) + "\n")


def _add(tar: BinaryIO, name: str, data: bytes, manifest: Recording | Array) -> None:
    """One member and, as Shar wants it, its manifest right behind."""
    meta = (json.dumps(manifest.to_dict(), sort_keys=True) + "\n").encode()
    for member, content in ((name, data), (f"{name.rsplit('.', 1)[0]}.json", meta)):
        about = tarfile.TarInfo(member)
        about.size = len(content)
        tar.write(about.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE))


def flac_bytes(samples: Int16[np.ndarray, " n"], sample_rate: int) -> bytes:
    """16-bit FLAC of int16 samples; the same samples are always the same bytes."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
