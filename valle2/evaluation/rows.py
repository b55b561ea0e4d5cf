"""Every row of every case with its figures, as in `cases.json`.

Read back from 16-bit files (`valle2.evaluation.speech`), so that a resumed run scores the very same samples.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from valle2.audio import read_wave
from valle2.config.evaluate import EvaluateConfig, EvaluateParams
from valle2.evaluation.best_of import choose
from valle2.evaluation.cases import Case
from valle2.evaluation.metrics import ending, silence, similarity, sound_seconds, word_errors
from valle2.evaluation.scorer import Heard, Scorer
from valle2.evaluation.speech import continued, reading
from valle2.progress import Advance
from valle2.text import normalise
from valle2.types import Seconds

BATCH = 8
"""Cases of which all rows are held in memory and scored together."""


Voices = dict[str, Float[np.ndarray, " d"]]
"""Case -> speaker embedding."""


@dataclass(frozen=True)
class Row:
    """Speech of a case that is scored.

    Attributes:
        name: As in `cases.json`.
        speech: The row that it is, or is the end of.
        whole: Whether it holds the prompt that it continues, if it continues one.
    """

    name: str
    speech: str
    whole: bool


def rows_of(case: Case, num_readings: int) -> list[Row]:
    """The rows of a case: every reading of the model, and the speaker's own where there is one."""
    names = [reading(turn) for turn in range(num_readings)]
    names += [] if case.reference is None else ["ground_truth", "reconstruction"]
    ends = [Row(continued(name), name, False) for name in names if case.said_before is not None]
    return [Row(name, name, True) for name in names] + ends


def score(
    folder: Path, cases: Sequence[Case], sample_rate: int, scorer: Scorer, config: EvaluateParams, advance: Advance
) -> list[dict[str, Any]]:
    """Score the speech of cases.

    Args:
        folder: As `valle2.evaluation.speech.make_speech` leaves it.
        cases: What should have been said, and by whom.
        sample_rate: Of the files, Hz.
        scorer: The metrics' models.
        config: Language and thresholds.
        advance: Told of each utterance.

    Returns:
        An entry a case: its text, speaker and prompt, and for each row `heard`, `errors`, `sim_own`, `sim_others`,
        `sim_wins`, `sim_reconstructed`, `dnsmos`,..., with `ending` where a model spoke.
    """
    num_readings = config.evaluate.num_readings
    prompts = _voices(folder / "prompt", cases, sample_rate, scorer)
    coded = _voices(folder / "prompt_reconstruction", cases, sample_rate, scorer)
    entries = []
    for first in range(0, len(cases), BATCH):
        batch = cases[first : first + BATCH]
        pairs = [(case, row) for case in batch for row in rows_of(case, num_readings)]
        waves = [read_wave(folder / row.name / f"{case.id}.wav", sample_rate) for case, row in pairs]
        found: dict[str, dict[str, Any]] = {case.id: {} for case in batch}
        for (case, row), wave, heard in zip(pairs, waves, scorer.listen(waves, sample_rate), strict=True):
            # One prompt of each other speaker of the protocol, the first: all speakers weigh the same.
            peers = [other for other in cases if other.protocol == case.protocol and other.speaker != case.speaker]
            firsts = {other.speaker: other.id for other in reversed(peers)}
            near = similarity(heard.voice, prompts[case.id], [prompts[name] for _, name in sorted(firsts.items())])
            found[case.id][row.name] = {
                **_figures(heard, case.whole_text if row.whole else case.text, config.transcribe.language),
                "sim_own": round(near.own, 6),
                "sim_others": [round(value, 6) for value in near.others],
                "sim_wins": near.wins,
                "sim_reconstructed": round(float(heard.voice @ coded[case.id]), 6),
                "seconds": round(len(wave) / sample_rate, 3),
                "silence": round(silence(wave, sample_rate), 6),
                **_ending(wave, sample_rate, folder / row.speech / f"{case.id}.json", case, row, config.evaluate),
            }
            advance(1)
        entries += [_entry(case, found[case.id], num_readings) for case in batch]
    return entries


