"""Lineage records: immutable, content-addressed JSON for every stage run and every model.

A record's name is the SHA-256 of its bytes, so a record that was altered is found out when it is read, and one record
can name another for good. They rest in any fsspec place: a folder, or a bucket beside the data. What they lead to, from
a model down to voices and consent, is in `valle2.trust.trace`; who writes them are the flows.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from valle2.errors import LineageError
from valle2.stage import digest as json_digest

DIGEST_LENGTH = 64


class Code(BaseModel):
    """The revision that ran. A run from uncommitted changes is marked, and never made by the flows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str
    dirty: bool = False


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal[1] = 1

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same record is always the same bytes."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @property
    def digest(self) -> str:
        """The record's name."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class StageRecord(Record):
    """One run of one stage."""

    kind: Literal["stage"] = "stage"
    stage: str
    command: str
    params: dict[str, Any] = Field(description="the sections of params.yaml that the stage depends on")
    deps: dict[str, str] = Field(description="path -> DVC's md5")
    outs: dict[str, str] = Field(description="path -> DVC's md5")
    code: Code
    environment: dict[str, str] = Field(description="python, platform, lock_sha256")
    parents: tuple[str, ...] = Field((), description="digests of the records whose outs are these deps")
    run: str = Field(description="flow run that made it")
    started: str = Field(description="ISO 8601, UTC")
    finished: str = Field(description="ISO 8601, UTC")
    figure: str = ""
    facts: dict[str, Any] = {}
    mlflow_run_id: str | None = None

    @property
    def key(self) -> str:
        """What the outputs follow from; see `stage_key`."""
        return stage_key(self.command, self.deps, self.params)


class ModelRecord(Record):
    """One voice model and how it came to be."""

    kind: Literal["model"] = "model"
    model_sha256: dict[str, str] = Field(description="file in the model folder -> SHA-256")
    stages: dict[str, str] = Field(description="stage -> digest of its record")
    parent_model: str | None = Field(None, description="record of the model that training started from")
    gate: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    run: str
    created: str = Field(description="ISO 8601, UTC")


RECORDS: dict[str, type[StageRecord] | type[ModelRecord]] = {"stage": StageRecord, "model": ModelRecord}


def stage_key(command: str, deps: dict[str, str], params: dict[str, Any]) -> str:
    """Digest of all that a stage's outputs follow from; equal keys mean that the outputs can be reused."""
    return json_digest({"cmd": command, "deps": deps, "params": params})


def parse_record(data: bytes, name: str) -> StageRecord | ModelRecord:
    """Read a record and hold it against its name.

    Args:
        data: The record's bytes as stored.
        name: Its digest.

    Raises:
        LineageError: The bytes are not those that the digest names, or not a record.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != name:
        raise LineageError(
            f"lineage record {name[:12]}… was altered: its bytes have SHA-256 {found[:12]}…; restore it from a copy of "
            "the lineage store (records are never changed)"
        )
    try:
        content = json.loads(data)
        return RECORDS[content["kind"]].model_validate(content)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise LineageError(f"{name[:12]}… is no lineage record of format 1: {' '.join(str(error).split())}") from error


class LineageStore:
    """Records in a folder or bucket; written once, never changed."""

    def __init__(self, root_url: str | Path) -> None:
        self.root_url = str(root_url)
        self._fs, root = fsspec.core.url_to_fs(self.root_url)
        self._root = root.rstrip("/")

    def put(self, record: StageRecord | ModelRecord) -> str:
        """Store a record and return its digest. Storing it again changes nothing.

        Raises:
            LineageError: A record of that name is there with other bytes.
        """
        data, name = record.to_bytes(), record.digest
        path = self._path(name)
        if self._fs.exists(path):
            parse_record(self._fs.cat_file(path), name)
        else:
            self._write(path, data)
        if isinstance(record, StageRecord):
            pointer = self._pointer(record.stage, record.key)
            if not self._fs.exists(pointer):  # the first maker stays: a cached result names the run that made it
                self._write(pointer, name.encode())
        return name

    def get(self, name: str) -> StageRecord | ModelRecord:
        """Read a record and verify it.

        Args:
            name: Its digest, or a beginning of it that only it has.

        Raises:
            LineageError: It is missing or altered, or the beginning is not unique.
        """
        name = name if len(name) == DIGEST_LENGTH else self._complete(name)
        try:
            data = self._fs.cat_file(self._path(name))
        except FileNotFoundError as error:
            raise LineageError(
                f"no lineage record {name[:12]}… in {self.root_url}; fetch the store that the run wrote to, or look in "
                "the model's own `lineage/` folder"
            ) from error
        return parse_record(data, name)

    def has(self, name: str) -> bool:
        """Whether a record of that digest is here."""
        return bool(self._fs.exists(self._path(name)))

    def find_stage(self, stage: str, key: str) -> StageRecord | None:
        """The record of the run that first made a stage's outputs from these inputs; None when there is none.

        Raises:
            LineageError: The index names a record that is missing, altered, or another stage's.
        """
        try:
            name = self._fs.cat_file(self._pointer(stage, key)).decode().strip()
        except FileNotFoundError:
            return None
        record = self.get(name)
        if not isinstance(record, StageRecord) or record.stage != stage or record.key != key:
            raise LineageError(
                f"the lineage index names {name[:12]}… for {stage}, which is another record; remove "
                f"{self._pointer(stage, key)}"
            )
        return record

    def model(self, name: str) -> ModelRecord:
        """Like `get`, for a model's record."""
        record = self.get(name)
        if not isinstance(record, ModelRecord):
            raise LineageError(f"lineage record {name[:12]}… is of stage {record.stage}, expected a model's")
        return record

    def stage(self, name: str) -> StageRecord:
        """Like `get`, for a stage's record."""
        record = self.get(name)
        if not isinstance(record, StageRecord):
            raise LineageError(f"lineage record {name[:12]}… is a model's, expected a stage's")
        return record

    def _path(self, name: str) -> str:
        return f"{self._root}/records/{name[:2]}/{name}.json"

    def _pointer(self, stage: str, key: str) -> str:
        return f"{self._root}/index/{stage}/{key}"

    def _complete(self, beginning: str) -> str:
        paths = self._fs.glob(f"{self._root}/records/*/{beginning}*.json") if len(beginning) >= 4 else []
        if len(paths) != 1:
            raise LineageError(f"{len(paths)} lineage records begin with {beginning!r} in {self.root_url}; expected 1")
        return Path(paths[0]).stem

    def _write(self, path: str, data: bytes) -> None:
        """Whole or not at all: object stores do so by themselves, a folder by rename."""
        if not isinstance(self._fs, LocalFileSystem):
            self._fs.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f".{uuid.uuid4().hex}.tmp")
        with building.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        building.replace(target)


def records_in(folder: Path) -> dict[str, StageRecord | ModelRecord]:
    """The records that a voice model carries in its `lineage/` folder, verified, by digest.

    Raises:
        LineageError: One of them is not what its name says.
    """
    return {path.stem: parse_record(path.read_bytes(), path.stem) for path in sorted(folder.glob("lineage/*.json"))}
