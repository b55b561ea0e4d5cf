"""Segments to training material: filtered, speaker-disjoint, with a text tokenizer and a funnel that adds up.

Each segment is dropped for the first rule that it breaks (`valle2.corpus.rules`); the funnel tells to the sample
where every hour that was taken in has gone. Next: `valle2.shards`.
"""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import MonoCut
from lhotse.utils import fastcopy

from valle2.config.curate import CurateConfig, CurateParams
from valle2.corpus import quality, sound
from valle2.corpus.journal import Journal, read_jsonl, write_jsonl
from valle2.corpus.ledger import Ledger
from valle2.corpus.rules import Facts, broken_rule
from valle2.corpus.splits import check_leakage, leaked_texts, split_speakers
from valle2.errors import ConfigError, SourceError
from valle2.progress import progress
from valle2.stage import file_sha256, output, partial, publish, write_json
from valle2.text import Bpe, normalise, train_bpe
from valle2.types import SPLITS, Split, StageResult


@dataclass(frozen=True)
class Scored:
    """A segment with what the rules ask for."""

    cut: MonoCut
    source: str
    text: str
    """Normalised."""
    rate: float
    """Words per second."""
    measured: dict[str, float]
    """DNSMOS, and what `valle2.corpus.sound.measure` gives."""


def curate(config: CurateParams) -> StageResult:
    """Filter, split and learn the BPE: `artifacts/transcribe/` -> `artifacts/curate/`.

    Raises:
        SourceError: Segments are missing, none is left, or the splits leak.
        ConfigError: Too few speakers, or a vocabulary smaller than the alphabet.
    """
    folder = output("transcribe")
    if not (folder / "segments.jsonl").is_file():
        raise SourceError(f"no segments at {folder / 'segments.jsonl'}; run `valle2 transcribe`")
    cuts = [MonoCut.from_dict(row) for row in read_jsonl(folder / "segments.jsonl")]
    with partial("curate", [file_sha256(folder / "segments.jsonl")]) as work:
        scored = _score(cuts, _measure(cuts, work, config.runtime.num_threads), config.transcribe.language)
        reasons = judge(scored, config.curate, config.transcribe.language)
        splits = _split(scored, reasons, config)
        compared = check_leakage(splits)
        funnel = _funnel(cuts, reasons, splits, folder / "dropped.jsonl")
        funnel["disjoint"] = compared
        for split in SPLITS:
            write_jsonl(work / "out" / f"{split}.jsonl", [cut.to_dict() for cut in splits[split]])
        write_jsonl(
            work / "out" / "dropped.jsonl", [_dropped(item, reasons) for item in scored if item.cut.id in reasons]
        )
        bpe = _bpe(splits["train"], config.curate)
        bpe.save(work / "out" / "bpe.json")
        write_json(work / "out" / "funnel.json", funnel)
        publish(work / "out", output("curate"))
        shutil.rmtree(work)
    return _result(funnel, bpe.vocab_size)


def _bpe(train: Sequence[MonoCut], config: CurateConfig) -> Bpe:
    """The tokenizer to keep, so that an earlier model's weights still fit, or one learned from the training text."""
    if not config.bpe:
        return train_bpe([cut.supervisions[0].text for cut in train], config.vocab_size)
    if not Path(config.bpe).is_file():
        raise ConfigError(f'`curate.bpe` names {config.bpe}, which is no file; set it to "" to learn a new one')
    return Bpe.load(Path(config.bpe))


def _measure(cuts: Sequence[MonoCut], work: Path, num_threads: int) -> dict[str, dict[str, float]]:
    """What is measured of each cut's sound; that of a killed run and of earlier runs is taken over."""
    total = sum(cut.duration for cut in cuts)
    model = quality.Dnsmos()

    def measured(cut: MonoCut) -> dict[str, float]:
        p808 = model.p808(cut.resample(quality.DNSMOS_RATE).load_audio()[0])
        file_rate = sound.source_rate(cut.recording.to_dict())
        return {"dnsmos": p808, **sound.measure(cut.load_audio()[0], cut.sampling_rate, file_rate)}

    with (
        Journal(work / "measured.jsonl") as journal,
        Ledger("curate", quality.DNSMOS_RATE, _MEASURING, ("speechmos", "onnxruntime", "librosa", "lhotse")) as ledger,
        ThreadPoolExecutor(num_threads) as pool,
        progress("curate", total, "s of audio") as advance,
    ):
        for cut in cuts:
            if cut.id not in journal.done and (known := ledger.get(_heard(cut))):
                journal.add(cut.id, known)
        left = [cut for cut in cuts if cut.id not in journal.done]
        advance(total - sum(cut.duration for cut in left))
        for cut, values in zip(left, pool.map(measured, left), strict=True):
            journal.add(cut.id, values)
            ledger.add(_heard(cut), values)
            advance(cut.duration)
        return journal.done


_MEASURING = ("valle2.corpus.quality", "valle2.corpus.sound")


def _heard(cut: MonoCut) -> list[Any]:
    """What the measures of a cut's sound depend on."""
    assert cut.custom is not None
    return [cut.custom["sha256"], cut.start, cut.duration, cut.channel, cut.sampling_rate]


def _score(cuts: Sequence[MonoCut], measured: dict[str, dict[str, float]], language: str) -> list[Scored]:
    scored = []
    for cut in cuts:
        text = normalise(cut.supervisions[0].text or "", language)
        rate = quality.words_per_second(text, cut.duration)
        scored.append(Scored(cut, (cut.custom or {})["source"], text, rate, measured[cut.id]))
    return scored


