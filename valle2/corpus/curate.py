"""Segments to training material: filtered, speaker-disjoint, with a text tokenizer and a funnel that adds up.

What is measured is in `valle2.corpus.measurer`. Each segment is dropped for the first rule that it breaks
(`valle2.corpus.rules`), and for repeating the text or the sound of a kept one; the funnel tells to the sample
where every hour that was taken in has gone. Next: `valle2.corpus.tokenize`.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial as partial_call
from pathlib import Path
from typing import Any

from valle2.config.curate import CurateConfig, CurateParams
from valle2.corpus import quality
from valle2.corpus.fingerprint import duplicate_groups, unpack
from valle2.corpus.journal import iterate_jsonl, json_line
from valle2.corpus.ledger import Ledger, heard
from valle2.corpus.measurer import MEASURING, MEASURING_PACKAGES, Clips, Measurer, clips, measured_file
from valle2.corpus.rules import Facts, broken_rule
from valle2.corpus.splits import check_leakage, leaked_texts, split_speakers
from valle2.errors import ConfigError, SourceError
from valle2.progress import progress
from valle2.stage import file_sha256, finish, output, partial, write_json
from valle2.text import Bpe, normalise, train_bpe
from valle2.types import SPLITS, Seconds, Split, StageResult
from valle2.workers import spread


@dataclass(frozen=True, slots=True)
class Scored:
    """What is remembered of a segment while all are compared; the rest stays on disk."""

    id: str
    source: str
    speaker: str
    sha256: str
    """Of its recording's sound."""
    group: str
    """The first segment of the same sound."""
    text: str
    """Normalised."""
    heard: str | None
    """What was recognised where the text was given, normalised."""
    language: str
    other_language: float
    logprob: float | None
    aligner_cer: float | None
    rate: float
    """Words per second."""
    seconds: Seconds
    samples: int
    measured: dict[str, float]
    """DNSMOS, and what `valle2.corpus.sound.measure` gives."""


def curate(config: CurateParams) -> StageResult:
    """Filter, split and learn the BPE: `artifacts/transcribe/` -> `artifacts/curate/`.

    Raises:
        SourceError: Segments are missing, none is left, or the splits leak.
        ConfigError: Too few speakers, or a vocabulary smaller than the alphabet.
        WorkerError: Segments cannot be measured.
    """
    folder = output("transcribe")
    segments = folder / "segments.jsonl"
    if not segments.is_file():
        raise SourceError(f"no segments at {segments}; run `valle2 transcribe`")
    with partial("curate", [file_sha256(segments), [file_sha256(_module(name)) for name in MEASURING]]) as work:
        _measure(segments, work, config)
        scored = _score(segments, work, config)
        reasons = judge(scored, config.curate, config.transcribe.language)
        splits = _split(scored, reasons, config)
        compared = check_leakage(splits)
        funnel = {**_funnel(scored, reasons, splits, folder / "dropped.jsonl"), "disjoint": compared}
        _write(segments, work / "out", scored, reasons, splits)
        bpe = _bpe([item.text for item in splits["train"]], config.curate)
        bpe.save(work / "out" / "bpe.json")
        write_json(work / "out" / "funnel.json", funnel)
        finish(work, "curate")
    return _result(funnel, bpe.vocab_size, sum(item.seconds for item in scored))


def _module(name: str) -> Path:
    return Path(str(sys.modules[name].__file__))


def _bpe(texts: Sequence[str], config: CurateConfig) -> Bpe:
    """The tokenizer to keep, so that an earlier model's weights still fit, or one learned from the training text."""
    if not config.bpe:
        return train_bpe(texts, config.vocab_size)
    if not Path(config.bpe).is_file():
        raise ConfigError(f'`curate.bpe` names {config.bpe}, which is no file; set it to "" to learn a new one')
    return Bpe.load(Path(config.bpe))


def _measure(segments: Path, work: Path, config: CurateParams) -> None:
    """Measure each segment's sound; what a killed run and earlier runs have measured is taken over."""
    folder = (work / "measured").absolute()
    folder.mkdir(exist_ok=True)
    total = sum(row["duration"] for row in iterate_jsonl(segments))
    with (
        Ledger("curate", quality.DNSMOS_RATE, MEASURING, MEASURING_PACKAGES) as ledger,
        progress("curate", total, "s of audio") as advance,
    ):

        def waiting() -> Iterator[Clips]:
            for unit in clips(iterate_jsonl(segments), ledger):
                if measured_file(folder, unit.index).is_file():
                    advance(unit.seconds)
                else:
                    yield unit

        for unit, found in spread(waiting(), partial_call(Measurer, folder), config.runtime, config.ray):
            rows = {row["id"]: row for row in unit.rows}
            for values in found:
                ledger.add(heard(rows[values["id"]]), {name: value for name, value in values.items() if name != "id"})
            advance(unit.seconds)


