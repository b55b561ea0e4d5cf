"""What the gate looks at, gathered: the evaluation, the champion's scores on the same cases, speed, voices, consent.

Nothing is decided here; `valle2.evaluation.gate` does that. Reads the working folder's `artifacts/`.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.config.params import Config
from valle2.config.sampling import SamplingConfig
from valle2.errors import EvaluationError, LineageError
from valle2.evaluation.gate import Champion, EvalReport, Facts
from valle2.model_folder import model_sha256, read_facts
from valle2.registry import CurrentChampion, current_champion
from valle2.stage import digest, file_sha256, output, write_json
from valle2.tracking import home
from valle2.trust.leaks import leaked_speakers, without_consent

if TYPE_CHECKING:
    from valle2.evaluation.cases import Case
    from valle2.synthesis import Synthesizer

MODELS = ("wer_model", "sim_model", "dnsmos_model", "decoder")
"""Names in `metrics.json` that must be equal for figures to be compared."""
TEXTS = 2
TURNS = 3
"""Speed is the median over so many texts, each spoken so often by either model in turn."""


def gather(config: Config) -> EvalReport:
    """Everything about the evaluated model in `artifacts/`.

    Raises:
        EvaluationError: It has not been evaluated.
        ModelError: The champion's alias was moved by hand, or its record does not fit.
    """
    folder = output("evaluate")
    if not (folder / "metrics.json").is_file():
        raise EvaluationError(f"no evaluation at {folder}; run `valle2 evaluate`")
    metrics = json.loads((folder / "metrics.json").read_text())
    cases = json.loads((folder / "cases.json").read_text())
    champion = current_champion(config.promote.model_name)
    if champion is not None and model_sha256(champion.bundle) == model_sha256(folder / "model"):
        champion = None  # it is itself
    scores = _scores(champion, metrics, config) if champion else None
    return EvalReport(metrics, cases, scores, _facts(config, cases, champion))


def _scores(champion: CurrentChampion, metrics: Mapping[str, Any], config: Config) -> Champion:
    """The champion's scores as they were kept, if it was asked the same; else it is asked now."""
    told = champion.evaluation()
    same = ("protocol_digest", "num_readings", *MODELS[:-1])
    if told and all(told[0].get(name) == metrics.get(name) for name in same):
        return Champion(champion.name, told[1])
    from valle2.evaluation.cases import choose_cases
    from valle2.evaluation.evaluate import evaluate_model

    print(f"gate: {champion.name} has no scores for these cases, so it is evaluated on them", flush=True)
    sampling = SamplingConfig.model_validate(read_facts(champion.bundle)["sampling"])
    settings = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"sampling": sampling})})
    work = home() / "gate" / digest([model_sha256(champion.bundle), metrics["protocol_digest"]])[:16]
    cases, _ = evaluate_model(champion.bundle, choose_cases(output("tokenize"), settings), settings, work)
    return Champion(champion.name, json.loads(json.dumps(cases)))


def _facts(config: Config, cases: list[dict[str, Any]], champion: CurrentChampion | None) -> Facts:
    unknown: dict[str, str] = {}

    def ask(name: str, wanted: object, find: Callable[[], Any]) -> Any:
        if wanted is None:
            return None
        try:
            return find()
        except LineageError as error:
            unknown[name] = str(error)
            return None

    rules, shards = config.gate, output("tokenize")
    starts = {config.train_ar.warm_start, config.train_nar.warm_start} - {""}
    parents = [Path(start) for start in sorted(starts)]
    evaluated = {case["speaker"] for case in cases}
    rtf, slowdown = _speed(config, champion)
    return Facts(
        leaked_speakers=ask(
            "leaked_speakers", rules.max_leaked_speakers, lambda: leaked_speakers(shards, parents, evaluated)
        ),
        without_consent=ask("without_consent", rules.max_without_consent, lambda: without_consent(shards)),
        has_data_report=_has_data_report(unknown), rtf=rtf, slowdown=slowdown, unknown=unknown,
    )  # fmt: skip


def _has_data_report(unknown: dict[str, str]) -> bool:
    path = output("data-report") / "report.json"
    if not path.is_file():
        unknown["has_data_report"] = f"{path} is missing"
        return False
    made_of = json.loads(path.read_text())["made_of"]["shards"]
    if made_of != file_sha256(output("tokenize") / "manifest.json"):
        unknown["has_data_report"] = f"{path} is of other shards"
        return False
    return True


def _speed(config: Config, champion: CurrentChampion | None) -> tuple[float | None, float | None]:
    """Real-time factor, and how many times the champion's it is; measured once for a pair of models and a machine."""
    rules = config.gate
    if rules.max_rtf is None and (rules.max_slowdown is None or champion is None):
        return None, None
    bundle = output("evaluate") / "model"
    others = {champion.name: champion.bundle} if champion and rules.max_slowdown is not None else {}
    key = digest([model_sha256(path) for path in (bundle, *others.values())])
    note = home() / "speed" / f"{key}.json"
    if not note.is_file():
        from valle2.evaluation.cases import choose_cases

        cases = choose_cases(output("tokenize"), config)[:TEXTS]
        write_json(note, measure_speed([bundle, *others.values()], cases, config.runtime.num_threads))
    measured = json.loads(note.read_text())
    return measured[0], measured[0] / measured[1] if others else None


def measure_speed(bundles: list[Path], cases: "list[Case]", num_threads: int) -> list[float]:
    """Real-time factors of voice models, one text at a time, turn and turn about, so that a busy machine hits all.

    Args:
        bundles: Voice model folders.
        cases: Texts and prompts.
        num_threads: Of torch.

    Returns:
        For each model the median of seconds of computing a second of speech.
    """
    import torch

    from valle2.synthesis import Request, Synthesizer

    torch.set_num_threads(num_threads)
    models = [Synthesizer.from_path(bundle) for bundle in bundles]
    requests = [Request(case.text, torch.from_numpy(case.prompt.wave), case.prompt.text, case.seed) for case in cases]
    for model in models:  # the first time is no measure
        _time(model, requests[0])
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(TURNS):
        for request in requests:
            for model, times in zip(models, taken, strict=True):
                times.append(_time(model, request))
    return [statistics.median(times) for times in taken]


def _time(model: "Synthesizer", request: Any) -> float:
    start = time.perf_counter()
    [spoken] = model.synthesize_texts([request])
    return (time.perf_counter() - start) / (len(spoken.waveform) / model.sample_rate)
