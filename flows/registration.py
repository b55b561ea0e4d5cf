"""From an evaluated model to a version in the registry, judged once.

The same evaluation under the same thresholds is the same version, with the same verdict: it is noted, so that a run in
which nothing has changed judges and registers nothing. Who decides after the gate is `flows.promote`.
"""

import json
import shutil
import warnings
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.command import command_environment, run_command
from flows.runner import Runs, lineage_store, run_stages
from flows.workspace import Workspace
from valle2 import registry
from valle2.evaluation.gate import Verdict
from valle2.stage import digest, output, write_json
from valle2.tracking import connect, tracking_uri
from valle2.trust.lineage import LineageStore, ModelRecord, StageRecord, records_in
from valle2.types import Stage

EVALUATE: Stage = "evaluate"
REPORTED: Stage = "data-report"
GATE = "valle2 gate"
VERDICT = "artifacts/gate/verdict.json"


@dataclass(frozen=True)
class Judged:
    """A version and what the gate found."""

    version: int
    passed: bool
    found: str
    """The sentences of all rules."""
    reasons: list[str]
    """The sentences of the rules that failed."""


def judged(space: Workspace, stages: dict[str, str], runs: Runs) -> tuple[Judged, bool]:
    """The version that an evaluation has become, judged and registered where that has not been done yet.

    Args:
        space: Holds the stages' outputs.
        stages: Stage -> digest of its lineage record, of those that the model is made of.
        runs: Gets the report on the data, which the gate asks for.

    Returns:
        The version, and whether it is new.
    """
    if known := _known(space, stages):
        return known, False
    if space.config.gate.require_data_report:
        run_stages(space, REPORTED, runs)
    verdict = judge(space)
    version, is_new = register(space, stages, verdict)
    told = "; ".join(rule.sentence for rule in verdict.rules if rule.value is not None)
    found = Judged(version, verdict.passed, told, verdict.reasons)
    write_json(_note_file(space, stages), {"uri": tracking_uri(), "judged": asdict(found)})
    return found, is_new


@task(persist_result=False, cache_policy=NO_CACHE)
def judge(space: Workspace) -> Verdict:
    """Run `valle2 gate` in the workspace: it may have to let the champion speak."""
    run_command(
        GATE, space.root, command_environment(space.root, space.home, space.run),
        lambda line: print(f"  {line}", flush=True), space.note_child,
    )  # fmt: skip
    return Verdict.from_json(json.loads((space.root / VERDICT).read_text()))


def _known(space: Workspace, stages: dict[str, str]) -> Judged | None:
    """The version that the same evaluation and the same thresholds became, if the registry still has it."""
    path = _note_file(space, stages)
    noted = json.loads(path.read_text()) if path.is_file() else {}
    if noted.get("uri") != tracking_uri():
        return None
    versions = connect().search_model_versions(f"name='{space.config.promote.model_name}'")
    known = Judged(**noted["judged"])
    return known if str(known.version) in {str(item.version) for item in versions} else None


def _note_file(space: Workspace, stages: dict[str, str]) -> Path:
    key = digest([space.config.promote.model_name, stages, space.config.gate.model_dump(mode="json")])
    return space.home / "registered" / f"{key}.json"


@task(persist_result=False, cache_policy=NO_CACHE)
def register(space: Workspace, stages: dict[str, str], verdict: Verdict) -> tuple[int, bool]:
    """Assemble the voice model and put it, with its lineage, into the registry. Doing it again changes nothing.

    Args:
        space: Holds the stages' outputs.
        stages: Stage -> digest of its lineage record.
        verdict: The gate's.

    Returns:
        The version, and whether it is new.
    """
    store = lineage_store(space.home)
    bundle = space.root / "artifacts" / ".bundle"
    _assemble(space, bundle)
    record = _model_record(space, bundle, stages, verdict, store)
    is_new = not store.has(record.digest)
    name = store.put(record)
    _carry_lineage(store, name, bundle)
    run_ids = {kind: store.stage(stages[f"train-{kind}"]).mlflow_run_id for kind in ("ar", "nar")}
    # MLflow tells of its own steps on standard error; what fails is raised.
    with redirect_stderr(StringIO()), warnings.catch_warnings(action="ignore"):
        version = registry.register(
            bundle, name, record.metrics, verdict, run_ids={kind: run for kind, run in run_ids.items() if run},
            report=space.root / output(EVALUATE), data=space.root / output(REPORTED) / "report.json",
            name=space.config.promote.model_name,
        )  # fmt: skip
    return version, is_new


def _assemble(space: Workspace, bundle: Path) -> None:
    from valle2.model_folder import write_bundle

    shutil.rmtree(bundle, ignore_errors=True)
    config = space.config
    write_bundle(
        bundle, ar_dir=space.root / output("train-ar"), nar_dir=space.root / output("train-nar"),
        bpe=space.root / output("curate") / "bpe.json", codec_name=config.tokenize.codec,
        decoder=config.evaluate.decoder, sampling=config.evaluate.sampling,
    )  # fmt: skip


def _model_record(
    space: Workspace, bundle: Path, stages: dict[str, str], verdict: Verdict, store: LineageStore
) -> ModelRecord:
    """The same stages and the same verdict are the same record: its time and run are the evaluation's."""
    evaluation = store.stage(stages[EVALUATE])
    metrics = json.loads((space.root / output(EVALUATE) / "metrics.json").read_text())
    return ModelRecord(
        model_sha256=registry.bundle_sha256(bundle), stages=stages, parent_model=_parent(space, store),
        gate=verdict.to_json(), metrics=metrics, run=evaluation.run, created=evaluation.finished,
    )  # fmt: skip


def _parent(space: Workspace, store: LineageStore) -> str | None:
    """The record of the model that training started from; it and what it names are taken into our store."""
    folder = space.root / space.config.train_ar.warm_start
    if not space.config.train_ar.warm_start or not (folder / "model.json").is_file():
        return None
    for record in records_in(folder).values():
        store.put(record)
    return registry.resolve(str(folder)).lineage


def _carry_lineage(store: LineageStore, model: str, bundle: Path) -> None:
    """Put the records that lead to a model into its folder, so that it can be asked wherever it goes."""
    folder = bundle / "lineage"
    folder.mkdir()
    waiting, seen = [model], set()
    while waiting:
        name = waiting.pop()
        if name in seen or not store.has(name):
            continue
        seen.add(name)
        record = store.get(name)
        (folder / f"{name}.json").write_bytes(record.to_bytes())
        waiting += record.parents if isinstance(record, StageRecord) else record.stages.values()
        if isinstance(record, ModelRecord) and record.parent_model:
            waiting.append(record.parent_model)
