"""What changed between two versions of the data, of runs on branches with real git and DVC, and of models' records."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.corpora import declare_speakers
from tests.datasets import SPEAKERS, parameters, record, run_data_stages, take_in
from tests.toy import git
from valle2 import versions
from valle2.cli import app
from valle2.errors import LineageError
from valle2.model_lineage import ModelLineage
from valle2.trust.changes import compare
from valle2.trust.changes_tree import render
from valle2.trust.contents import DATA_STAGES
from valle2.trust.lineage import Code, ModelRecord, StageRecord
from valle2.trust.objects import ObjectReader, places
from valle2.versions import find_version


def commit(branch: str, **curate: object) -> None:
    """Run the stages, have DVC keep what they made, and commit it on a branch."""
    settings = parameters(**curate)
    Path("params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    run_data_stages(settings)
    for command in (["dvc", "add", "--quiet", "data"], ["dvc", "commit", "--quiet", "--force", *DATA_STAGES]):
        subprocess.run(command, check=True)
    git(Path(), "checkout", "--quiet", "-b", branch)
    git(Path(), "add", "--all")
    git(Path(), "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", branch)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions. The second: Eve comes, Dan goes, Cal's sound is another, Bob's file has another name and licence,
    a threshold and a module of `curate` differ.
    """
    folder = tmp_path_factory.mktemp("diff")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VALLE2_HOME", str(folder / ".valle2"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        git(folder, "init", "--quiet", "--initial-branch", "main")
        subprocess.run(["dvc", "init", "--quiet"], check=True)
        write_pipeline()
        take_in(folder)
        git(folder, "add", "--all")
        git(folder, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "start")
        commit("run/first")

        audio = folder / "data" / "audio"
        record(folder, "eve")
        (audio / "dan" / "a.wav").unlink()
        record(folder, "cal", "k").replace(audio / "cal" / "a.wav")
        (audio / "bob" / "a.wav").rename(audio / "bob" / "b.wav")
        declare_speakers(folder, (*SPEAKERS, "eve"), licence="CC-BY-4.0")
        Path("valle2/corpus/curate.py").write_text("version = 2\n")
        commit("run/second", max_given_text_wer=0.1)
        yield folder


def write_pipeline() -> None:
    """A graph of the data stages with a module for the code of all."""
    Path("valle2/corpus").mkdir(parents=True)
    Path("valle2/corpus/curate.py").write_text("version = 1\n")
    needs = ("data", "artifacts/ingest", "artifacts/transcribe", "artifacts/curate")
    stages = {
        stage: {
            "cmd": f"valle2 {stage}", "deps": [need, "valle2/corpus/curate.py"], "params": [stage],
            "outs": [f"artifacts/{stage}"],
        }
        for stage, need in zip(DATA_STAGES, needs, strict=True)
    }  # fmt: skip
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    Path(".gitignore").write_text("/artifacts\n/data\n/codec\n/home\n/.valle2\n")