def judge(scored: Sequence[Scored], config: CurateConfig, language: str) -> dict[str, str]:
    """Reason code by cut id, of the segments that a rule drops; a text's later repetitions by its speaker are one."""
    limits = {name: config.of_source(name) for name in {item.source for item in scored}}
    usual = {
        name: quality.rate_bounds(
            [item.rate for item in scored if item.text and item.source == name], own.words_per_second_iqr
        )
        for name, own in limits.items()
    }
    reasons: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for item in scored:
        about = item.cut.supervisions[0]
        heard = (item.cut.custom or {}).get("asr_text")
        facts = Facts(
            item.text, None if heard is None else normalise(heard, language), about.language or "", language, item.rate,
            usual[item.source], **item.measured,
        )  # fmt: skip
        said = about.speaker or "", item.text
        reason = broken_rule(facts, limits[item.source]) or ("duplicate_text" if said in seen else "")
        if reason:
            reasons[item.cut.id] = reason
        else:
            seen.add(said)
    return reasons


def _split(scored: Sequence[Scored], reasons: dict[str, str], config: CurateParams) -> dict[Split, list[MonoCut]]:
    """Kept cuts by split; adds the reason `text_leak` for train's cuts with a held-out sentence."""
    kept = [item for item in scored if item.cut.id not in reasons]
    if not kept:
        counts = sorted({reason: list(reasons.values()).count(reason) for reason in reasons.values()}.items())
        raise SourceError(
            f"none of {len(scored)} segments is left ({', '.join(f'{count} {reason}' for reason, count in counts)}); "
            "loosen the rule's threshold in section `curate`"
        )
    of_speaker = split_speakers(
        [item.cut.supervisions[0].speaker for item in kept],
        config.curate.test_speakers, config.curate.dev_speakers, config.runtime.seed,
    )  # fmt: skip
    by_split: dict[Split, list[Scored]] = defaultdict(list)
    for item in kept:
        by_split[of_speaker[item.cut.supervisions[0].speaker]].append(item)
    held_out = [item.text for split in ("dev", "test") for item in by_split[split]]
    leaked = leaked_texts([item.text for item in by_split["train"]], held_out)
    reasons |= {item.cut.id: "text_leak" for item in by_split["train"] if item.text in leaked}
    if not any(item.text not in leaked for item in by_split["train"]):
        raise SourceError("every train sentence is also a dev or test sentence; choose other speakers to hold out")
    return {split: [_curated(item) for item in by_split[split] if item.cut.id not in reasons] for split in SPLITS}


def _curated(item: Scored) -> MonoCut:
    about = item.cut.supervisions[0]
    custom = {**(item.cut.custom or {}), "raw_text": about.text, **item.measured, "words_per_second": item.rate}
    return fastcopy(item.cut, supervisions=[fastcopy(about, text=item.text)], custom=custom)


def _dropped(item: Scored, reasons: dict[str, str]) -> dict[str, Any]:
    cut, about = item.cut, item.cut.supervisions[0]
    return {
        "id": cut.id, "reason": reasons[cut.id], "recording": cut.recording.id, "start": cut.start,
        "duration": cut.duration, "source": item.source, "speaker": about.speaker, "text": item.text,
        "words_per_second": item.rate, **item.measured,
    }  # fmt: skip


def _funnel(
    cuts: Sequence[MonoCut], reasons: dict[str, str], splits: dict[Split, list[MonoCut]], dropped: Path
) -> dict[str, Any]:
    """Samples, hours and counts of what came in, was dropped for each reason, and is kept; the sums are checked."""
    rate = cuts[0].sampling_rate
    ingested = [MonoCut.from_dict(row) for row in read_jsonl(output("ingest") / "cuts.jsonl")]
    rows: dict[str, list[int]] = defaultdict(list)
    for row in read_jsonl(dropped):
        rows[row["reason"]].append(row["samples"])
    for cut in cuts:
        if cut.id in reasons:
            rows[reasons[cut.id]].append(cut.num_samples)
    kept = {split: _amount([cut.num_samples for cut in splits[split]], rate) for split in SPLITS}
    lost = {reason: _amount(samples, rate) for reason, samples in sorted(rows.items())}
    taken_in = _amount([cut.num_samples for cut in ingested], rate)
    accounted = sum(part["samples"] for part in (*kept.values(), *lost.values()))
    assert accounted == taken_in["samples"], f"funnel: {accounted} samples of {taken_in['samples']}"
    return {"sample_rate": rate, "in": taken_in, "dropped": lost, "kept": kept}


def _amount(samples: Sequence[int], rate: int) -> dict[str, float]:
    return {"count": len(samples), "samples": sum(samples), "hours": round(sum(samples) / rate / 3600, 5)}


def _result(funnel: dict[str, Any], vocab_size: int) -> StageResult:
    kept = funnel["kept"]
    hours = sum(kept[split]["hours"] for split in SPLITS)
    counts = ", ".join(f"{split} {kept[split]['count']}" for split in SPLITS)
    figure = f"{hours:.2f} of {funnel['in']['hours']:.2f} h kept ({counts}), {vocab_size} BPE entries"
    dropped = {reason: part["hours"] for reason, part in funnel["dropped"].items()}
    return StageResult(figure, {"hours_kept": round(hours, 4), "dropped_hours": dropped, "vocab_size": vocab_size})