def _score(segments: Path, work: Path, config: CurateParams) -> list[Scored]:
    """All segments, in order, with what was measured."""
    files = sorted((work / "measured").glob("*.jsonl"))
    measures = [values for file in files for values in iterate_jsonl(file)]
    prints = [unpack(values.pop("fingerprint")) for values in measures]
    scored: list[Scored] = []
    for row, values in zip(iterate_jsonl(segments), measures, strict=True):
        about, custom, language = row["supervisions"][0], row["custom"], config.transcribe.language
        assert values.pop("id") == row["id"], f"{row['id']} is not where it should be"
        text = normalise(about.get("text") or "", language)
        said = custom.get("asr_text")
        other = custom.get("heard_language", language) != language
        scored.append(
            Scored(
                id=row["id"], source=custom["source"], speaker=about.get("speaker") or "", sha256=custom["sha256"],
                group=row["id"], text=text,
                heard=None if said is None else normalise(said, language), language=about.get("language") or "",
                other_language=custom["heard_language_probability"] if other else 0.0,
                logprob=custom.get("asr_logprob"), aligner_cer=custom.get("aligner_cer"),
                rate=quality.words_per_second(text, row["duration"]), seconds=row["duration"],
                samples=round(row["duration"] * row["recording"]["sampling_rate"]), measured=values,
            )
        )  # fmt: skip
    groups = duplicate_groups(prints, [item.text for item in scored], config.curate.max_bit_error)
    return [
        item if group == place else replace(item, group=scored[group].id)
        for place, (item, group) in enumerate(zip(scored, groups, strict=True))
    ]


def judge(scored: Sequence[Scored], config: CurateConfig, language: str) -> dict[str, str]:
    """Reason code by id, of the segments that a rule drops; so is what repeats a kept one's text or sound."""
    limits = {name: config.of_source(name) for name in {item.source for item in scored}}
    usual = {
        name: quality.rate_bounds(
            [item.rate for item in scored if item.text and item.source == name], own.words_per_second_iqr
        )
        for name, own in limits.items()
    }
    reasons: dict[str, str] = {}
    said: set[tuple[str, str]] = set()
    sounds: set[str] = set()
    for item in scored:
        facts = Facts(
            item.text, item.heard, item.language, language, item.rate, usual[item.source], **item.measured,
            seconds=item.seconds, logprob=item.logprob, aligner_cer=item.aligner_cer,
            other_language=item.other_language,
        )  # fmt: skip
        reason = broken_rule(facts, limits[item.source])
        if not reason and (item.speaker, item.text) in said:
            reason = "duplicate_text"
        if not reason and item.group in sounds:
            reason = "duplicate_audio"
        if reason:
            reasons[item.id] = reason
        else:
            said.add((item.speaker, item.text))
            sounds.add(item.group)
    return reasons


def _split(scored: Sequence[Scored], reasons: dict[str, str], config: CurateParams) -> dict[Split, list[Scored]]:
    """Kept segments by split; adds the reason `text_leak` for train's segments with a held-out sentence."""
    kept = [item for item in scored if item.id not in reasons]
    if not kept:
        counts = sorted(Counter(reasons.values()).items())
        raise SourceError(
            f"none of {len(scored)} segments is left ({', '.join(f'{count} {reason}' for reason, count in counts)}); "
            "loosen the rule's threshold in section `curate`"
        )
    of_speaker = split_speakers(
        ((item.speaker, item.sha256) for item in kept), config.curate.test_speakers, config.curate.dev_speakers,
        config.runtime.seed,
    )  # fmt: skip
    by_split: dict[Split, list[Scored]] = defaultdict(list)
    for item in kept:
        by_split[of_speaker[item.speaker]].append(item)
    held_out = [item.text for split in ("dev", "test") for item in by_split[split]]
    leaked = leaked_texts([item.text for item in by_split["train"]], held_out)
    reasons |= {item.id: "text_leak" for item in by_split["train"] if item.text in leaked}
    if not any(item.text not in leaked for item in by_split["train"]):
        raise SourceError("every train sentence is also a dev or test sentence; choose other speakers to hold out")
    return {split: [item for item in by_split[split] if item.id not in reasons] for split in SPLITS}


