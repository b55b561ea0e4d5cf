"""A data version in figures: who speaks how long, how what was kept differs from what was dropped, on what ground.

Sums over pieces, in bounded memory but for one entry a speaker. The funnel itself is `curate`'s own and is not counted
again here. Who writes and shows them is `valle2.corpus.data_report`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from valle2.corpus.decisions import Origin, Piece
from valle2.corpus.rules import agreement_wer
from valle2.text import normalise
from valle2.types import SPLITS


@dataclass(frozen=True)
class Measure:
    """Something measured of each segment, and the bins it is counted in; they are the same for all versions."""

    title: str
    unit: str
    low: float
    step: float
    count: int

    def bin(self, value: float) -> int:
        """Of a value; the first and the last bin hold what is beyond them, too."""
        return min(max(int((value - self.low) / self.step + 1e-9), 0), self.count - 1)

    @property
    def edges(self) -> list[float]:
        """Lower edges of the bins, and the last one's upper edge."""
        return [round(self.low + index * self.step, 6) for index in range(self.count + 1)]


MEASURES = {
    "seconds": Measure("Duration", "s", 0, 1, 20),
    "words_per_second": Measure("Words per second", "1/s", 0, 0.25, 24),
    "dnsmos": Measure("DNSMOS P.808", "1 to 5", 1, 0.2, 20),
    "snr": Measure("Signal-to-noise ratio", "dB", 0, 4, 20),
    "bandwidth": Measure("Bandwidth", "Hz", 0, 500, 24),
    "silence": Measure("Silence", "share of frames", 0, 0.05, 20),
    "clipped": Measure("Clipping", "share of samples", 0, 0.0005, 20),
    "given_text_wer": Measure("Recognised against given text", "word errors a word", 0, 0.05, 20),
    "asr_logprob": Measure("How sure Whisper is of its words", "mean log-probability", -2, 0.1, 20),
    "aligner_cer": Measure("What the aligner hears instead", "character errors a character", 0, 0.05, 20),
}


@dataclass
class _Histogram:
    kept: list[int]
    dropped: list[int]
    sums: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})

    def add(self, index: int, value: float, is_kept: bool) -> None:
        (self.kept if is_kept else self.dropped)[index] += 1
        self.sums[is_kept] += value

    def mean(self, is_kept: bool) -> float | None:
        count = sum(self.kept if is_kept else self.dropped)
        return round(self.sums[is_kept] / count, 4) if count else None


