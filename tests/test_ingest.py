"""Bad input never stops the good; what is left carries speaker, licence and consent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lhotse import MonoCut

from tests.corpora import CONSENT, config, declare_speakers, rows, tone, write_audio
from valle2.corpus.declare import declare
from valle2.corpus.ingest import ingest
from valle2.errors import SourceError
from valle2.stage import tree_sha256

CUTS, QUARANTINE = Path("artifacts/ingest/cuts.jsonl"), Path("artifacts/ingest/quarantine.jsonl")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace's `data/audio` with one good recording of `ann`."""
    monkeypatch.chdir(tmp_path)
    declare_speakers(tmp_path, ["ann", "bob"])
    write_audio(tmp_path / "data/audio/ann/good.wav", tone(1.0))
    return tmp_path / "data" / "audio"


def reasons() -> dict[str, str]:
    return {Path(row["file"]).name: row["reason"] for row in rows(QUARANTINE)}


def test_no_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"no source declaration.*valle2 declare"):
        ingest(config())


def test_no_such_source_folder(data: Path) -> None:
    shutil.rmtree(data)
    with pytest.raises(SourceError, match=r"source tones: no folder data/audio"):
        ingest(config())


def test_empty_folder(data: Path) -> None:
    shutil.rmtree(data / "ann")
    with pytest.raises(SourceError, match="no audio in data/audio"):
        ingest(config())


