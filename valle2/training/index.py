"""The index of a split: what is said in each utterance, by whom, and where its codes are.

Its columns are memory-mapped files, which all processes of a machine share: ten million utterances are no Python
objects, and open at once. It needs numpy alone, so that the workers of `valle2.training.loader` start at once. Where
the codes are read from is in `valle2.training.codes`; the index is written by `valle2.training.data` and
`valle2.training.streaming`.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from valle2.stage import write_json

FLUSH_EVERY = 20_000
"""Utterances in memory while an index is written."""
COLUMNS = {
    "start": "<i8", "num_frames": "<i4", "speaker": "<i4", "shard": "<i4", "member": "<i8",
    "id": "|u1", "id_end": "<i8", "text": "<i4", "text_end": "<i8", "breaks": "<i4", "breaks_end": "<i8",
}  # fmt: skip
"""Each column's type. Ids, texts and breaks lie end to end; `_end` has where each utterance's end."""


@dataclass(frozen=True)
class Utterance:
    """One line of the index.

    Attributes:
        id: Cut id.
        speaker: Who.
        text: BPE tokens.
        start: First frame: in the packed file, or in the shard's array of the cut.
        num_frames: Frames.
        breaks: Between two words each: tokens and frames before it. Empty where not asked for, or not known.
        shard: Number of the shard.
        member: Byte in the shard's tar file at which the cut's array begins, its header included.
    """

    id: str
    speaker: str
    text: list[int]
    start: int
    num_frames: int
    breaks: list[tuple[int, int]] = field(default_factory=list)
    shard: int = 0
    member: int = 0

    def span(self, begin: tuple[int, int], end: tuple[int, int]) -> "Utterance":
        """What lies between two breaks."""
        (token, frame), (last_token, last_frame) = begin, end
        text = self.text[token:last_token]
        inner = [(t - token, f - frame) for t, f in self.breaks if frame < f < last_frame]
        return replace(self, text=text, start=self.start + frame, num_frames=last_frame - frame, breaks=inner)

    def words(self) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "t"]]:
        """The number, from 0, of each token's and of each frame's word; one word where nothing is known of words."""
        tokens, frames = (np.zeros(size, np.int64) for size in (len(self.text), self.num_frames))
        for token, frame in self.breaks:
            tokens[token:] += 1
            frames[frame:] += 1
        return tokens, frames


class Utterances(Sequence[Utterance]):
    """The index, read.

    Args:
        folder: What an `IndexWriter` wrote.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text())
        self.facts: dict[str, Any] = facts
        self._speakers: list[str] = facts["speakers"]
        self._columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
        self.num_frames: Int[np.ndarray, " n"] = self._columns["num_frames"]
        """Of each utterance."""
        self.shards: Int[np.ndarray, " n"] = self._columns["shard"]
        """Of each utterance; ascending."""

    def __len__(self) -> int:
        return len(self.num_frames)

    @overload
    def __getitem__(self, place: int) -> Utterance: ...
    @overload
    def __getitem__(self, place: slice) -> list[Utterance]: ...
    def __getitem__(self, place: int | slice) -> Utterance | list[Utterance]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place = int(place) % len(self)
        breaks = self._piece("breaks", place).reshape(-1, 2).tolist()
        return Utterance(
            id=self._piece("id", place).tobytes().decode(),
            speaker=self._speakers[self._columns["speaker"][place]],
            text=self._piece("text", place).tolist(),
            start=int(self._columns["start"][place]),
            num_frames=int(self.num_frames[place]),
            breaks=[(token, frame) for token, frame in breaks],
            shard=int(self.shards[place]),
            member=int(self._columns["member"][place]),
        )

    def _piece(self, name: str, place: int) -> np.ndarray:
        ends = self._columns[f"{name}_end"]
        return self._columns[name][ends[place - 1] if place else 0 : ends[place]]

    def text_lengths(self) -> Int[np.ndarray, "n"]:
        """Tokens of each utterance."""
        return np.diff(self._columns["text_end"], prepend=0)


class ArrayWriter:
    """An array that grows at its end, in numpy's own format.

    Args:
        path: The file.
        dtype: Of the numbers.
        width: Numbers in a row; 0: the array has one axis.
    """

    def __init__(self, path: Path, dtype: str, width: int = 0) -> None:
        self._file = path.open("wb")
        self._dtype, self._width = np.dtype(dtype), width
        self._rows = 0
        self._write_header()

    def extend(self, rows: Any) -> None:
        """Add rows."""
        array = np.ascontiguousarray(rows, self._dtype)
        self._rows += len(array)
        self._file.write(array.tobytes())

    def close(self) -> None:
        """Say in the header how many rows there are; numpy leaves room there for just this."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        shape = (self._rows, self._width) if self._width else (self._rows,)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class IndexWriter:
    """Writes an index, a few utterances in memory at a time; the folder appears when all is written.

    with IndexWriter(folder) as index:
        index.add(utterance)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.building = folder.with_name(f"{folder.name}.tmp")
        """For further files that belong to the index."""
        shutil.rmtree(self.building, ignore_errors=True)
        self.building.mkdir(parents=True)
        self._columns = {name: ArrayWriter(self.building / f"{name}.npy", dtype) for name, dtype in COLUMNS.items()}
        self._ends = dict.fromkeys(("id", "text", "breaks"), 0)
        self._speakers: dict[str, int] = {}
        self._waiting: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.facts: dict[str, Any] = {"left_out": 0, "frames": 0}

    def __enter__(self) -> "IndexWriter":
        return self

    def add(self, utterance: Utterance) -> None:
        """Add one; those of a shard come together, in the shards' order."""
        row = self._waiting
        for name in ("start", "num_frames", "shard", "member"):
            row[name].append(getattr(utterance, name))
        row["speaker"].append(self._speakers.setdefault(utterance.speaker, len(self._speakers)))
        pieces = {
            "id": list(utterance.id.encode()),
            "text": utterance.text,
            "breaks": [number for pair in utterance.breaks for number in pair],
        }
        for name, piece in pieces.items():
            row[name].extend(piece)
            self._ends[name] += len(piece)
            row[f"{name}_end"].append(self._ends[name])
        self.facts["frames"] += utterance.num_frames
        if len(row["start"]) >= FLUSH_EVERY:
            self._flush()

    def leave_out(self) -> None:
        """Count one that is not added."""
        self.facts["left_out"] += 1

    def _flush(self) -> None:
        for name, values in self._waiting.items():
            self._columns[name].extend(values)
            values.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        for column in self._columns.values():
            column.close()
        if kind is None:
            write_json(self.building / "facts.json", {**self.facts, "speakers": list(self._speakers)})
            self.building.replace(self._folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: what the first one makes in a folder, the ranks behind it find there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