def _voices(folder: Path, cases: Sequence[Case], sample_rate: int, scorer: Scorer) -> Voices:
    waves = [read_wave(folder / f"{case.id}.wav", sample_rate) for case in cases]
    return dict(zip((case.id for case in cases), scorer.voices(waves, sample_rate), strict=True))


def _figures(heard: Heard, wanted: str, language: str) -> dict[str, Any]:
    figures = {
        "dnsmos": heard.mos.p808, "dnsmos_sig": heard.mos.sig, "dnsmos_bak": heard.mos.bak,
        "dnsmos_ovrl": heard.mos.ovrl, "utmos": heard.utmos,
    }  # fmt: skip
    return {
        "heard": heard.text,
        "errors": asdict(word_errors(wanted, heard.text, language)),
        **{name: round(value, 6) for name, value in figures.items() if value is not None},
    }


def _ending(
    wave: Float[np.ndarray, " n"], rate: int, about: Path, case: Case, row: Row, settings: EvaluateConfig
) -> dict[str, Any]:
    """What was noted when the speech was made, and, where a model spoke, how it ended."""
    noted: dict[str, Any] = json.loads(about.read_text())
    if "finish_reason" not in noted:
        return noted
    found = ending(
        wave, rate, noted["finish_reason"], _expected_seconds(case, row, rate),
        max_trailing_silence=settings.trailing_silence, min_share=settings.cut_words_share,
    )  # fmt: skip
    return {"repetition": noted["repetition"], "ending": {**asdict(found), **noted}}


def _expected_seconds(case: Case, row: Row, rate: int) -> Seconds:
    """From first to last sound of the speaker's own reading; where there is none, at the prompt's pace in letters."""
    if case.reference is not None:
        wave = case.reference if row.whole else case.reference[len(case.prompt.wave) :]
        return sound_seconds(wave, rate)
    letters = len(normalise(case.text)) / max(len(normalise(case.prompt.text)), 1)
    return letters * sound_seconds(case.prompt.wave, rate)


def _entry(case: Case, rows: dict[str, dict[str, Any]], num_readings: int) -> dict[str, Any]:
    return {
        "id": case.id, "protocol": case.protocol, "category": case.category, "speaker": case.speaker,
        "text": case.whole_text, "seed": case.seed, "prompt_ids": list(case.prompt.cut_ids),
        "prompt_text": case.prompt.text, "rows": _with_choices(rows, num_readings),
    }  # fmt: skip


@dataclass(frozen=True)
class _Choice:
    sim: float
    wer: float
    row: dict[str, Any]


def _with_choices(rows: dict[str, dict[str, Any]], num_readings: int) -> dict[str, dict[str, Any]]:
    """Of several readings: the paper's `sorted` choice, and its metric-wise one, which is an `oracle` (4.1.3)."""
    if num_readings == 1:
        return rows
    readings = []
    for turn in range(num_readings):
        row = rows[reading(turn)]
        errors = row["errors"]
        wrong = errors["substitutions"] + errors["deletions"] + errors["insertions"]
        readings.append(_Choice(row["sim_own"], wrong / max(errors["words"], 1), row))
    nearest, clearest = choose(readings, "sim").row, choose(readings, "wer").row
    oracle = {
        "errors": clearest["errors"], "heard": clearest["heard"],
        **{name: nearest[name] for name in ("sim_own", "sim_others", "sim_wins", "sim_reconstructed")},
        "dnsmos": max(one.row["dnsmos"] for one in readings),
    }  # fmt: skip
    others = {reading(turn) for turn in range(1, num_readings)}
    others |= {continued(name) for name in others}
    kept = {name: row for name, row in rows.items() if name not in others}
    return kept | {"sorted": choose(readings, "sort").row, "oracle": oracle}
