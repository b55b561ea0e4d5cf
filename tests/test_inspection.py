"""What is told of a recording or a segment is what the stages wrote."""

import json
from pathlib import Path

import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from tests.corpora import config, declare_speakers, rows, segment, tone, write_audio, write_rows
from valle2.cli import app
from valle2.corpus.curate import curate
from valle2.corpus.ingest import ingest
from valle2.corpus.inspection import inspect
from valle2.errors import SourceError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace ingested and curated; each speaker's recording has three segments and a dropped end."""
    monkeypatch.chdir(tmp_path)
    speakers = ["ann", "bob", "cal"]
    declare_speakers(tmp_path, speakers)
    for index, name in enumerate(speakers):
        write_audio(tmp_path / "data" / "audio" / name / "a.wav", tone(5.0, 200 + 40 * index))
    (tmp_path / "data" / "audio" / "ann" / "broken.wav").write_text("no audio")
    ingest(config())
    cuts, dropped = [], []
    for row in rows("artifacts/ingest/cuts.jsonl"):
        name, path = row["supervisions"][0]["speaker"], Path(row["recording"]["sources"][0]["source"])
        for index in range(3):
            cut = segment(f"{row['id']}-00{index}", name, f"Words of {name} {'abc'[index]}.", path, 1.5 * index)
            cut.recording.id = row["id"]
            cuts.append({**cut.to_dict(), "custom": row["custom"]})
        dropped.append({"recording": row["id"], "start": 4.5, "end": 5.0, "samples": 12_000, "reason": "non_speech"})
    cuts[-1]["supervisions"][0]["language"] = "de"
    write_rows("artifacts/transcribe/segments.jsonl", cuts)
    write_rows("artifacts/transcribe/dropped.jsonl", dropped)
    curate(config(curate={"min_dnsmos": 1.0, "test_speakers": ["ann"], "dev_speakers": ["bob"], "vocab_size": 30}))
    return tmp_path


def test_a_segment_is_told_from_its_file_to_its_split(run: Path) -> None:
    found = inspect("tones-cal-a-001")
    assert found.facts["file"] == "data/audio/cal/a.wav" and found.facts["consent"] == "synthetic, tones"
    assert found.facts["time"] == "1.500 to 3.000 s of tones-cal-a" and found.facts["length"] == "5.000 s, 16000 Hz"
    assert found.facts["decision"] == "kept for train" and 1 <= found.facts["dnsmos"] <= 5
    assert inspect("tones-cal-a-002").facts["decision"] == "dropped as language"


def test_a_recording_is_told_with_its_parts(run: Path) -> None:
    facts = inspect("tones-ann-a").facts
    assert facts["0.000 to 1.500 s"] == "tones-ann-a-000" and facts["4.500 to 5.000 s"] == "dropped as non_speech"


def test_what_is_not_there_is_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no recording or segment tones-an-a; there is tones-ann-a"):
        inspect("tones-an-a")
    with pytest.raises(SourceError, match=r"broken\.wav was refused as not_audio"):
        inspect("broken.wav")
    monkeypatch.chdir(run / "data")
    with pytest.raises(SourceError, match="run `valle2 ingest`"):
        inspect("tones-ann-a")


def test_the_command_writes_picture_and_sound(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = run / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    given = ["data", "inspect", "tones-cal-a-001", "--run", "..", "--png", "a.png", "--wav", "a.wav", "--json"]
    told = CliRunner().invoke(app, given)
    assert json.loads(told.stdout)["decision"] == "kept for train"
    assert soundfile.info(elsewhere / "a.wav").frames == 36_000
    assert Image.open(elsewhere / "a.png").size[0] >= 600
