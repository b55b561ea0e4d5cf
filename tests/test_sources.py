"""Whatever form a corpus comes in, its recordings arrive with speaker, text, licence and consent."""

import csv
import functools
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import yaml
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from tests.corpora import CONSENT, RATE, config, rows, tone, write_audio
from valle2.config.ingest import IngestConfig
from valle2.corpus import ingest as ingesting
from valle2.corpus.audio_check import AudioCheck
from valle2.corpus.declare import declare
from valle2.corpus.ingest import ingest
from valle2.corpus.media import decode
from valle2.corpus.preview import show
from valle2.errors import SourceError, StorageError
from valle2.stage import is_disk_full
from valle2.types import StageResult

CUTS, QUARANTINE = Path("artifacts/ingest/cuts.jsonl"), Path("artifacts/ingest/quarantine.jsonl")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; a source's audio goes to `data/audio`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "audio").mkdir(parents=True)
    return tmp_path


AUDIO = Path("data/audio")


def take_in(**fields: Any) -> StageResult:
    """Declare `data/audio` as a source and ingest it."""
    source = {"name": "c", "path": "audio", "licence": "CC0-1.0", "consent": CONSENT, **fields}
    Path("data/sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    return ingest(config())


def taken() -> dict[str, tuple[str, str | None]]:
    """Speaker and text by id."""
    abouts = {row["id"]: row["supervisions"][0] for row in rows(CUTS)}
    return {name: (about["speaker"], about.get("text")) for name, about in abouts.items()}


def refused() -> dict[str, str]:
    return {Path(row["file"]).name: row["reason"] for row in rows(QUARANTINE)}


def encode(path: Path, samples: np.ndarray, rate: int, codec: str) -> Path:
    """Write with ffmpeg's encoders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=1024)
        for given in (frame, None):
            for part in resampler.resample(given):
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "rate", "write"),
    [
        ("wav", 8_000, {"subtype": "PCM_U8"}),
        ("wav", 96_000, {"subtype": "FLOAT"}),
        ("wav", 44_100, {"subtype": "PCM_24"}),
        ("wav", 48_000, {"subtype": "PCM_32"}),
        ("wav", 8_000, {"subtype": "ULAW"}),
        ("flac", 22_050, {"subtype": "PCM_24"}),
        ("mp3", 44_100, {}),
        ("ogg", 32_000, {"subtype": "VORBIS"}),
        ("opus", 48_000, {"format": "OGG", "subtype": "OPUS"}),
        ("m4a", 44_100, "aac"),
        ("aac", 16_000, "aac"),
        ("mp4", 48_000, "aac"),
    ],
)
def test_every_format_and_rate_arrives_whole(suffix: str, rate: int, write: Any) -> None:
    path = AUDIO / "ann" / f"a.{suffix}"
    samples = tone(2.0, rate=rate)
    if isinstance(write, str):
        encode(path, samples, rate, write)
    else:
        path.parent.mkdir(parents=True)
        soundfile.write(path, samples, rate, **write)
    take_in()
    [cut] = [MonoCut.from_dict(row) for row in rows(CUTS)]
    assert cut.sampling_rate == 24_000 and cut.duration == pytest.approx(2.0, abs=0.15)
    wave = cut.load_audio()[0]
    assert len(wave) == cut.num_samples
    spectrum = np.abs(np.fft.rfft(wave[12_000:36_000]))
    assert spectrum.argmax() == pytest.approx(200, abs=4), "the tone's pitch, so the rate is right"
    assert cut.custom is not None and cut.custom.get("file", path.as_posix()) == path.as_posix()


def test_a_full_disk_is_not_taken_for_broken_audio(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(2.0), RATE, "aac")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        decode(path, tmp_path / "full")
    assert is_disk_full(caught.value)
    assert Path("/dev/full").exists() and not (tmp_path / "full").is_symlink()


def test_the_same_bytes_twice_are_decoded_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(AUDIO / "ann" / "a0.m4a", tone(20.0), RATE, "aac")
    for index in range(1, 6):
        (AUDIO / "ann" / f"a{index}.m4a").write_bytes(path.read_bytes())
    Path("data/sources.yaml").write_text(
        yaml.safe_dump({"sources": [{"name": "c", "path": "audio", "licence": "CC0-1.0", "consent": CONSENT}]})
    )
    ingest(config(runtime={"num_threads": 6}))
    assert list(taken()) == ["c-ann-a0"] and set(refused().values()) == {"duplicate"}


def test_the_same_audio_is_decoded_to_the_same_bytes() -> None:
    encode(AUDIO / "ann" / "a.m4a", tone(2.0), RATE, "aac")
    take_in()
    before = {path.name: path.read_bytes() for path in Path("artifacts/ingest").rglob("*") if path.is_file()}
    assert len(before) == 3
    take_in()
    assert before == {path.name: path.read_bytes() for path in Path("artifacts/ingest").rglob("*") if path.is_file()}


def test_a_corpus_of_odd_names_and_broken_files_loses_nothing_silently() -> None:
    folder = AUDIO / "ann"
    for index, name in enumerate(['it\'s "quoted".wav', "emoji 🙂.wav", "two  blanks.flac", "Grüße.WAV", "-dash.wav"]):
        write_audio(folder / "sub folder" / name, tone(1.0, 200 + 10 * index))
    sound = write_audio(folder / "mp3 inside.mp3", tone(1.0, 500))
    sound.rename(folder / "mp3 inside.wav")
    float_wave = tone(1.0).astype(np.float32)
    float_wave[5000:5010] = np.nan
    soundfile.write(folder / "nan.wav", float_wave, RATE, subtype="FLOAT")
    whole = encode(folder / "whole.m4a", tone(3.0, 700), RATE, "aac").read_bytes()
    (folder / "cut.m4a").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.ogg").touch()
    (folder / "text.wav").write_text("this is no audio")
    (folder / "dead link.wav").symlink_to("nowhere.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "loop").symlink_to("../ann", target_is_directory=True)
    files = [path for path in folder.rglob("*") if path.suffix]
    take_in()
    assert refused() == {
        "nan.wav": "not_finite", "cut.m4a": "not_audio", "zero.ogg": "empty", "text.wav": "not_audio",
        "dead link.wav": "missing", "loop.wav": "missing",
    }  # fmt: skip
    assert len(taken()) == 7 and len(taken()) + len(refused()) == len(files)


def test_a_channel_of_several_is_taken() -> None:
    stereo = np.stack([tone(1.0, 200), tone(1.0, 600)], axis=1)
    write_audio(AUDIO / "ann" / "a.wav", stereo)
    take_in()
    [cut] = [MonoCut.from_dict(row) for row in rows(CUTS)]
    assert np.abs(np.fft.rfft(cut.load_audio()[0])).argmax() == pytest.approx(200, abs=2)


@pytest.mark.parametrize(
    ("sidecar", "content"),
    [
        ("a.txt", "Hello there."),
        ("a.lab", "Hello\nthere."),
        ("a.json", '{"text": "Hello there.", "speaker": "ann", "language": "en"}'),
        ("a.json", '{"transcript": "Hello there.", "spk": "ann"}'),
        ("a.txt", "\ufeffHello there."),
    ],
)
def test_text_beside_a_file_is_its_text(sidecar: str, content: str) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    (AUDIO / "ann" / sidecar).write_text(content)
    take_in()
    assert taken() == {"c-ann-a": ("ann", "Hello there.")}


def test_a_broken_sidecar_puts_its_file_aside_alone() -> None:
    for name in ("a", "b"):
        write_audio(AUDIO / "ann" / f"{name}.wav", tone(1.0, 200 if name == "a" else 300))
    (AUDIO / "ann" / "a.json").write_text("{not json")
    take_in()
    assert refused() == {"a.wav": "bad_sidecar"} and list(taken()) == ["c-ann-b"]


@pytest.mark.parametrize("kind", ["csv", "semicolon.csv", "tsv", "jsonl"])
def test_a_table_says_what_each_file_is(kind: str) -> None:
    for name, pitch in (("a", 200), ("b", 300), ("c", 400)):
        write_audio(AUDIO / "clips" / f"{name}.wav", tone(1.0, pitch))
    said = [
        {"path": "a.wav", "sentence": 'He said "no", twice.', "client_id": "ann", "locale": "en"},
        {"path": "b.wav", "sentence": "Yes.", "client_id": "bob", "locale": "de"},
        {"path": "gone.wav", "sentence": "No.", "client_id": "bob", "locale": "de"},
    ]
    table = AUDIO / f"table.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in said))
    elif kind == "tsv":
        table.write_text("".join("\t".join(row) + "\n" for row in [list(said[0]), *(row.values() for row in said)]))
    else:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(said[0]), delimiter=";" if "semi" in kind else ",")
            writer.writeheader()
            writer.writerows(said)
    take_in(table=table.name)
    assert taken() == {"c-clips-a": ("ann", 'He said "no", twice.'), "c-clips-b": ("bob", "Yes.")}
    assert [row["supervisions"][0]["language"] for row in rows(CUTS)] == ["en", "de"]
    assert refused() == {"gone.wav": "missing", "c.wav": "unlisted"}


def test_parts_of_a_long_file_are_recordings_of_their_own() -> None:
    wave = np.concatenate([tone(2.0, 200), tone(3.0, 600)])
    write_audio(AUDIO / "long.wav", wave)
    table = [
        {"audio_filepath": "long.wav", "offset": 0.0, "duration": 2.0, "text": "low", "speaker": "ann"},
        {"audio_filepath": "long.wav", "offset": 2.0, "duration": 3.0, "text": "high", "speaker": "ann"},
        {"audio_filepath": "long.wav", "offset": 4.0, "duration": 3.0, "text": "behind", "speaker": "ann"},
    ]
    (AUDIO / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    take_in(table="m.jsonl")
    low, high = (MonoCut.from_dict(row) for row in rows(CUTS))
    assert (low.duration, high.duration) == (2.0, 3.0)
    assert np.abs(np.fft.rfft(high.load_audio()[0])).argmax() / 3 == pytest.approx(600, abs=2)
    assert refused() == {"long.wav": "outside_file"}


def test_a_table_that_is_wrong_is_one_sentence() -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    with pytest.raises(SourceError, match=r"no table .*nowhere\.csv"):
        take_in(table="nowhere.csv")
    (AUDIO / "t.csv").write_text("name,words\na,b\n")
    with pytest.raises(SourceError, match=r"t\.csv line 2 names no file; expected a column"):
        take_in(table="t.csv")
    with pytest.raises(SourceError, match="kind tar takes no `table`"):
        take_in(kind="tar", table="t.csv")


def corpus(recipe: str) -> dict[str, tuple[str, str]]:
    """A small corpus in the published layout; returns what is to arrive."""

    def put(path: str, pitch: float, **options: Any) -> None:
        (AUDIO / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(AUDIO / path, tone(1.0, pitch), RATE, **options)

    def write(path: str, text: str) -> None:
        (AUDIO / path).parent.mkdir(parents=True, exist_ok=True)
        (AUDIO / path).write_text(text)

    match recipe:
        case "librispeech":
            for index in range(2):
                put(f"dev-clean/84/121123/84-121123-000{index}.flac", 200 + 50 * index)
            write("dev-clean/84/121123/84-121123.trans.txt", "84-121123-0000 GO ON\n84-121123-0001 STOP\n")
            return {"c-84-121123-0000": ("84", "GO ON"), "c-84-121123-0001": ("84", "STOP")}
        case "libritts" | "libritts-r":
            stem = "dev-clean/84/121123/84_121123"
            put(f"{stem}_000007_000001.wav", 200)
            write(f"{stem}.trans.tsv", "84_121123_000007_000001\tMr. Maximilian.\tMister Maximilian.\n")
            write(f"{stem}.book.tsv", "84_121123_000007_000001\tMr. Maximilian.\tMister Maximilian.\t0\t0\t25.3\n")
            write("SPEAKERS.txt", ";ID|SEX\n84 | F | dev-clean | 8.02 | Christie Nowak\n")
            return {"c-84_121123_000007_000001": ("84", "Mister Maximilian.")}
        case "vctk":
            put("wav48_silence_trimmed/p225/p225_001_mic2.flac", 200)
            write("txt/p225/p225_001.txt", "Please call Stella.\n")
            write(
                "speaker-info.txt",
                "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\np225  23  F    English    Southern  England\n",
            )
            return {"c-p225_001_mic2": ("p225", "Please call Stella.")}
        case "ljspeech":
            put("wavs/LJ001-0001.wav", 200)
            write("metadata.csv", "LJ001-0001|Printing, in 1440|Printing, in fourteen forty\n")
            return {"c-LJ001-0001": ("c", "Printing, in fourteen forty")}
        case "hifitts":
            put("audio/92_clean/10425/a_0001.flac", 200)
            row = {
                "audio_filepath": "audio/92_clean/10425/a_0001.flac",
                "text": "his hand",
                "text_normalized": "His hand.",
            }
            write("92_manifest_clean_train.json", json.dumps(row | {"duration": 1.0}) + "\n")
            return {"c-a_0001": ("Cori Samuel", "his hand")}
        case "mls":
            for split in ("train", "dev", "test"):
                put(
                    f"mls_german/{split}/audio/10/20/10_20_{split}.flac", {"train": 200, "dev": 250, "test": 300}[split]
                )
                write(f"mls_german/{split}/transcripts.txt", f"10_20_{split}\tguten tag {split}\n")
            write("mls_german/metainfo.txt", "SPEAKER|GENDER|PARTITION\n10|M|train\n")
            return {f"c-10_20_{split}": ("10", f"guten tag {split}") for split in ("dev", "test", "train")}
        case _:
            put("raw/EN/EN_B00000/EN_B00000_S00000/mp3/EN_B00000_S00000_W000000.mp3", 200)
            name = "EN_B00000_S00000_W000000"
            row = {"id": name, "wav": f"EN_B00000/EN_B00000_S00000/mp3/{name}.mp3", "text": " You can help.",
                   "duration": 1.0, "speaker": "EN_B00000_S00000", "language": "en", "dnsmos": 3.3}  # fmt: skip
            write("raw/EN/EN_B00000.jsonl", json.dumps(row) + "\n")
            return {f"c-{name}": ("EN_B00000_S00000", "You can help.")}


RECIPES = ["librispeech", "libritts", "libritts-r", "vctk", "ljspeech", "hifitts", "mls", "emilia"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_corpus_that_lhotse_knows(recipe: str) -> None:
    expected = corpus(recipe)
    first = min(path for path in AUDIO.rglob("*") if path.suffix in (".wav", ".flac", ".mp3"))
    write_audio(first.with_name("extra.wav"), tone(1.0, 999))
    take_in(kind="lhotse", recipe=recipe)
    assert taken() == expected
    reasons = refused()
    if recipe in ("libritts", "libritts-r", "vctk", "mls"):  # a recipe that lists the audio itself
        assert set(reasons) <= {"extra.wav"}
    assert reasons.get("extra.wav") == "unlisted"
    languages = {row["supervisions"][0]["language"] for row in rows(CUTS)}
    assert languages == ({"de"} if recipe == "mls" else {"en"})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_broken_file_of_a_known_corpus_is_put_aside_alone(recipe: str) -> None:
    expected = corpus(recipe)
    files = sorted(path for path in AUDIO.rglob("*") if path.suffix in (".wav", ".flac", ".mp3"))
    files[0].write_bytes(b"no audio at all")
    if len(files) == 1:
        with pytest.raises(SourceError, match="1 not_audio"):
            take_in(kind="lhotse", recipe=recipe)
        return
    take_in(kind="lhotse", recipe=recipe)
    assert refused() == {files[0].name: "not_audio"} and len(taken()) == len(expected) - 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_folder_of_another_layout_says_which_one_is_expected(recipe: str) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    with pytest.raises(SourceError, match=r"expected the (corpus's own layout|layout of the corpus)|1 unlisted"):
        take_in(kind="lhotse", recipe=recipe)


def test_lhotse_manifests_of_recordings_and_supervisions() -> None:
    wave = np.concatenate([tone(2.0, 200), tone(3.0, 600)])
    path = write_audio(AUDIO / "wavs" / "long.wav", wave)
    recording = Recording.from_file(path)
    said = [
        SupervisionSegment("one", recording.id, 0.0, 2.0, text="low", speaker="ann", language="English"),
        SupervisionSegment("two", recording.id, 2.0, 3.0, text="high", speaker="bob", language="English"),
    ]
    recording.sources[0].source = "somewhere/else/wavs/long.wav"  # as made on another machine
    RecordingSet.from_recordings([recording]).to_file(AUDIO / "recordings.jsonl.gz")
    SupervisionSet.from_segments(said).to_file(AUDIO / "supervisions.jsonl.gz")
    take_in(kind="manifest")
    assert sorted(taken().values()) == [("ann", "low"), ("bob", "high")]
    high = next(MonoCut.from_dict(row) for row in rows(CUTS) if row["supervisions"][0]["speaker"] == "bob")
    assert np.abs(np.fft.rfft(high.load_audio()[0])).argmax() / 3 == pytest.approx(600, abs=2)


@pytest.mark.parametrize(("variant", "text"), [(0, "Hello, there!"), (1, "HELLO THERE")])
def test_libriheavys_texts(variant: int, text: str) -> None:
    path = write_audio(AUDIO / "small" / "100" / "book" / "chapter.flac", tone(6.0))
    recording = Recording.from_file(path, recording_id="small/100/book/chapter")
    recording.sources[0].source = "download/librilight/small/100/book/chapter.flac"
    about = SupervisionSegment(
        "small/100/book/chapter_0", recording.id, 0.0, 2.5, speaker="100", language="English",
        custom={"texts": ["Hello, there!", "HELLO THERE"], "pre_texts": ["", ""]},
    )  # fmt: skip
    cut = MonoCut(about.id, 1.5, 2.5, 0, [about], recording=recording)
    CutSet.from_cuts([cut]).to_file(AUDIO / "libriheavy_cuts_small.jsonl.gz")
    take_in(kind="manifest", text_variant=variant)
    assert taken() == {"c-small-100-book-chapter_0": ("100", text)}
    [row] = rows(CUTS)
    assert (row["start"], row["duration"]) == (1.5, 2.5)
    with pytest.raises(SourceError, match="expected 0 to 1"):
        take_in(kind="manifest", text_variant=2)


def write_tar(path: Path) -> None:
    """Two samples as WebDataset lays them out, and a broken one."""
    with tarfile.open(path, "w") as tar:

        def put(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for index, (suffix, pitch) in enumerate((("flac", 200), ("wav", 300))):
            file = io.BytesIO()
            soundfile.write(file, tone(1.0, pitch), RATE, format=suffix)
            put(f"./000{index}.{suffix}", file.getvalue())
            put(f"000{index}.json", json.dumps({"text": f"number {index}", "speaker": f"s{index}"}).encode())
        put("0002.mp3", b"no audio")
        put("0002.txt", b"broken")
        put("0003.wav", b"whatever it is")
        put("0003.json", b"{no json")


def test_tars_of_samples() -> None:
    write_tar(AUDIO / "shard-0.tar")
    (AUDIO / "shard-1.tar").write_bytes((AUDIO / "shard-0.tar").read_bytes()[:2000])
    take_in(kind="tar", speaker_from="source")
    assert taken() == {"c-shard-0-0000": ("s0", "number 0"), "c-shard-0-0001": ("s1", "number 1")}
    assert sorted(row["reason"] for row in rows(QUARANTINE)) == ["bad_sidecar", "broken_tar", "not_audio"]
    for row in rows(CUTS):
        assert len(MonoCut.from_dict(row).load_audio()[0]) == 24_000
        assert row["custom"]["file"].startswith("tar://000")


@pytest.fixture
def served(workspace: Path) -> Iterator[str]:
    """URL of `data/audio`, served over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=str(workspace / "data" / "audio"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_remote_folder_is_read_file_by_file(served: str) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    (AUDIO / "ann" / "a.txt").write_text("Hello there.")
    encode(AUDIO / "ann" / "b.m4a", tone(1.0, 300), RATE, "aac")
    (AUDIO / "ann" / "c.flac").write_bytes(b"no audio")
    take_in(path=served)
    assert taken() == {"c-ann-a": ("ann", "Hello there."), "c-ann-b": ("ann", None)}
    assert refused() == {"c.flac": "not_audio"}
    assert {row["custom"]["file"] for row in rows(CUTS)} == {f"{served}/ann/a.wav", f"{served}/ann/b.m4a"}
    assert sorted(path.suffix for path in Path("artifacts/ingest/audio").iterdir()) == [".flac", ".wav"]


def test_a_remote_corpus_that_lhotse_knows(served: str) -> None:
    expected = corpus("librispeech")
    take_in(path=served, kind="lhotse", recipe="librispeech")
    assert taken() == expected


def test_remote_audio_is_declared_where_it_is(served: str) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    declare(f"{served}/", Path("mine"), name="far", licence="CC0-1.0", consent_basis="signed form")
    assert sorted(path.name for path in Path("mine").rglob("*") if path.is_file()) == ["sources.yaml", "speakers.jsonl"]
    ingest(config(ingest={"sources": "mine/sources.yaml"}))
    assert taken() == {"far-ann-a": ("ann", None)}


def test_audio_declared_in_place_is_not_copied(workspace: Path) -> None:
    path = write_audio(workspace / "corpus" / "ann" / "a.wav", tone(1.0))
    declare(workspace / "corpus", Path("mine"), in_place=True, licence="CC0-1.0", consent_basis="signed form")
    ingest(config(ingest={"sources": "mine/sources.yaml"}))
    assert rows(CUTS)[0]["recording"]["sources"][0]["source"] == path.as_posix()


def test_a_dry_run_tells_what_it_would_take_and_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(36.0))
    (AUDIO / "ann" / "b.wav").write_text("no audio")
    Path("data/sources.yaml").write_text(
        yaml.safe_dump({"sources": [{"name": "c", "path": "audio", "licence": "CC0-1.0", "consent": CONSENT}]})
    )
    show(config())
    told = capsys.readouterr().out
    assert "CC0-1.0" in told and "0.01" in told and f"{RATE} Hz" in told and "not_audio" in told and "b.wav" in told
    assert not Path("artifacts/ingest").exists()


def test_a_remote_tar(served: str) -> None:
    write_tar(AUDIO / "shard-0.tar")
    take_in(path=served, kind="tar")
    assert len(taken()) == 2


def test_a_place_that_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(StorageError, match=r"cannot reach http://127\.0\.0\.1:9"):
        take_in(path="http://127.0.0.1:9/audio")


def test_what_was_judged_before_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    take_in()
    decoded: list[str] = []
    judge = ingesting.check_audio

    def counted(path: Path, settings: IngestConfig) -> AudioCheck:
        decoded.append(path.name)
        return judge(path, settings)

    monkeypatch.setattr(ingesting, "check_audio", counted)
    (AUDIO / "ann" / "a.wav").rename(AUDIO / "ann" / "renamed.wav")
    write_audio(AUDIO / "ann" / "b.wav", tone(1.0, 300))
    take_in()
    assert decoded == ["b.wav"] and list(taken()) == ["c-ann-b", "c-ann-renamed"]
    take_in(licence="CC-BY-4.0")
    assert decoded == ["b.wav"] and rows(CUTS)[0]["custom"]["licence"] == "CC-BY-4.0"


def test_a_ledger_that_is_no_database_is_one_sentence(workspace: Path) -> None:
    write_audio(AUDIO / "ann" / "a.wav", tone(1.0))
    (workspace / ".valle2" / "ledger").mkdir(parents=True)
    (workspace / ".valle2" / "ledger" / "ingest.sqlite").write_text("no database, but quite some text in its place")
    with pytest.raises(StorageError, match=r"cannot use .*ingest\.sqlite .*remove it"):
        take_in()