class Figures:
    """Counts that pieces are added to."""

    def __init__(self, language: str) -> None:
        """Take the language of the speech, by whose rules texts are compared."""
        self._language = language
        self._rate = 0
        self._taken: Counter[Origin] = Counter()
        self._kept: dict[Origin, Counter[str]] = defaultdict(Counter)
        self._recordings: Counter[str] = Counter()
        self._heard: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._histograms = {name: _Histogram([0] * of.count, [0] * of.count) for name, of in MEASURES.items()}
        self._words = self._errors = 0.0

    def add_recording(self, row: Mapping[str, Any], origin: Origin) -> None:
        """Count a recording that was taken in, a row of `artifacts/ingest/cuts.jsonl`."""
        self._rate = row["recording"]["sampling_rate"]
        self._taken[origin] += round(row["duration"] * self._rate)
        self._recordings["all"] += 1
        self._recordings["assumed"] += origin.assumed
        self._recordings["with_text"] += bool(row["supervisions"][0].get("text"))

    def add_piece(self, piece: Piece) -> None:
        """Count a piece."""
        if piece.is_kept:
            self._kept[piece.origin][piece.outcome] += piece.samples
        if not piece.is_segment:
            return
        if heard := piece.custom.get("heard_language"):
            self._heard[piece.is_kept][heard] += piece.samples
        values = {
            **piece.measures, "seconds": piece.seconds, "given_text_wer": self._agreement(piece),
            "asr_logprob": piece.custom.get("asr_logprob"), "aligner_cer": piece.custom.get("aligner_cer"),
        }  # fmt: skip
        for name, value in values.items():
            if value is not None:
                self._histograms[name].add(MEASURES[name].bin(value), value, piece.is_kept)

    def _agreement(self, piece: Piece) -> float | None:
        """Word errors of what was recognised, where a text was given."""
        heard = piece.custom.get("asr_text")
        if heard is None or not piece.text:
            return None
        wer = agreement_wer(piece.text, normalise(heard, self._language))
        words = len(piece.text.split())
        self._words += words
        self._errors += wer * words
        return wer

    def to_json(self) -> dict[str, Any]:
        """All of them, JSON-able."""
        return {
            "recordings": self._recordings["all"],
            "speakers": self._speakers(),
            "num_speakers": self._speaker_counts(),
            "assumed_speakers": self._assumed(),
            "given_text": {
                "recordings": self._recordings["with_text"],
                "wer": round(self._errors / self._words, 5) if self._words else None,
            },
            "languages": self._hours_by("language"),
            "heard_languages": self._heard_languages(),
            "licences": self._hours_by("licence"),
            "consent": self._hours_by("basis"),
            "measures": {name: self._measure(name) for name in MEASURES},
        }

    def _measure(self, name: str) -> dict[str, Any]:
        counted, of = self._histograms[name], MEASURES[name]
        return {
            "title": of.title, "unit": of.unit, "edges": of.edges, "kept": counted.kept, "dropped": counted.dropped,
            "mean_kept": counted.mean(True), "mean_dropped": counted.mean(False),
        }  # fmt: skip

    def _hours(self, samples: int) -> float:
        return round(samples / self._rate / 3600, 5) if self._rate else 0.0

    def _hours_by(self, trait: str) -> dict[str, dict[str, float]]:
        """Hours taken in and kept, by a field of the origin."""
        taken: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for origin, samples in self._taken.items():
            taken[getattr(origin, trait)] += samples
            kept[getattr(origin, trait)] += self._kept[origin].total()
        return {name: {"in": self._hours(taken[name]), "kept": self._hours(kept[name])} for name in sorted(taken)}

    def _heard_languages(self) -> dict[str, dict[str, float]]:
        names = sorted({name for counted in self._heard.values() for name in counted})
        kept, dropped = self._heard[True], self._heard[False]
        return {name: {"kept": self._hours(kept[name]), "dropped": self._hours(dropped[name])} for name in names}

    def _speakers(self) -> list[dict[str, Any]]:
        """Speakers, those of whom most is kept first."""
        taken: Counter[str] = Counter()
        kept: dict[str, Counter[str]] = defaultdict(Counter)
        assumed: set[str] = set()
        for origin, samples in self._taken.items():
            taken[origin.speaker] += samples
            kept[origin.speaker] += self._kept[origin]
            if origin.assumed:
                assumed.add(origin.speaker)
        names = sorted(taken, key=lambda name: (-kept[name].total(), -taken[name], name))
        return [
            {"speaker": name, "split": "/".join(sorted(kept[name])), "in": self._hours(taken[name]),
             "kept": self._hours(kept[name].total()), "assumed": name in assumed}
            for name in names
        ]  # fmt: skip

    def _speaker_counts(self) -> dict[str, int]:
        by_split = {split: {origin.speaker for origin, own in self._kept.items() if own[split]} for split in SPLITS}
        everyone = {origin.speaker for origin in self._taken}
        return {"in": len(everyone), **{split: len(names) for split, names in by_split.items()}}

    def _assumed(self) -> dict[str, float]:
        mine = [origin for origin in self._taken if origin.assumed]
        return {
            "recordings": self._recordings["assumed"], "speakers": len({origin.speaker for origin in mine}),
            "in": self._hours(sum(self._taken[origin] for origin in mine)),
            "kept": self._hours(sum(self._kept[origin].total() for origin in mine)),
        }  # fmt: skip
