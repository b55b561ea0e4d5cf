"""The evaluation as one page that needs no server: figures, learning curves, funnel, and every case to hear.

The same results are always the same bytes. What the figures are is in `valle2.evaluation.metrics`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile

from valle2.audio import encode_wave
from valle2.evaluation.figures import Series, curves, spectrogram
from valle2.pages.page import data_uri, funnel_rows, render
from valle2.stage import write_text

TEMPLATE = "report.html.j2"
ROWS = {
    "": "VALL-E 2",
    "reconstruction_": "Codec round trip of the ground truth",
    "ground_truth_": "Ground truth (the speaker)",
}
COLUMNS = {
    "wer": ("WER", 1, "lower is better"),
    "sim_own": ("SIM to own prompt", 3, "higher is better"),
    "sim_other": ("SIM to others' prompts", 3, "lower than to the own"),
    "sim_wins": ("Own voice nearest", 1, "share of pairs"),
    "dnsmos": ("DNSMOS", 2, "1 to 5"),
    "inf": ("INF", 1, "never ends"),
    "cut": ("CUT", 1, "ends too early"),
}
SHARES = {"wer", "sim_wins", "inf", "cut"}
CURVES = {
    "loss": "loss, nats a code",
    "top1": "share of codes right at first",
    "top10": "share of codes right among ten",
}


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    samples: Path,
    context: Mapping[str, Any],
) -> Path:
    """Write `index.html`.

    Args:
        folder: Where it goes.
        metrics: As in `metrics.json`.
        cases: As in `cases.json`.
        samples: Folder with `<case>.<row>.wav`.
        context: `history` (kind -> points) and `funnel` (content of `funnel.json`, or None).

    Returns:
        The page's path.
    """
    page = render(
        Path(__file__).with_name(TEMPLATE),
        metrics=metrics,
        columns=COLUMNS,
        table=_table(metrics),
        curves=_curves(context.get("history") or {}),
        funnel=funnel_rows(context.get("funnel")),
        cases=[_case(case, samples) for case in sorted(cases, key=_badness)],
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _table(metrics: Mapping[str, Any]) -> list[tuple[str, list[dict[str, str] | None]]]:
    rows = []
    for prefix, title in ROWS.items():
        cells: list[dict[str, str] | None] = []
        for name, (_, digits, _) in COLUMNS.items():
            value = metrics.get(prefix + name)
            low, high = metrics.get(f"{prefix}{name}_low"), metrics.get(f"{prefix}{name}_high")
            if value is None or low is None or high is None:
                cells.append(None)
            else:
                shown = [_show(number, digits, name in SHARES) for number in (value, low, high)]
                cells.append({"value": shown[0], "low": shown[1], "high": shown[2]})
        rows.append((title, cells))
    return rows


def _show(value: float, digits: int, share: bool) -> str:
    return f"{100 * value:.{digits}f} %" if share else f"{value:.{digits}f}"


def _curves(history: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    found = []
    for kind, points in sorted(history.items()):
        for name, meaning in CURVES.items():
            series = [
                Series(label, tuple((point["step"], point[key]) for point in points if point.get(key) is not None))
                for label, key in (("train", name), ("dev", f"valid_{name}"))
            ]
            found.append(curves(f"{kind.upper()}: {meaning}", [one for one in series if one.points]))
    return [svg for svg in found if svg]


def _badness(case: Mapping[str, Any]) -> tuple[bool, float, float, str]:
    """Worst first: no proper end, then most word errors, then least like the speaker."""
    row = case["rows"]["model"]
    broken = row["ending"]["infinite"] or row["ending"]["cut"]
    return not broken, -_wer(row["errors"]), row["sim_own"], case["id"]


def _wer(errors: Mapping[str, Any]) -> float:
    return float(errors["substitutions"] + errors["deletions"] + errors["insertions"]) / max(errors["words"], 1)


def _case(case: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    row = case["rows"]["model"]
    marks = [
        mark
        for mark, found in (("no end (INF)", row["ending"]["infinite"]), ("cut short (CUT)", row["ending"]["cut"]))
        if found
    ]
    return {
        **case,
        "wer": f"{100 * _wer(row['errors']):.0f} %",
        "marks": marks,
        "audio": [
            _audio(samples / f"{case['id']}.{name}.wav", title)
            for name, title in (
                ("model", "VALL-E 2"), ("prompt", "Prompt"), ("ground_truth", "Ground truth"),
                ("reconstruction", "Codec round trip"),
            )
            if (samples / f"{case['id']}.{name}.wav").is_file()
        ],
    }  # fmt: skip


def _audio(path: Path, title: str) -> dict[str, str]:
    wave, rate = soundfile.read(path, dtype="float32")
    # FLAC is half the size of WAV and every browser plays it.
    sound = data_uri(encode_wave(wave, rate, "FLAC"), "audio/flac")
    return {"title": title, "sound": sound, "picture": spectrogram(wave, rate), "seconds": f"{len(wave) / rate:.1f}"}
