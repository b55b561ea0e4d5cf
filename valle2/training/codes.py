"""Where utterances' codes are read from: one packed file of a whole split, or the shards themselves.

Both are handed to the workers of `valle2.training.loader`, which need numpy alone for them.
"""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from valle2.errors import ShardError
from valle2.training.index import Utterance


class Codes(Protocol):
    """Gives an utterance's codes; can be sent to another process."""

    def __call__(self, utterance: Utterance) -> Int[np.ndarray, "t k"]:
        """Time first."""
        ...


class PackedCodes:
    """All codes of a split in one memory-mapped array, time first.

    Args:
        path: Of the array.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._array = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[type["PackedCodes"], tuple[Path]]:
        return PackedCodes, (self._path,)

    def __call__(self, utterance: Utterance) -> Int[np.ndarray, "t k"]:
        return self._array[utterance.start : utterance.start + utterance.num_frames]


class ShardCodes:
    """Codes in the members of shards' tar files.

    Args:
        paths: The files, by the shards' numbers; one has to be there when an utterance of it is asked for.
        num_codebooks: How many to keep, from the first.
    """

    def __init__(self, paths: Sequence[Path], num_codebooks: int) -> None:
        self._paths, self._num_codebooks = paths, num_codebooks

    def __call__(self, utterance: Utterance) -> Int[np.ndarray, "t k"]:
        path = self._paths[utterance.shard]
        try:
            with path.open("rb", buffering=0) as file:
                array = _member(file.fileno(), utterance)
        except FileNotFoundError as error:
            raise ShardError(
                f"shard file {path} is missing; put it back and run the same command again: it goes on from the last "
                "checkpoint"
            ) from error
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise ShardError(
                f"shard file {path} is damaged at cut {utterance.id} ({error}); remove it, put the right one there and "
                "run the same command again: it goes on from the last checkpoint"
            ) from error
        return array[: self._num_codebooks, utterance.start : utterance.start + utterance.num_frames].T


def _member(file: int, utterance: Utterance) -> Int[np.ndarray, "k t"]:
    """The array of the tar member that an utterance names."""
    about = tarfile.TarInfo.frombuf(os.pread(file, tarfile.BLOCKSIZE, utterance.member), "utf-8", "surrogateescape")
    if not f"{utterance.id}.npy".startswith(about.name):
        raise ValueError(f"found {about.name}")
    data = os.pread(file, about.size, utterance.member + tarfile.BLOCKSIZE)
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim != 2 or array.shape[1] < utterance.start + utterance.num_frames:
        raise ValueError(f"found an array of shape {array.shape}, expected {utterance.num_frames} frames")
    return array
