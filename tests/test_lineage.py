"""Lineage records cannot be changed unseen, and a model leads down to the consent of every voice."""

import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from valle2.errors import LineageError
from valle2.trust.consent import Consent
from valle2.trust.lineage import Code, LineageStore, ModelRecord, StageRecord, records_in, stage_key
from valle2.trust.objects import ObjectReader, Place, places
from valle2.trust.trace import check_files, trace
from valle2.trust.tree import render

SEGMENTS = 5


def stage_record(stage: str, **changes) -> StageRecord:
    fields = {
        "stage": stage, "command": f"valle2 {stage}", "params": {}, "deps": {}, "outs": {},
        "code": Code(commit="c" * 40), "environment": {"python": "3.11"}, "run": "brisk-fox", "started": "2026-01-01",
        "finished": "2026-01-01",
    }  # fmt: skip
    return StageRecord(**(fields | changes))


def model_record(**changes) -> ModelRecord:
    fields = {"model_sha256": {"ar.safetensors": "0" * 64}, "stages": {}, "run": "brisk-fox", "created": "2026-01-02"}
    return ModelRecord(**(fields | changes))


def test_a_record_comes_back_as_it_was(tmp_path):
    store, record = LineageStore(tmp_path), stage_record("ingest", facts={"hours": 0.5}, figure="é")
    name = store.put(record)
    assert store.get(name) == record
    assert store.get(name[:10]) == record
    assert name == hashlib.sha256(record.to_bytes()).hexdigest()
    assert store.put(record) == name


def test_an_altered_record_is_found_out(tmp_path):
    store = LineageStore(tmp_path)
    name = store.put(stage_record("ingest"))
    path = next(tmp_path.rglob(f"{name}.json"))
    path.write_text(path.read_text().replace("brisk-fox", "other-fox"))
    with pytest.raises(LineageError, match=f"{name[:12]}… was altered"):
        store.get(name)
    with pytest.raises(LineageError, match="altered"):
        store.put(stage_record("ingest"))


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(LineageError, match="no lineage record aaaaaaaaaaaa…"):
        LineageStore(tmp_path).get("a" * 64)


def test_what_is_no_record_is_refused(tmp_path):
    data = b'{"kind": "poem"}'
    name = hashlib.sha256(data).hexdigest()
    path = tmp_path / "records" / name[:2] / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(LineageError, match="no lineage record of format 1"):
        LineageStore(tmp_path).get(name)


