"""What is measured of the sound of segments: what a worker of `curate` does."""

import os
import socket
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soxr
import torch
from lhotse import MonoCut

from valle2.corpus import quality, sound
from valle2.corpus.fingerprint import fingerprint, pack
from valle2.corpus.journal import write_jsonl
from valle2.corpus.ledger import Ledger, heard
from valle2.types import Seconds

MEASURING = ("valle2.corpus.fingerprint", "valle2.corpus.quality", "valle2.corpus.sound")
"""Modules that make the measures."""
MEASURING_PACKAGES = ("speechmos", "onnxruntime", "librosa", "lhotse", "scipy", "soxr")

_UNIT_SECONDS: Seconds = 300.0


@dataclass(frozen=True)
class Clips:
    """Segments that one worker measures, and what is known of them already."""

    index: int
    rows: tuple[dict[str, Any], ...]
    """Cuts as dicts."""
    known: dict[str, dict[str, Any]]
    """Measures by id."""

    @property
    def name(self) -> str:
        """What it holds."""
        return f"segments {self.rows[0]['id']} to {self.rows[-1]['id']}"

    @property
    def seconds(self) -> Seconds:
        """How much sound there is."""
        return float(sum(row["duration"] for row in self.rows))


def clips(rows: Iterable[dict[str, Any]], ledger: Ledger) -> Iterator[Clips]:
    """Put segments together, in order, until there is enough for a worker."""
    index, waiting, seconds = 0, [], 0.0
    for row in rows:
        waiting.append(row)
        seconds += row["duration"]
        if seconds >= _UNIT_SECONDS:
            yield _with_known(index, waiting, ledger)
            index, waiting, seconds = index + 1, [], 0.0
    if waiting:
        yield _with_known(index, waiting, ledger)


def _with_known(index: int, rows: list[dict[str, Any]], ledger: Ledger) -> Clips:
    found = {row["id"]: ledger.get(heard(row)) for row in rows}
    return Clips(index, tuple(rows), {name: values for name, values in found.items() if values is not None})


class Measurer:
    """The DNSMOS model, loaded once; call it with segments and the measures are in `folder`."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)  # there is a worker for each processor
        self._folder = folder
        self._model = quality.Dnsmos()

    def __call__(self, unit: Clips) -> list[dict[str, Any]]:
        """Returns rows of `id` and measures, those of segments that were not known."""
        rows = [{"id": row["id"], **(unit.known.get(row["id"]) or self._measure(row))} for row in unit.rows]
        path = measured_file(self._folder, unit.index)
        building = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}")
        write_jsonl(building, rows)
        building.replace(path)
        return [row for row in rows if row["id"] not in unit.known]

    def _measure(self, row: dict[str, Any]) -> dict[str, Any]:
        cut = MonoCut.from_dict(_as_recorded(row))
        samples, rate = cut.load_audio()[0], cut.sampling_rate
        wave = soxr.resample(samples, rate, quality.DNSMOS_RATE)
        return {
            "dnsmos": self._model.p808(wave),
            "fingerprint": pack(fingerprint(wave, quality.DNSMOS_RATE)),
            **sound.measure(samples, rate, sound.source_rate(row["recording"])),
        }


def _as_recorded(row: dict[str, Any]) -> dict[str, Any]:
    """A copy of the cut, for Lhotse to take apart, before its recording is resampled: that would smear what clips."""
    row = deepcopy(row)
    recording = row["recording"]
    transforms = recording.get("transforms") or []
    if transforms and transforms[-1]["name"] == "Resample":
        rate = transforms[-1]["kwargs"]["source_sampling_rate"]
        num_samples = round(recording["num_samples"] * rate / recording["sampling_rate"])
        recording |= {"transforms": transforms[:-1], "sampling_rate": rate, "num_samples": num_samples}
    return row


def measured_file(folder: Path, index: int) -> Path:
    """Where the measures of a unit are."""
    return folder / f"{index:06d}.jsonl"
