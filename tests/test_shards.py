"""Shards: byte-stable, whole, resumable, and read by nobody when damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import MonoCut

from tests.corpora import config, segment, tone, write_audio, write_rows
from valle2.config.tokenize import TokenizeParams
from valle2.corpus import tokenize as stage
from valle2.corpus import tokenizer
from valle2.corpus.journal import read_jsonl
from valle2.corpus.tokenize import tokenize
from valle2.errors import ShardError, StorageError
from valle2.shards import load_codes, read_manifest, read_shards
from valle2.stage import file_sha256, output, tree_sha256
from valle2.tracking import home

OUT = Path("artifacts/tokenize")


class CountingCodec:
    """Codes that tell the loudness of each frame; stands for EnCodec, which `test_codec` and one test below run."""

    digest, codes_digest = "counting", "counting codes"
    sample_rate, frame_rate, hop_length, num_codebooks, codebook_size = 24_000, 75, 320, 8, 1024

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, waveform: torch.Tensor, num_samples: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += len(waveform)
        frames = torch.nn.functional.pad(waveform, (0, -waveform.shape[1] % 320)).view(len(waveform), -1, 320)
        return (frames.abs().mean(-1) * 1000).long()[:, None].expand(-1, 8, -1)


@pytest.fixture
def codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingCodec:
    """A workspace with curated cuts: six in train, none in dev, two in test."""
    monkeypatch.chdir(tmp_path)
    codec = CountingCodec()
    for module in (stage, tokenizer):
        monkeypatch.setattr(module, "load_codec", lambda name, device: codec)
    path = write_audio(Path("data/ann.wav"), tone(14.0, rate=22_050), 22_050)
    lengths = [24_001, 31_999, 32_000, 29_000, 40_123, 26_111, 25_000, 30_007]
    cuts = [
        segment(f"ann-{index}", "ann", f"text {index}", path, 1.5 * index, length / 24_000)
        for index, length in enumerate(lengths)
    ]
    for split, members in {"train": cuts[:6], "dev": [], "test": cuts[6:]}.items():
        write_rows(output("curate") / f"{split}.jsonl", [cut.to_dict() for cut in members])
    return codec


PARAMETERS = config(tokenize={"part_seconds": 4.5, "shard_mb": 0.001})


def test_no_frame_is_lost_and_the_audio_is_what_was_encoded(codec: CountingCodec) -> None:
    tokenize(PARAMETERS)
    cuts = list(read_shards(OUT, "train"))
    assert [cut.id for cut in cuts] == [f"ann-{index}" for index in range(6)]
    for cut in cuts:
        codes = load_codes(cut)
        assert codes.dtype == np.int16
        assert codes.shape == (8, -(-cut.num_samples // 320))
        audio = torch.from_numpy(cut.load_audio())
        assert audio.shape == (1, cut.num_samples)
        assert torch.equal(codec.encode(audio)[0], torch.from_numpy(codes).long())
        assert cut.supervisions[0].text.startswith("text")
    assert list(read_shards(OUT, "dev")) == []
    manifest = read_manifest(OUT)
    assert manifest["splits"]["train"]["cuts"] == 6
    assert len(manifest["splits"]["train"]["shards"]) == 2
    assert manifest["codec"] == {"name": "bundled", "digest": "counting", "codes_digest": "counting codes"}


def forget() -> None:
    """As on another machine."""
    shutil.rmtree(home() / "ledger")


def test_twice_is_the_same_bytes(codec: CountingCodec) -> None:
    tokenize(PARAMETERS)
    before = tree_sha256(OUT)
    forget()
    tokenize(PARAMETERS)
    assert tree_sha256(OUT) == before


def test_of_a_corpus_that_grows_only_what_is_new_is_encoded(codec: CountingCodec) -> None:
    path = output("curate") / "train.jsonl"
    rows = read_jsonl(path)
    write_rows(path, [rows[place] for place in (0, 2, 3, 5)])
    tokenize(PARAMETERS)
    write_rows(path, rows)
    codec.calls = 0
    tokenize(PARAMETERS)
    assert codec.calls == 2
    grown = tree_sha256(OUT)
    forget()
    codec.calls = 0
    tokenize(PARAMETERS)
    assert codec.calls == 8
    assert tree_sha256(OUT) == grown


def test_codes_survive_packing() -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (8, 75)).astype(np.int16)
    assert np.array_equal(tokenizer.unpack(tokenizer.pack(codes)), codes)
    assert np.array_equal(tokenizer.unpack(tokenizer.pack(codes[:, :0])), codes[:, :0])


def test_resumed_after_a_kill_is_the_same_bytes(codec: CountingCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize(PARAMETERS)
    uninterrupted = tree_sha256(OUT)
    shutil.rmtree(OUT)
    forget()
    codec.calls = 0
    encode = codec.encode

    def killed(waveform: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        if codec.calls == 4:
            raise KeyboardInterrupt
        return encode(waveform, num_samples)

    monkeypatch.setattr(codec, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize(PARAMETERS)
    assert not OUT.exists()
    monkeypatch.setattr(codec, "encode", encode)
    codec.calls = 0
    tokenize(PARAMETERS)
    assert codec.calls == 4, "the first shard's four cuts were encoded again"
    assert tree_sha256(OUT) == uninterrupted


def test_parts_are_put_together_until_a_shard_is_large_enough(codec: CountingCodec) -> None:
    read = {}
    for size in (0.001, 0.05, 400):
        tokenize(config(tokenize={"part_seconds": 1, "shard_mb": size}))
        found = read_manifest(OUT)["splits"]["train"]["shards"]
        assert sum(shard["cuts_count"] for shard in found) == 6
        assert found[0]["codes"]["bytes"] == (OUT / "shards/train/codes.000000.tar").stat().st_size
        read[len(found)] = [
            (cut.id, load_codes(cut).tobytes(), cut.load_audio().tobytes()) for cut in read_shards(OUT, "train")
        ]
    assert sorted(read)[0] == 1 and sorted(read)[-1] == 6 and len(read) == 3, "one, some and all parts in a shard"
    assert len({str(cuts) for cuts in read.values()}) == 1


def test_killed_while_parts_are_put_together(codec: CountingCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tokenize={"part_seconds": 1, "shard_mb": 0.4})
    tokenize(settings)
    uninterrupted = tree_sha256(OUT)
    shutil.rmtree(OUT)
    put_together, calls = stage._put_together, []

    def killed(target: Path, parts: list[Path], is_tar: bool) -> tuple[str, int]:
        calls.append(target.name)
        if len(calls) == 5:
            target.with_name(target.name + ".tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return put_together(target, parts, is_tar)

    forget()
    monkeypatch.setattr(stage, "_put_together", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize(settings)
    codec.calls = 0
    tokenize(settings)
    assert codec.calls == 0, "every part was there"
    assert calls.count("recording.000000.tar") == 2, "once in train and once in test"
    assert tree_sha256(OUT) == uninterrupted


def test_without_audio_train_has_codes_alone(codec: CountingCodec) -> None:
    tokenize(config(tokenize={"store_audio": False}))
    assert not list((OUT / "shards/train").glob("recording*"))
    assert [load_codes(cut).shape[0] for cut in read_shards(OUT, "train")] == [8] * 6
    assert all(cut.load_audio().any() for cut in read_shards(OUT, "test"))


@pytest.mark.parametrize("field", ["cuts.000000.jsonl", "codes.000001.tar", "recording.000000.tar"])
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_shard_is_named(codec: CountingCodec, field: str, damage: str) -> None:
    tokenize(PARAMETERS)
    path = OUT / "shards" / "train" / field
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(ShardError, match=field):
        read_shards(OUT, "train")
    read_shards(OUT, "test")


def test_codes_of_another_length_are_refused(codec: CountingCodec) -> None:
    tokenize(PARAMETERS)
    cut = next(iter(read_shards(OUT, "train")))
    assert isinstance(cut, MonoCut)
    cut.duration -= 0.1
    with pytest.raises(ShardError, match="ann-0 has 76 frames"):
        load_codes(cut)


def elsewhere(folder: Path) -> TokenizeParams:
    return config(tokenize={"part_seconds": 4.5, "shard_mb": 0.001, "to": f"file://{folder}/"})


def test_shards_at_a_url_read_as_those_in_the_folder(codec: CountingCodec, tmp_path: Path) -> None:
    tokenize(PARAMETERS)
    local = [(cut.id, load_codes(cut).tobytes(), cut.load_audio().tobytes()) for cut in read_shards(OUT, "train")]
    place = tmp_path / "place"
    tokenize(elsewhere(place))
    assert [path.name for path in OUT.rglob("*") if path.is_file()] == ["manifest.json"]
    manifest = read_manifest(OUT)
    assert manifest["location"] == f"file://{place}"
    for name, split in manifest["splits"].items():
        for shard in split["shards"]:
            for field in ("cuts", "codes", "recording"):
                assert file_sha256(place / name / shard[field]["file"]) == shard[field]["sha256"]
    found = [(cut.id, load_codes(cut).tobytes(), cut.load_audio().tobytes()) for cut in read_shards(OUT, "train")]
    assert found == local
    shutil.rmtree(place)
    assert len(read_shards(OUT, "train").to_eager()) == 6, "what was fetched once is not fetched again"


def test_versions_at_a_url_leave_each_other_alone(codec: CountingCodec, tmp_path: Path) -> None:
    place = tmp_path / "place"
    tokenize(elsewhere(place))
    before = {path: path.read_bytes() for path in place.rglob("*.*")}
    rows = read_jsonl(output("curate") / "train.jsonl")
    write_rows(output("curate") / "train.jsonl", rows[:-1])
    tokenize(elsewhere(place))
    assert len(list(place.rglob("*.*"))) > len(before)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_half_an_object_at_a_url_is_replaced_and_a_damaged_one_is_named(codec: CountingCodec, tmp_path: Path) -> None:
    place = tmp_path / "place"
    tokenize(elsewhere(place))
    whole = {path: path.read_bytes() for path in sorted(place.rglob("*.tar"))}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    victim = min(path for path in whole if path.name.startswith("codes") and path.parent.name == "train")
    with pytest.raises(StorageError, match=rf"{victim.name} is damaged"):
        read_shards(OUT, "train")
    tokenize(elsewhere(place))
    assert {path: path.read_bytes() for path in sorted(place.rglob("*.tar"))} == whole
    victim.unlink()
    with pytest.raises(StorageError, match=rf"nothing at .*{victim.name}"):
        read_shards(OUT, "train")


def test_missing_inputs_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match="valle2 curate"):
        tokenize(PARAMETERS)
    with pytest.raises(ShardError, match="valle2 tokenize"):
        read_shards(OUT, "train")


def test_flac_is_byte_stable_and_lossless() -> None:
    import io

    import soundfile

    samples = np.random.default_rng(0).integers(-32768, 32767, 10_000).astype(np.int16)
    first = tokenizer.flac_bytes(samples, 24_000)
    assert first == tokenizer.flac_bytes(samples.copy(), 24_000)
    assert np.array_equal(soundfile.read(io.BytesIO(first), dtype="int16")[0], samples)


def test_bundled_codec(codec: CountingCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    from valle2.codec import load_codec

    for module in (stage, tokenizer):
        monkeypatch.setattr(module, "load_codec", load_codec)
    tokenize(PARAMETERS)
    codes = [load_codes(cut) for cut in read_shards(OUT, "test")]
    assert all(item.min() >= 0 and item.max() < 1024 for item in codes)
