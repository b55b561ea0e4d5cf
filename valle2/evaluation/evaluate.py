"""Synthesise unseen voices and sentences, and score them: WER, SIM, DNSMOS, INF and CUT.

Rows: what the model says, the speakers' own readings (ground truth), and those readings through the codec alone, which
bounds what any model of its codes can reach. Of an utterance that continues its own prompt, each is scored whole and,
as `continuation`, without the prompt. Also assembles the voice model folder, which is what is registered. Whether the
figures are good enough is `valle2.evaluation.gate`'s; how they look is `valle2.evaluation.report`'s.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from valle2.config.evaluate import EvaluateParams
from valle2.errors import EvaluationError
from valle2.evaluation.cases import Case, cases_digest, choose_cases
from valle2.evaluation.report import write_report
from valle2.evaluation.rows import rows_of, score
from valle2.evaluation.scorer import Scorer
from valle2.evaluation.speech import make_speech
from valle2.evaluation.summary import summarise
from valle2.model_folder import read_facts, write_bundle
from valle2.progress import progress
from valle2.stage import finish, output, partial, tree_sha256, write_json
from valle2.tracking import home
from valle2.types import StageResult
from valle2.vocoder import OWN, decoder_digest

KEPT = ("prompt", "model", "ground_truth", "reconstruction")
"""What is kept of each case, to be heard."""


def evaluate(config: EvaluateParams) -> StageResult:
    """Evaluate the trained models: `artifacts/train-ar`, `train-nar`, `tokenize`, `curate` -> `artifacts/evaluate`.

    Finished cases survive a crash.

    Raises:
        EvaluationError: A stage before it has not run, there is no case, or a metric's model is missing.
    """
    _need(output("train-ar") / "model.safetensors", "train-ar")
    _need(output("train-nar") / "model.safetensors", "train-nar")
    torch.set_num_threads(config.runtime.num_threads)
    bpe = output("curate") / "bpe.json"
    cases = choose_cases(output("tokenize"), config)
    inputs = [
        config.evaluate.model_dump(mode="json"), config.tokenize.codec, config.transcribe.language,
        tree_sha256(output("train-ar"), output("train-nar"), bpe), cases_digest(cases),
        decoder_digest(config.evaluate.decoder),
    ]  # fmt: skip
    with partial("evaluate", inputs) as work:
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        write_bundle(
            out / "model", ar_dir=output("train-ar"), nar_dir=output("train-nar"), bpe=bpe,
            codec_name=config.tokenize.codec, decoder=config.evaluate.decoder, sampling=config.evaluate.sampling,
        )  # fmt: skip
        scored, names = evaluate_model(out / "model", cases, config, work)
        metrics = summarise(scored, names, config.evaluate, config.runtime.seed)
        metrics["protocol_digest"] = cases_digest(cases)
        write_json(out / "metrics.json", metrics)
        write_json(out / "cases.json", scored)
        _keep_samples(work / "speech", out / "samples", cases)
        write_json(out / "context.json", context := _context())
        write_report(out / "report", metrics, scored, out / "samples", context)
        finish(work, "evaluate")
    figure = (
        f"WER {metrics['wer']:.3f}, SIM {metrics['sim_own']:.3f}, DNSMOS {metrics['dnsmos']:.2f}, {len(cases)} cases"
    )
    return StageResult(figure, {"cases": len(cases)})


def evaluate_model(
    bundle: Path, cases: Sequence[Case], config: EvaluateParams, work: Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Let any voice model say the cases, and score it.

    Args:
        bundle: A voice model folder.
        cases: As `choose_cases` gives them.
        config: Names the metrics' models; sampling is `config.evaluate.sampling`.
        work: Keeps the speech in `speech/`: a second call with the same model and cases goes on where the first ended.

    Returns:
        The cases with their figures, as in `cases.json`, and the names of the metrics' models.

    Raises:
        ModelError: The model cannot be loaded, or a prompt is too long for it.
        EvaluationError: A metric's model is missing.
    """
    scorer = Scorer(config, home() / "scores")
    num_readings = config.evaluate.num_readings
    total = sum(num_readings + len(rows_of(case, num_readings)) for case in cases)
    with progress("evaluate", total, "utterances") as advance:
        rate = make_speech(work / "speech", bundle, cases, config, advance)
        scored = score(work / "speech", cases, rate, scorer, config, advance)
    return scored, scorer.names | {"decoder": read_facts(bundle).get("decoder", {"name": OWN})["name"]}


def _need(path: Path, stage: str) -> None:
    if not path.is_file():
        raise EvaluationError(f"no trained model at {path}; run `valle2 {stage}`, or `dvc repro evaluate`")


def _keep_samples(speech: Path, target: Path, cases: Sequence[Case]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for row in KEPT:
            path = speech / row / f"{case.id}.wav"
            if path.is_file():
                shutil.copyfile(path, target / f"{case.id}.{row}.wav")


def _context() -> dict[str, Any]:
    """What earlier stages tell the report: learning curves and the retention funnel."""
    history = {}
    for kind in ("ar", "nar"):
        path = output("train-ar" if kind == "ar" else "train-nar") / "history.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        history[kind] = [json.loads(line) for line in lines]
    funnel = output("curate") / "funnel.json"
    return {"history": history, "funnel": json.loads(funnel.read_text()) if funnel.is_file() else None}