@pytest.fixture
def here(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("VALLE2_HOME", str(repository / ".valle2"))
    return repository


def changes(before: str = "run/first", after: str = "run/second") -> dict:
    return compare(find_version(before), find_version(after), ObjectReader(places()))


def test_recordings_are_compared_by_their_sound(here: Path) -> None:
    found = changes()["recordings"]
    assert found["count"] == [4, 4]
    assert list(found["added"]) == ["tones-eve-a"] and list(found["removed"]) == ["tones-dan-a"]
    assert list(found["changed"]) == ["tones-cal-a"]
    assert found["renamed"] == {"tones-bob-a": "tones-bob-b"}
    assert found["added"]["tones-eve-a"] == round(8 / 3600, 5)
    assert found["told_otherwise"] == {
        name: {"licence": ["CC0-1.0", "CC-BY-4.0"]} for name in ("tones-ann-a", "tones-bob-b")
    }


def test_speakers_who_came_and_went_are_named(here: Path) -> None:
    found = changes()["speakers"]
    assert (found["count"], list(found["added"]), list(found["removed"])) == ([4, 4], ["eve"], ["dan"])


def test_decisions_that_changed_are_told_with_their_reasons(here: Path) -> None:
    found = changes()["segments"]
    moved = {(part["from"], part["to"]): part["ids"] for part in found["moved"]}
    assert moved[("kept for test", "dropped as text_disagrees")] == ["tones-ann-a-002"]
    assert moved[("kept for dev", "dropped as text_disagrees")] == ["tones-bob-b-002"]
    assert "tones-eve-a-000" in found["added"]["kept for train"]["ids"]
    assert "tones-dan-a-003" in found["removed"]["dropped as language"]["ids"]
    assert found["texts"]["tones-bob-b-000"] == ["the red boat bob a", "the red boat bob b"]


def test_hours_are_those_of_both_funnels(here: Path) -> None:
    found = changes()["hours"]
    assert next(iter(found)) == "taken in" and [*found][-3:] == ["kept for train", "kept for dev", "kept for test"]
    second = json.loads(Path("artifacts/curate/funnel.json").read_text())
    assert {name: pair[1] for name, pair in found.items() if name.startswith("dropped") and pair[1]} == {
        f"dropped as {reason}": part["hours"] for reason, part in second["dropped"].items()
    }
    assert found["dropped as language"][1] == 0.0 < found["dropped as language"][0]
    assert found["dropped as text_disagrees"][0] == 0.0


def test_what_made_the_difference_is_told(here: Path) -> None:
    causes = changes()["causes"]
    assert causes["ingest"]["inputs"] == ["data"]
    assert causes["curate"]["params"] == {"curate.max_given_text_wer": [1.0, 0.1]}
    assert all(told["code"] == ["valle2/corpus/curate.py"] for told in causes.values())


def test_the_same_version_has_no_changes(here: Path) -> None:
    found = changes("run/first", "run/first")
    assert found["same"] and not found["causes"] and "hours" not in found
    there, back = changes(), changes("run/second", "run/first")
    assert there["hours"] == {name: pair[::-1] for name, pair in back["hours"].items()}


def test_the_command_prints_a_tree_and_json(here: Path) -> None:
    told = CliRunner().invoke(app, ["data", "diff", "run/first", "run/second"]).stdout
    for words in ("run/first -> run/second", "added, 0.0022 h: 1", "tones-bob-a -> tones-bob-b", "kept for test ->"):
        assert words in told
    assert re.search(r"dropped as language +0\.000[1-9] -> +0\.0000", told)
    told = CliRunner().invoke(app, ["data", "diff", "run/first", "run/second", "--json"]).stdout
    assert json.loads(told) == json.loads(json.dumps(changes()))


def test_long_lists_are_cut_off_unless_all_is_asked_for(here: Path) -> None:
    found = changes()
    found["recordings"]["added"] = {f"r{index}": 1.0 for index in range(9)}
    drawn = []
    for show_all in (False, True):
        console = Console(record=True, width=200)
        console.print(render(found, show_all))
        drawn.append(console.export_text())
    assert "6 more (--all)" in drawn[0] and "r8" not in drawn[0]
    assert "r8" in drawn[1] and "--all" not in drawn[1]


def test_what_cannot_be_compared_is_one_sentence(here: Path) -> None:
    for name, sentence in (
        ("run/third", "no revision and no model 'run/third'"),
        ("main", "main has no dvc.lock"),
        ("--all", "no revision and no model '--all'"),
    ):
        with pytest.raises(LineageError, match=sentence):
            find_version(name)
    refused = CliRunner().invoke(app, ["data", "diff", "run/first", "run/third"])
    assert isinstance(refused.exception, LineageError)


def test_a_revision_without_the_data_stages_is_refused(here: Path) -> None:
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    del lock["stages"]["curate"]
    blob = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], input=yaml.safe_dump(lock), capture_output=True, text=True, check=True
    ).stdout.strip()
    tree = subprocess.run(
        ["git", "mktree"], input=f"100644 blob {blob}\tdvc.lock\n", capture_output=True, text=True, check=True
    ).stdout.strip()
    half = git(here, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit-tree", tree, "-m", "half").strip()
    with pytest.raises(LineageError, match=f"{half} names no outputs of curate; run"):
        find_version(half)


def test_an_object_that_is_nowhere_is_named(here: Path, tmp_path: Path) -> None:
    version = find_version("run/first")
    md5 = version.stages["ingest"].outs["artifacts/ingest"]
    stored = here / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    hidden = stored.rename(tmp_path / "hidden")
    try:
        with pytest.raises(LineageError, match=f"object {md5} of artifacts/ingest is in none of"):
            changes()
    finally:
        hidden.rename(stored)


def test_a_model_stands_for_the_data_that_it_was_made_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_version("run/first")
    records = {
        stage: StageRecord(
            stage=stage, command=f"valle2 {stage}", params=made.params, deps=made.deps, outs=made.outs,
            code=Code(commit="c" * 40), environment={}, run="first", started="", finished="",
        )
        for stage, made in first.stages.items()
    }  # fmt: skip
    model = ModelRecord(
        model_sha256={}, stages={stage: record.digest for stage, record in records.items()}, run="first", created=""
    )
    known = {record.digest: record for record in (*records.values(), model)}
    found = ModelLineage("valle2/1 (champion)", model.digest, known.__getitem__)
    monkeypatch.setattr("valle2.model_lineage.model_lineage", lambda name: found)
    version = find_version("valle2@champion")
    assert version.name == "valle2/1 (champion)" and version.stages == first.stages
    assert changes("valle2@champion", "run/second") == changes() | {"before": "valle2/1 (champion)"}
    assert versions.DATA_STAGES == DATA_STAGES