def _write(
    segments: Path, out: Path, scored: Sequence[Scored], reasons: Mapping[str, str],
    splits: Mapping[Split, Sequence[Scored]],
) -> None:  # fmt: skip
    """The rows of each split and of what is dropped, one at a time."""
    out.mkdir(exist_ok=True)
    kept_as = {item.group: item.id for split in SPLITS for item in splits[split]}
    where = {item.id: split for split in SPLITS for item in splits[split]}
    with ExitStack() as files:
        lines = {name: files.enter_context((out / f"{name}.jsonl").open("w")) for name in (*SPLITS, "dropped")}
        for row, item in zip(iterate_jsonl(segments), scored, strict=True):
            if item.id in where:
                about = row["supervisions"][0]
                row["custom"] |= {"raw_text": about["text"], **item.measured, "words_per_second": item.rate}
                about["text"] = item.text
                lines[where[item.id]].write(json_line(row))
            else:
                lines["dropped"].write(json_line(_dropped(row, item, reasons[item.id], kept_as)))


def _dropped(row: dict[str, Any], item: Scored, reason: str, kept_as: Mapping[str, str]) -> dict[str, Any]:
    same = {"same_as": kept_as[item.group]} if item.group in kept_as else {}
    return {
        "id": item.id, "reason": reason, "recording": row["recording"]["id"], "start": row["start"],
        "duration": item.seconds, "source": item.source, "speaker": item.speaker, "text": item.text,
        "words_per_second": item.rate, **item.measured, **same,
    }  # fmt: skip


def _funnel(
    scored: Sequence[Scored], reasons: Mapping[str, str], splits: Mapping[Split, Sequence[Scored]], dropped: Path
) -> dict[str, Any]:
    """Samples, hours and counts of what came in, was dropped for each reason, and is kept; the sums are checked."""
    source_of: dict[str, str] = {}
    taken: dict[str, list[int]] = defaultdict(list)
    rate = 0
    for row in iterate_jsonl(output("ingest") / "cuts.jsonl"):
        rate = row["recording"]["sampling_rate"]
        source_of[row["id"]] = row["custom"]["source"]
        taken[row["custom"]["source"]].append(round(row["duration"] * rate))
    lost: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in iterate_jsonl(dropped):
        lost[source_of[row["recording"]]][row["reason"]].append(row["samples"])
    for item in scored:
        if item.id in reasons:
            lost[item.source][reasons[item.id]].append(item.samples)
    kept: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for split in SPLITS:
        for item in splits[split]:
            kept[item.source][split].append(item.samples)
    of_source = {name: _account(taken[name], lost[name], kept[name], rate) for name in sorted(taken)}
    reasons_met = sorted({reason for own in lost.values() for reason in own})
    everything = _account(
        [count for own in taken.values() for count in own],
        {reason: [count for own in lost.values() for count in own[reason]] for reason in reasons_met},
        {split: [count for own in kept.values() for count in own[split]] for split in SPLITS},
        rate,
    )
    return {"sample_rate": rate, **everything, "sources": of_source}


def _account(
    taken: Sequence[int], lost: Mapping[str, Sequence[int]], kept: Mapping[str, Sequence[int]], rate: int
) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {
        "in": _amount(taken, rate),
        "dropped": {reason: _amount(samples, rate) for reason, samples in sorted(lost.items()) if samples},
        "kept": {split: _amount(kept.get(split, []), rate) for split in SPLITS},
    }
    accounted = sum(part["samples"] for part in (*found["kept"].values(), *found["dropped"].values()))
    assert accounted == found["in"]["samples"], f"funnel: {accounted} samples of {found['in']['samples']}"
    return found


def _amount(samples: Sequence[int], rate: int) -> dict[str, float]:
    return {"count": len(samples), "samples": sum(samples), "hours": round(sum(samples) / rate / 3600, 5)}


def _result(funnel: dict[str, Any], vocab_size: int, seconds: Seconds) -> StageResult:
    kept = funnel["kept"]
    hours = sum(kept[split]["hours"] for split in SPLITS)
    counts = ", ".join(f"{split} {kept[split]['count']}" for split in SPLITS)
    figure = f"{hours:.2f} of {funnel['in']['hours']:.2f} h kept ({counts}), {vocab_size} BPE entries"
    dropped = {reason: part["hours"] for reason, part in funnel["dropped"].items()}
    facts = {
        "audio_seconds": round(seconds, 2), "hours_kept": round(hours, 4), "dropped_hours": dropped,
        "vocab_size": vocab_size,
    }  # fmt: skip
    return StageResult(figure, facts)
