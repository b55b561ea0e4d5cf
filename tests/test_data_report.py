"""The page of a data version adds up to the funnel, needs nothing but itself, and lets each decision be heard."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from tests.corpora import rows, write_rows
from tests.datasets import SPEAKERS, parameters, run_data_stages, take_in
from valle2.cli import app
from valle2.corpus.data_report import data_report
from valle2.corpus.decisions import Origin, Piece
from valle2.corpus.figures import MEASURES
from valle2.corpus.report_page import SPEAKERS_SHOWN, write_page
from valle2.corpus.samples import MAX_SECONDS, PER_OUTCOME, SAMPLE_RATE, Chooser
from valle2.dataset import describe_data
from valle2.errors import SourceError
from valle2.stage import file_sha256, log_file, output, tree_sha256, write_json
from valle2.throughput import RATE, rate
from valle2.types import SPLITS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the data half; that Dan speaks is assumed."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VALLE2_HOME", str(folder / "home"))
        take_in(folder)
        run_data_stages(parameters(max_given_text_wer=0.5))
        known = rows("artifacts/ingest/cuts.jsonl")
        for row in known:
            row["custom"] |= {"speaker_assumed": True} if row["supervisions"][0]["speaker"] == "dan" else {}
        write_rows("artifacts/ingest/cuts.jsonl", known)
        data_report(parameters())
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def report() -> dict:
    return json.loads((output("data-report") / "report.json").read_text())


def page() -> str:
    return (output("data-report") / "report.html").read_text()


def test_the_same_data_gives_the_same_bytes(here: Path) -> None:
    before = tree_sha256(output("data-report"))
    shutil.rmtree(output("data-report"))
    data_report(parameters())
    assert tree_sha256(output("data-report")) == before
    assert sorted(path.name for path in output("data-report").iterdir()) == [
        "metrics.json",
        "report.html",
        "report.json",
    ]


def test_the_page_needs_nothing_but_itself(here: Path) -> None:
    assert not re.search(r"https?://|//cdn|@import|<script|url\(", page())
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page())
    assert all(address.startswith(("data:audio/flac;base64,", "#")) for address in addresses)
    places = {address[1:] for address in addresses if address.startswith("#")}
    assert places <= set(re.findall(r'id="([^"]*)"', page())) and len(places) == 7
    assert page().count("<audio") == page().count('aria-label="tones-') == len(report()["samples"])


def test_the_figures_add_up_to_the_funnel(here: Path) -> None:
    told, funnel = report(), json.loads((output("curate") / "funnel.json").read_text())
    assert told["funnel"] == funnel
    assert funnel["kept"]["train"]["count"] and set(funnel["dropped"]) >= {"non_speech", "language"}
    kept = sum(part["hours"] for part in funnel["kept"].values())
    segments = sum(part["count"] for part in funnel["kept"].values())
    dropped = sum(part["count"] for reason, part in funnel["dropped"].items() if reason != "non_speech")
    for name in ("seconds", "dnsmos", "snr", "bandwidth", "silence", "clipped", "words_per_second"):
        assert (sum(told["measures"][name]["kept"]), sum(told["measures"][name]["dropped"])) == (segments, dropped)
    for of in (told["languages"], told["licences"], told["consent"]):
        assert sum(part["kept"] for part in of.values()) == pytest.approx(kept, abs=1e-4)
        assert sum(part["in"] for part in of.values()) == pytest.approx(funnel["in"]["hours"], abs=1e-4)
    assert sum(row["kept"] for row in told["speakers"]) == pytest.approx(kept, abs=1e-4)
    assert {row["speaker"]: row["split"] for row in told["speakers"]} == {
        "ann": "test",
        "bob": "dev",
        "cal": "train",
        "dan": "train",
    }
    assert told["refused"]["not_audio"]["files"] == 1


def test_metrics_are_numbers_of_the_funnel(here: Path) -> None:
    metrics = json.loads((output("data-report") / "metrics.json").read_text())
    funnel = report()["funnel"]
    assert metrics == report()["metrics"]
    assert {split: metrics["hours"][split] for split in SPLITS} == {
        split: funnel["kept"][split]["hours"] for split in SPLITS
    }
    assert metrics["dropped_hours"] == {reason: part["hours"] for reason, part in funnel["dropped"].items()}
    assert metrics["speakers"] == {"in": 4, "train": 2, "dev": 1, "test": 1, "assumed": 1}
    assert metrics["assumed_hours"] == round(8 / 3600, 5) and metrics["refused_files"] == 1
    assert metrics["shards"]["frames"] > 0 and 1 <= metrics["mean"]["dnsmos"] <= 5

    def leaves(value: object) -> list[object]:
        return [leaf for part in value.values() for leaf in leaves(part)] if isinstance(value, dict) else [value]

    assert all(isinstance(leaf, int | float) and not isinstance(leaf, bool) for leaf in leaves(metrics))


def test_recognised_text_is_held_against_given_text(here: Path) -> None:
    given = [row["supervisions"][0]["text"] for split in SPLITS for row in rows(output("curate") / f"{split}.jsonl")]
    given += [row["text"] for row in rows(output("curate") / "dropped.jsonl")]
    wrong = sum(text.split().count("two") for text in given)
    words = sum(len(text.split()) for text in given)
    assert wrong and report()["given_text"]["wer"] == pytest.approx(wrong / words, abs=1e-4)


def test_every_decision_can_be_heard(here: Path) -> None:
    told = report()
    outcomes = {*told["funnel"]["dropped"], *(split for split in SPLITS if told["funnel"]["kept"][split]["count"])}
    assert {row["outcome"] for row in told["samples"]} == outcomes
    sounds = re.findall(r'src="data:audio/flac;base64,([^"]*)" aria-label="([^"]*)"', page())
    assert len(sounds) == len(told["samples"])
    for (sound, label), row in zip(sounds, told["samples"], strict=True):
        assert label.startswith(row["id"])
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert rate == SAMPLE_RATE
        assert len(wave) / rate == pytest.approx(min(row["seconds"], MAX_SECONDS), abs=2 / SAMPLE_RATE)
        assert abs(wave).max() > 0.1


def piece(name: str, outcome: str = "noise") -> Piece:
    return Piece(name, outcome, False, True, "r", 0.0, 1.0, 1, Origin("s", "x", "l", "b", False, "en"))


def test_samples_are_drawn_by_name_and_not_by_place() -> None:
    names = [f"segment-{index:03d}" for index in range(50)]
    drawn = []
    for order in (names, names[::-1]):
        chooser = Chooser()
        for name in order:
            chooser.add(piece(name))
        drawn.append([found.id for found in chooser.chosen()])
    assert drawn[0] == drawn[1] and len(drawn[0]) == PER_OUTCOME
    assert drawn[0] != names[:PER_OUTCOME]


def test_a_file_that_cannot_be_read_any_more_is_said_so(here: Path) -> None:
    whole = len(report()["samples"])
    Path("data/audio/ann/a.wav").unlink()
    Path("data/audio/bob/a.wav").write_bytes(b"RIFF and no more")
    data_report(parameters())
    silent = [row for row in report()["samples"] if not row["is_audible"]]
    assert {row["speaker"] for row in silent} >= {"ann", "bob"} and len(report()["samples"]) == whole
    assert page().count("Nothing to hear") == len(silent)


def test_outputs_of_different_runs_are_refused(here: Path) -> None:
    found = rows("artifacts/curate/train.jsonl")
    write_rows("artifacts/curate/train.jsonl", found[1:])
    with pytest.raises(SourceError, match=f"segment {found[0]['id']} is neither kept nor dropped.*valle2 curate"):
        data_report(parameters())
    Path("artifacts/transcribe/dropped.jsonl").unlink()
    with pytest.raises(SourceError, match=r"no artifacts/transcribe/dropped.jsonl.*run `valle2 transcribe`"):
        data_report(parameters())


def test_text_on_the_page_is_escaped_and_speakers_are_cut_off(here: Path) -> None:
    told = report()
    told["samples"][0]["text"] = "<script>alert(1)</script>"
    row = told["speakers"][0]
    told["speakers"] = [{**row, "speaker": f"voice-{index}"} for index in range(SPEAKERS_SHOWN + 7)]
    write_page(Path("page.html"), told, [None] * len(told["samples"]))
    written = Path("page.html").read_text()
    assert "<script" not in written and "7 more" in written
    assert f"voice-{SPEAKERS_SHOWN - 1}<" in written and f"voice-{SPEAKERS_SHOWN}<" not in written


def test_a_value_beyond_the_bins_is_in_the_outer_ones() -> None:
    measure = MEASURES["dnsmos"]
    assert [measure.bin(value) for value in (0.0, 1.0, 1.2, 3.0, 5.0, 9.0)] == [0, 0, 1, 10, 19, 19]
    assert len(measure.edges) == 21 and measure.edges[-1] == 5.0


def test_the_command_tells_hours_and_how_fast_each_stage_was(here: Path) -> None:
    write_json(
        log_file("transcribe"),
        {"figure": "16 segments", "seconds": 16.0, "facts": {"audio_seconds": 32.0, "audio_hours_per_hour": 2.0}},
    )
    told = CliRunner().invoke(app, ["data", "report"])
    assert "dropped: non_speech" in told.stdout and str(Path("artifacts/data-report/report.html")) in told.stdout
    assert re.search(r"transcribe\W+0.0089\W+16 s\W+2\W", told.stdout)
    told = json.loads(CliRunner().invoke(app, ["data", "report", "--json"]).stdout)
    assert told["stages"] == [
        {"stage": "transcribe", "seconds": 16.0, "audio_seconds": 32.0, "audio_hours_per_hour": 2.0}
    ]
    assert told["metrics"]["speakers"]["in"] == len(SPEAKERS)
    shutil.rmtree("artifacts/data-report")
    refused = CliRunner().invoke(app, ["data", "report"])
    assert isinstance(refused.exception, SourceError) and "run `valle2 data-report`" in str(refused.exception)


def test_a_stage_tells_how_much_audio_it_took_an_hour(here: Path) -> None:
    Path("params.yaml").write_text(json.dumps(parameters().model_dump(mode="json")))
    said = CliRunner().invoke(app, ["ingest"]).stdout
    log = json.loads(log_file("ingest").read_text())
    assert log["facts"]["audio_hours_per_hour"] > 0
    assert f"{log['facts']['audio_hours_per_hour']:g} h of audio an hour" in said


def test_audio_hours_per_hour_are_seconds_per_second() -> None:
    assert rate({"audio_seconds": 32.0}, 4.0) == {RATE: 8.0}
    assert rate({"audio_seconds": 32.0}, 0.0) == {RATE: 320.0}
    assert rate({}, 4.0) == {}


def test_training_is_told_of_the_data_by_the_report_of_the_very_shards(here: Path) -> None:
    digest = file_sha256(output("tokenize") / "manifest.json")
    schema, profile = describe_data(digest)
    assert profile == report()["metrics"] and schema["num_codebooks"] == 8
    _, of_others = describe_data("0" * 64)
    assert set(of_others) == {"hours", "segments"} and of_others["segments"] == profile["segments"]
