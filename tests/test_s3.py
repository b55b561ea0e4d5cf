"""Audio from S3 and shards to S3, where the server is a real one that is killed, frozen or given half an object."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import s3fs
import yaml

from tests.corpora import CONSENT, config, rows, segment, tone, write_audio, write_rows
from tests.swift import KEY, SECRET, Swift
from valle2 import storage
from valle2.config.params import Config
from valle2.corpus.ingest import ingest
from valle2.corpus.media import Fetcher
from valle2.corpus.tokenize import tokenize
from valle2.errors import StorageError
from valle2.shards import load_codes, read_manifest, read_shards
from valle2.stage import file_sha256, output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = [f"v{index}" for index in range(6)]
AWAY = 30.0
"""Seconds."""


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = Swift(tmp_path_factory.mktemp("swift"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def workspace(swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    yield tmp_path
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(workspace: Path) -> str:
    name = "b" + "".join(letter for letter in workspace.name if letter.isalnum()).lower()[-40:]
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def objects(bucket: str) -> dict[str, int]:
    found = boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"]: item["Size"] for item in found}


def corpus(bucket: str) -> None:
    """A source at `s3://<bucket>/corpus`."""
    client = boto3.client("s3")
    for index, name in enumerate(NAMES):
        path = write_audio(Path("local") / f"{name}.wav", tone(1.0, 150 + 20 * index))
        client.upload_file(str(path), bucket, f"corpus/{name}/a.wav")
    source = {"name": "far", "path": f"s3://{bucket}/corpus", "licence": "CC0-1.0", "consent": CONSENT}
    Path("data").mkdir()
    Path("data/sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))


def curated() -> None:
    path = write_audio(Path("data/ann.wav"), tone(14.0, rate=24_000), 24_000)
    cuts = [segment(f"ann-{index}", "ann", f"text {index}", path, 1.5 * index, 1.4) for index in range(8)]
    for split, members in {"train": cuts[:6], "dev": cuts[6:7], "test": cuts[7:]}.items():
        write_rows(output("curate") / f"{split}.jsonl", [cut.to_dict() for cut in members])


def to(bucket: str) -> Config:
    return config(tokenize={"part_seconds": 2, "shard_mb": 0.1, "to": f"s3://{bucket}/shards"})


def at_the_third_call(action: Callable[[], None], function: Callable[..., object]) -> Callable[..., object]:
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            action()
        return function(*arguments)

    return counted


def killed_for(swift: Swift, seconds: float) -> None:
    swift.kill()
    threading.Timer(seconds, swift.start).start()


def frozen_for(swift: Swift, seconds: float) -> None:
    swift.freeze()
    threading.Timer(seconds, swift.thaw).start()


@pytest.mark.parametrize("fault", [killed_for, frozen_for])
def test_a_server_that_is_away_for_half_a_minute_costs_ingest_nothing(
    fault: Callable[[Swift, float], None], swift: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    corpus(bucket)
    monkeypatch.setattr(Fetcher, "_copy", at_the_third_call(lambda: fault(swift, AWAY), Fetcher._copy))
    ingest(config())
    assert [row["id"] for row in rows("artifacts/ingest/cuts.jsonl")] == [f"far-{name}-a" for name in NAMES]
    assert rows("artifacts/ingest/quarantine.jsonl") == []
    if fault is killed_for:
        assert "does not answer" in capsys.readouterr().err


def test_a_server_that_stays_away_is_one_sentence_and_the_next_run_goes_on(
    swift: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(bucket)
    monkeypatch.setattr("valle2.storage.PATIENCE", 2.0)
    copy = Fetcher._copy
    monkeypatch.setattr(Fetcher, "_copy", at_the_third_call(swift.kill, copy))
    with pytest.raises(StorageError, match=rf"cannot reach s3://{bucket}/corpus/.*goes on where it stopped"):
        ingest(config())
    assert not Path("artifacts/ingest").exists()
    swift.start()
    fetched: list[str] = []

    def counted(self: Fetcher, location: str, file: object) -> None:
        fetched.append(location)
        copy(self, location, file)  # type: ignore[arg-type]

    monkeypatch.setattr(Fetcher, "_copy", counted)
    ingest(config())
    assert len(rows("artifacts/ingest/cuts.jsonl")) == len(NAMES)
    assert len(fetched) < len(NAMES)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_one_sentence_at_once(bucket: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(bucket)
    curated()
    monkeypatch.setenv(variable, "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=rf"cannot reach s3://{bucket}/corpus .*check the address, the key"):
        ingest(config())
    with pytest.raises(StorageError, match=rf"cannot reach s3://{bucket}/shards/.*check the address, the key"):
        tokenize(to(bucket))
    assert not output("ingest").exists() and not output("tokenize").exists()


def test_shards_go_to_s3_and_are_read_from_there(bucket: str) -> None:
    curated()
    tokenize(to(bucket))
    manifest = read_manifest(output("tokenize"))
    files = {
        f"shards/{split}/{shard[field]['file']}": shard[field]["bytes"]
        for split, part in manifest["splits"].items() for shard in part["shards"]
        for field in ("cuts", "codes", "recording")
    }  # fmt: skip
    assert objects(bucket) == files
    found = [(cut.id, load_codes(cut).shape) for cut in read_shards(output("tokenize"), "train")]
    assert found == [(f"ann-{index}", (8, 105)) for index in range(6)]
    assert not list(Path("artifacts").rglob("*.tar"))


def test_a_bucket_that_is_not_there_is_one_sentence() -> None:
    curated()
    with pytest.raises(StorageError, match=r"no bucket or folder for no-such-bucket/shards"):
        tokenize(to("no-such-bucket"))


def test_half_an_object_and_a_killed_server_cost_tokenize_nothing(
    swift: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curated()
    tokenize(to(bucket))
    whole = objects(bucket)
    before = file_sha256(output("tokenize") / "manifest.json")
    client = boto3.client("s3")
    names = sorted(whole)
    for name in names[1:]:
        client.delete_object(Bucket=bucket, Key=name)
    half = client.get_object(Bucket=bucket, Key=names[0])["Body"].read()[: whole[names[0]] // 2]
    client.put_object(Bucket=bucket, Key=names[0], Body=half)
    killed: list[str] = []

    def kill() -> None:
        killed.append(swift.url)
        killed_for(swift, 8.0)

    monkeypatch.setattr(storage, "_put", at_the_third_call(kill, storage._put))
    tokenize(to(bucket))
    assert killed
    assert objects(bucket) == whole
    assert file_sha256(output("tokenize") / "manifest.json") == before
    assert len(list(read_shards(output("tokenize"), "train"))) == 6
