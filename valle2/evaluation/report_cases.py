"""A report's cases, the worst first: what was wanted and heard, how it scored, all speech to hear and see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from valle2.evaluation.evaluation_folder import Evaluation
from valle2.evaluation.figures import spectrogram
from valle2.pages.sounds import Sounds

MAX_BYTES = 14_500_000
"""Of a page: texts, sounds and spectrograms."""
TEXT_BYTES = 4_000
"""Of them, for a case's words."""

KEPT = {"prompt": "Prompt", "ground_truth": "Ground truth", "reconstruction": "Codec round trip"}
"""What is heard beside the systems."""


def worst_first(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """No proper end, then most word errors, then least like the speaker."""

    def badness(case: Mapping[str, Any]) -> tuple[bool, float, float, str]:
        row = case["rows"]["model"]
        return not _marks(row), -word_error_rate(row), row["sim_own"], case["id"]

    return sorted(cases, key=badness)


def word_error_rate(row: Mapping[str, Any]) -> float:
    """Word errors per word wanted, of one utterance."""
    errors = row["errors"]
    return float(errors["substitutions"] + errors["deletions"] + errors["insertions"]) / max(errors["words"], 1)


def case_views(system: Evaluation, other: Evaluation | None, sounds: Sounds) -> list[dict[str, Any]]:
    """The cases as the page shows them; the worst can be heard even where not all find room.

    Args:
        system: Whose cases.
        other: Heard beside it where it has the same case.
        sounds: Takes their sounds.
    """
    others = {case["id"]: case for case in other.cases} if other else {}
    room = MAX_BYTES - TEXT_BYTES * len(system.cases)
    views = []
    for case in worst_first(system.cases):
        rival = others.get(case["id"])
        before = sounds.size
        audio = _audio(case, rival, system, other, sounds) if room > 0 else []
        views.append({**_view(case, rival), "audio": audio, "left_out": room <= 0})
        room -= sounds.size - before + sum(len(one["picture"]) for one in audio)
    return views


def _view(case: Mapping[str, Any], rival: Mapping[str, Any] | None) -> dict[str, Any]:
    rows = [scored(case["rows"]["model"])] + ([scored(rival["rows"]["model"])] if rival else [])
    words = [case["text"], case["speaker"], case["id"], *(row["heard"] for row in rows)]
    return {
        **{key: case[key] for key in ("id", "protocol", "speaker", "text", "prompt_text", "prompt_ids", "seed")},
        "category": case.get("category"),
        "systems": rows,
        "search": " ".join(words).casefold(),
        "loss": rows[0]["wer"] - rows[1]["wer"] if rival else 0.0,
    }


def scored(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's figures for a page: word error rate, endings that are wrong, SIM, MOS and the words with differences."""
    marks = _marks(row)
    return {
        "wer": word_error_rate(row), "marks": marks, "wrong": bool(marks) or word_error_rate(row) > 0,
        "sim": row["sim_own"], "dnsmos": row["dnsmos"], "seconds": row["seconds"], "heard": row["heard"],
        "diff": row["errors"]["diff"],
    }  # fmt: skip


def _marks(row: Mapping[str, Any]) -> list[str]:
    ending = row.get("ending") or {"infinite": False, "cut": False}
    names = (("no end (INF)", ending["infinite"]), ("cut short (CUT)", ending["cut"]))
    return [mark for mark, found in names if found]


def _audio(
    case: Mapping[str, Any],
    rival: Mapping[str, Any] | None,
    system: Evaluation,
    other: Evaluation | None,
    sounds: Sounds,
) -> list[dict[str, Any]]:
    own = system.samples / f"{case['id']}.model.wav"
    files: list[tuple[str, Path, str]] = [(system.name, own, case["text"])]
    if rival and other:
        files.append((other.name, other.samples / own.name, case["text"]))
    files += [
        (title, own.with_name(f"{case['id']}.{row}.wav"), case["prompt_text"] if row == "prompt" else case["text"])
        for title, row in (
            ("Prompt", "prompt"),
            ("Ground truth", "ground_truth"),
            ("Codec round trip", "reconstruction"),
        )
    ]
    return [_sound(title, path, says, sounds) for title, path, says in files if path.is_file()]


def _sound(title: str, path: Path, says: str, sounds: Sounds) -> dict[str, Any]:
    wave, rate = soundfile.read(path, dtype="float32")
    return {
        "title": title, "says": says, "sound": sounds.add(wave, rate), "picture": spectrogram(wave, rate),
        "seconds": f"{len(wave) / rate:.1f}",
    }  # fmt: skip
