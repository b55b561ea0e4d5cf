"""The gate, the approval and the registry: which model becomes champion, who says so, and why.

A model that misses a threshold is registered as rejected, with the reasons. One that passes is a candidate until it is
approved: by the policy `promote.approval: automatic`, or by a person (`required`). On a server the flow is suspended
until someone answers (`flows.approval`); run directly in a terminal, it asks there; otherwise the candidate waits for
`valle2 promote`.
"""

import json
import shutil
import sys
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import typer
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import Pause

from flows.approval import Approval, Decision, ask
from flows.pipeline import needed
from flows.runner import Runs, lineage_store, run_stages
from flows.session import session
from flows.workspace import Workspace
from valle2 import registry
from valle2.evaluation.gate import Verdict, judge
from valle2.stage import digest, output, write_json
from valle2.tracking import connect, tracking_uri
from valle2.trust.lineage import LineageStore, ModelRecord, StageRecord, records_in
from valle2.types import Stage

EVALUATE: Stage = "evaluate"
POLICY = "the policy promote.approval: automatic"


@flow(persist_result=False)
def promote(revision: str = "HEAD", params: str | None = None, data: str | None = None) -> None:
    """Judge, register and perhaps promote the model that a revision has evaluated; nothing is trained.

    Args:
        revision: Branch, tag or commit, such as the branch that `retrain` returned.
        params: Another parameter file than the revision's params.yaml.
        data: Another data folder than the one that the revision's data.dvc names.
    """
    with session(revision, params, data) as (space, runs):
        run_stages(space, EVALUATE, runs, only_cached=True)
        decide(space, runs)


def decide(space: Workspace, runs: Runs) -> None:
    """Take an evaluated model through gate, registry and approval; what was decided goes into the summary."""
    config = space.config
    metrics = json.loads((space.root / output(EVALUATE) / "metrics.json").read_text())
    verdict = judge(metrics, config.gate)
    # Only what the model is made of: the same model is the same version, whatever else a run reported on.
    stages = {name: runs.digests()[name] for name in needed(space.root, EVALUATE)}
    version, is_new = _known(space, stages, verdict), False
    if version is None:
        version, is_new = register(space, stages, verdict)
        _note(space, stages, verdict, version)
    name = f"{config.promote.model_name}/{version}"
    runs.decision.append(f"model    {name}{'' if is_new else ', already registered'}")
    if not verdict.passed:
        runs.decision += ["decision rejected by the gate:", *(f"           {reason}" for reason in verdict.reasons)]
        return
    status = connect().get_model_version(config.promote.model_name, str(version)).tags.get("valle2.status")
    if status == "candidate":
        approval = _approval(space, runs, version, verdict)
        status = _apply(approval, version, config.promote.model_name) if approval else status
        if approval:
            runs.decision.append(f"decision {status}: {approval.decision} by {approval.approver}: {approval.reason}")
        else:
            hint = f"`valle2 promote {version} --approver NAME --reason WHY`"
            runs.decision.append(f"decision candidate: it passed the gate and waits for approval: {hint}")
        return
    passed = "; ".join(rule.sentence for rule in verdict.rules)
    runs.decision.append(f"decision {status}: {passed}")


def _approval(space: Workspace, runs: Runs, version: int, verdict: Verdict) -> Approval | None:
    settings = space.config.promote
    reason = "; ".join(rule.sentence for rule in verdict.rules)
    if settings.approval == "automatic":
        return Approval(approver=POLICY, decision="approve", reason=reason)
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.deployment_id:
        try:
            return ask(space, version, reason)
        except Pause:
            hint = f"`python -m flows answer {context.flow_run.name} approve --approver NAME --reason WHY`"
            runs.decision.append(f"decision candidate: it passed the gate and waits for approval: {hint}")
            raise
    if sys.stdin.isatty():
        print(f"{settings.model_name}/{version} passed the gate: {reason}", flush=True)
        decision: Decision = "approve" if typer.confirm("make it champion?") else "reject"
        return Approval(approver=typer.prompt("your name"), decision=decision, reason=typer.prompt("reason"))
    return None


def _apply(approval: Approval, version: int, name: str) -> str:
    if approval.decision == "approve":
        registry.promote(version, approval.approver, approval.reason, name)
        return "champion"
    registry.reject(version, approval.approver, approval.reason, name)
    return "rejected"


def _note(space: Workspace, stages: dict[str, str], verdict: Verdict, version: int) -> None:
    """Remember which version the same evaluation and the same verdict became."""
    write_json(_note_file(space, stages, verdict), {"version": version, "uri": tracking_uri()})


def _known(space: Workspace, stages: dict[str, str], verdict: Verdict) -> int | None:
    """The version that the same evaluation and the same verdict became, if the registry still has it."""
    path = _note_file(space, stages, verdict)
    noted = json.loads(path.read_text()) if path.is_file() else {}
    if noted.get("uri") != tracking_uri():
        return None
    found = connect().search_model_versions(f"name='{space.config.promote.model_name}'")
    return noted["version"] if str(noted["version"]) in {str(item.version) for item in found} else None


def _note_file(space: Workspace, stages: dict[str, str], verdict: Verdict) -> Path:
    key = digest([space.config.promote.model_name, stages, verdict.to_json()])
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
            report=space.root / output(EVALUATE), name=space.config.promote.model_name,
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