def test_nothing_half_written_is_left(tmp_path):
    LineageStore(tmp_path).put(stage_record("ingest"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_first_maker_of_a_result_is_found(tmp_path):
    store = LineageStore(tmp_path)
    first = stage_record("ingest", deps={"data": "1"}, run="first")
    store.put(first)
    store.put(stage_record("ingest", deps={"data": "1"}, run="second"))
    assert store.find_stage("ingest", first.key) == first
    assert store.find_stage("ingest", stage_key("valle2 ingest", {"data": "2"}, {})) is None
    assert store.find_stage("curate", first.key) is None


def test_an_index_that_lies_is_found_out(tmp_path):
    store = LineageStore(tmp_path)
    record = stage_record("ingest")
    other = store.put(stage_record("curate"))
    store.put(record)
    (tmp_path / "index" / "ingest" / record.key).write_text(other)
    with pytest.raises(LineageError, match=r"names .* for ingest, which is another record"):
        store.find_stage("ingest", record.key)


def test_a_memory_bucket_serves_too():
    store = LineageStore("memory://lineage-test")
    name = store.put(model_record())
    assert store.model(name) == model_record()
    with pytest.raises(LineageError, match="is a model's, expected a stage's"):
        store.stage(name)


def test_consent_reads_scopes_and_strings():
    assert Consent.of(None) is None
    consent = Consent.of({"basis": "consent", "granted_by": "Jo", "date": "2026-01-01", "scope": ["training"]})
    assert consent.sentence == "consent by Jo, 2026-01-01 for training"
    assert Consent.of({"basis": "licence", "scope": "all"}).scope == ("all",)


class Objects:
    """A DVC store with the outputs of a small pipeline, each a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, data: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(data).hexdigest()
        path = self.root / "files" / "md5" / md5[:2] / (md5[2:] + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return md5 + suffix

    def folder(self, files: dict[str, bytes]) -> str:
        listing = [{"md5": self.add(data), "relpath": name} for name, data in sorted(files.items())]
        return self.add(json.dumps(listing).encode(), ".dir")


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def pipeline(tmp_path):
    """Two recordings of one voice in one shard, their records, and the model's."""
    objects, store = Objects(tmp_path / "cache"), LineageStore(tmp_path / "lineage")
    custom = {
        "source": "made-up", "licence": "CC0-1.0", "attribution": "me", "sha256": "f" * 64,
        "consent": {"basis": "consent", "record": "form-7.pdf", "granted_by": "Ann"},
    }  # fmt: skip
    cuts, segments, shard = [], [], []
    for name in ("a", "b"):
        recording = {"id": name, "sources": [{"source": f"data/{name}.wav"}]}
        about = {"supervisions": [{"speaker": "ann", "text": "hello"}], "recording": recording, "custom": custom}
        cuts.append({"id": name, "start": 0, "duration": 9.0, **about})
        for index in range(SEGMENTS):
            segments.append({"id": f"{name}-{index}", "start": index * 1.5, "duration": 1.0, **about})
            shard.append({"id": f"{name}-{index}", "supervisions": [{"text": f"hello {index}"}]})
    files = {field: {"file": f"{field}.000000.x", "sha256": field[0] * 64} for field in ("cuts", "codes", "recording")}
    manifest = {"splits": {"train": {"shards": [{**files, "cuts_count": len(shard), "frames": 750}]}}}
    outs = {
        "ingest": objects.folder({"cuts.jsonl": lines(cuts)}),
        "transcribe": objects.folder({"segments.jsonl": lines(segments)}),
        "tokenize": objects.folder(
            {"manifest.json": json.dumps(manifest).encode(), "shards/train/cuts.000000.x": lines(shard)}
        ),
    }
    stages, before = {}, {}
    for stage, md5 in outs.items():
        record = stage_record(stage, deps=before, outs={f"artifacts/{stage}": md5})
        stages[stage], before = store.put(record), record.outs
    gate = {"passed": True, "rules": [{"name": "max_wer", "passed": True, "sentence": "word error rate is low"}]}
    name = store.put(model_record(stages=stages, gate=gate))
    return store, ObjectReader([Place(str(tmp_path / "cache"))]), name


def test_a_model_leads_to_the_consent_of_its_voices(pipeline):
    store, objects, name = pipeline
    found = trace(name, store.get, objects)
    assert not found.notes
    assert [shard.cuts for shard in found.shards] == [2 * SEGMENTS]
    [voice] = found.voices
    assert voice.consent.record == "form-7.pdf"
    assert [(recording.path, len(recording.segments)) for recording in voice.recordings] == [
        ("data/a.wav", SEGMENTS),
        ("data/b.wav", SEGMENTS),
    ]
    whole = json.loads(json.dumps(found.to_json()))
    assert whole["voices"][0]["recordings"][0]["segments"][1] == {
        "id": "a-1", "start": 1.5, "seconds": 1.0, "text": "hello 1", "split": "train"
    }  # fmt: skip


def drawn(found, show_all: bool) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(found, "valle2/1", show_all))
    return console.export_text()


def test_the_tree_is_short_until_all_is_asked_for(pipeline):
    store, objects, name = pipeline
    found = trace(name, store.get, objects)
    short, whole = drawn(found, False), drawn(found, True)
    assert "form-7.pdf" in short and "2 more segments (--all)" in short and "hello 4" not in short
    assert "more segments" not in whole and "hello 4" in whole and "f" * 64 in whole
    assert name in short and "brisk-fox" in short and "word error rate is low" in short


def test_records_of_different_runs_do_not_fit(pipeline):
    store, objects, name = pipeline
    record = store.model(name)
    other = store.put(stage_record("transcribe", deps={"artifacts/ingest": "0" * 32 + ".dir"}))
    mixed = store.put(record.model_copy(update={"stages": record.stages | {"transcribe": other}}))
    with pytest.raises(LineageError, match="transcribe used artifacts/ingest 000"):
        trace(mixed, store.get, objects)


def test_data_out_of_reach_is_a_note_and_damaged_data_too(pipeline, tmp_path):
    store, objects, name = pipeline
    away = trace(name, store.get, ObjectReader([Place(str(tmp_path / "elsewhere"))]))
    assert not away.voices and "is in none of" in away.notes[0]
    for path in (tmp_path / "cache").rglob("*.dir"):
        path.write_bytes(path.read_bytes() + b" ")
    assert "is damaged" in trace(name, store.get, objects).notes[0]


def test_the_parent_model_is_followed(pipeline):
    store, objects, name = pipeline
    child = store.put(store.model(name).model_copy(update={"parent_model": name, "run": "later"}))
    found = trace(child, store.get, objects)
    assert found.parent.digest == name
    assert "training started from" in drawn(found, False)


def test_files_that_are_not_the_records_are_named():
    record = model_record()
    check_files(record, {"ar.safetensors": "0" * 64, "extra": "1"}, "m")
    with pytest.raises(LineageError, match=r"ar\.safetensors differ"):
        check_files(record, {"ar.safetensors": "1" * 64}, "m")


def test_a_model_carries_its_records(tmp_path):
    record = model_record()
    (tmp_path / "lineage").mkdir()
    path = tmp_path / "lineage" / f"{record.digest}.json"
    path.write_bytes(record.to_bytes())
    assert records_in(tmp_path) == {record.digest: record}
    path.write_bytes(record.to_bytes() + b"\n")
    with pytest.raises(LineageError, match="altered"):
        records_in(tmp_path)


def test_dvc_settings_name_the_places(tmp_path):
    folder = tmp_path / ".dvc"
    folder.mkdir()
    (folder / "config").write_text(
        "[core]\n    remote = storage\n['remote \"storage\"']\n    url = ../store\n"
        "['remote \"cloud\"']\n    url = s3://bucket/x\n    endpointurl = http://here:1\n"
    )
    assert [place.url for place in places(tmp_path)] == [
        str(folder / "cache"), str(tmp_path / "store"), "s3://bucket/x"
    ]  # fmt: skip
    assert places(tmp_path)[2].options == {"endpoint_url": "http://here:1"}
    (folder / "config.local").write_text("[cache]\n    dir = /shared/cache\n")
    assert places(tmp_path)[0].url == "/shared/cache"