def test_bad_files_are_quarantined_and_the_rest_goes_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data / "bob"
    write_audio(folder / "whole.flac", np.random.default_rng(0).integers(-9000, 9000, 4 * 16000).astype(np.int16))
    content = (folder / "whole.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(content[: len(content) // 2])
    wav = write_audio(folder / "a.wav", tone(2.0, 300)).read_bytes()
    (folder / "truncated.wav").write_bytes(wav[: len(wav) // 2])
    (folder / "text.wav").write_text("this is no audio, whatever its name says")
    (folder / "cover.pdf").write_bytes(b"%PDF-1.4 no audio")
    (folder / "headerless.raw").write_bytes(b"\0" * 999)
    (folder / "zero.wav").touch()
    write_audio(folder / "header.wav", tone(0))
    write_audio(folder / "silent.wav", np.zeros(16000, np.int16))
    write_audio(folder / "short.wav", tone(0.2))
    shutil.copy(folder / "a.wav", folder / "copy.wav")
    write_audio(data / "eve" / "stranger.wav", tone(1.0, 500))
    write_audio(data / "nobody.wav", tone(1.0, 600))
    result = ingest(config())
    assert [row["id"] for row in rows(CUTS)] == ["tones-ann-good", "tones-bob-a", "tones-bob-whole"]
    assert reasons() == {
        "truncated.flac": "truncated", "truncated.wav": "truncated", "text.wav": "not_audio", "cover.pdf": "not_audio",
        "headerless.raw": "not_audio", "zero.wav": "empty", "header.wav": "empty", "silent.wav": "silent",
        "short.wav": "too_short", "copy.wav": "duplicate", "stranger.wav": "no_consent", "nobody.wav": "no_speaker",
    }  # fmt: skip
    assert "12 files quarantined" in result.figure
    assert "stranger.wav" in capsys.readouterr().out


def test_recordings_carry_their_rights_and_any_format_becomes_24k_mono(data: Path) -> None:
    stereo = np.stack([tone(1.0, 300, 44100), tone(1.0, 400, 44100)], axis=1)
    for name in ("a.flac", "b.ogg", "c.mp3"):
        write_audio(data / "bob" / name, stereo, 44100)
    (data / "bob" / "a.txt").write_text("As given,\nbeside it.\n")
    ingest(config())
    cuts = [MonoCut.from_dict(row) for row in rows(CUTS)]
    assert len(cuts) == 4
    for cut in cuts:
        audio = cut.load_audio()
        assert audio.shape == (1, cut.num_samples)
        assert cut.sampling_rate == 24_000
        assert abs(audio.shape[1] - 24_000) < 3000
        assert cut.custom["licence"] == "CC0-1.0"
        assert cut.custom["consent"]["basis"] == CONSENT["basis"]
        assert not Path(cut.recording.sources[0].source).is_absolute()
    assert {cut.id: cut.supervisions[0].text for cut in cuts}["tones-bob-a"] == "As given, beside it."


def test_without_any_consent_nothing_is_left(data: Path) -> None:
    declare_speakers(data.parents[1], [])
    with pytest.raises(SourceError, match=r"nothing is left of 1 files \(1 no_consent\).*speaker ann has no consent"):
        ingest(config())
    assert not Path("artifacts/ingest").exists()


def test_without_licence_nothing_is_left(data: Path) -> None:
    declare_speakers(data.parents[1], ["ann"], licence="")
    with pytest.raises(SourceError, match="no_licence"):
        ingest(config())


def test_revoked_consent_is_not_helped_by_the_sources(data: Path) -> None:
    declare_speakers(data.parents[1], [], consent=CONSENT)
    write_audio(data / "bob" / "b.wav", tone(1.0, 300))
    row = {"speaker": "ann", "consent": CONSENT, "revoked": "2026-11-20"}
    (data.parent / "speakers.jsonl").write_text(json.dumps(row))
    ingest(config())
    assert [cut["supervisions"][0]["speaker"] for cut in rows(CUTS)] == ["bob"]
    assert "revoked consent on 2026-11-20" in rows(QUARANTINE)[0]["detail"]


def test_wrong_declaration_names_file_and_field(data: Path) -> None:
    path = data.parent / "sources.yaml"
    path.write_text(path.read_text().replace("licence", "license"))
    with pytest.raises(SourceError, match=r"sources\.yaml: .*license"):
        ingest(config())
    (data.parent / "speakers.jsonl").write_text('{"speaker": "ann"}\n{"speeker": "bob"}\n')
    path.write_text(path.read_text().replace("license", "licence"))
    with pytest.raises(SourceError, match=r"speakers\.jsonl line 2"):
        ingest(config())


def test_twice_is_the_same_bytes(data: Path) -> None:
    ingest(config())
    before = tree_sha256(Path("artifacts/ingest"))
    ingest(config())
    assert tree_sha256(Path("artifacts/ingest")) == before


def test_declare_makes_a_folder_that_ingests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = write_audio(tmp_path / "mine" / "ann" / "a.wav", tone(1.0))
    declare(tmp_path / "mine", Path("data"), licence="CC0-1.0", consent_basis="signed form")
    taken_in = next(Path("data").rglob("a.wav"))
    assert not taken_in.samefile(original), "a change in the data folder would change the user's own file"
    shutil.rmtree(tmp_path / "mine")
    ingest(config())
    assert rows(CUTS)[0]["supervisions"][0]["speaker"] == "ann"
    with pytest.raises(SourceError, match="is no folder"):
        declare(tmp_path / "mine", Path("data"), licence="CC0-1.0", consent_basis="signed form")


def test_librispeech(real_speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    declare(
        real_speech / "LibriSpeech", Path("data"), kind="lhotse", recipe="librispeech", licence="CC-BY-4.0",
        consent_basis="public-domain recordings",
    )  # fmt: skip
    broken = min(Path("data").rglob("*.flac"))
    assert broken.stat().st_nlink == 1, "this test writes to its own copy alone"
    broken.write_bytes(broken.read_bytes()[:20000])
    ingest(config())
    cuts = rows(CUTS)
    assert [row["reason"] for row in rows(QUARANTINE)] == ["truncated"]
    assert len(cuts) == len(list(Path("data").rglob("*.flac"))) - 1
    assert all(cut["supervisions"][0]["text"].isupper() for cut in cuts)
