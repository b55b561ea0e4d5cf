"""Synthesise unseen voices and sentences, and score them: WER, SIM, DNSMOS, INF and CUT.

Three rows: what the model says, the speakers' own readings (ground truth), and those readings through the codec alone,
which bounds what any model of its codes can reach. Also assembles the voice model folder, which is what is registered.
Whether the figures are good enough is `valle2.evaluation.gate`'s; how they look is `valle2.evaluation.report`'s.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from valle2.asr import ASR_RATE, Asr, load_asr
from valle2.audio import change_rate, encode_wave, read_wave
from valle2.codec import load_codec
from valle2.config.evaluate import EvaluateConfig, EvaluateParams
from valle2.corpus.quality import Dnsmos
from valle2.errors import EvaluationError
from valle2.evaluation.cases import Case, choose_cases
from valle2.evaluation.metrics import (
    SpeakerEncoder,
    asr_name,
    dnsmos_name,
    ending,
    load_speaker_encoder,
    similarity,
    sound_seconds,
    word_errors,
)
from valle2.evaluation.report import write_report
from valle2.evaluation.summary import summarise
from valle2.model_folder import write_bundle
from valle2.progress import Advance, progress
from valle2.shards import read_manifest
from valle2.stage import finish, output, partial, tree_sha256, write_bytes, write_json, write_text
from valle2.synthesis import Request, Synthesizer
from valle2.types import StageResult
from valle2.vocoder import decoder_digest, load_decoder

BATCH = 8
"""Cases synthesised at once."""
SHORTEST = 0.3
"""Seconds of audio that every metric's model takes."""
ROWS = ("model", "ground_truth", "reconstruction")


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
    inputs = [
        config.evaluate.model_dump(mode="json"), config.tokenize.codec, config.runtime.seed, config.transcribe.language,
        tree_sha256(output("train-ar"), output("train-nar"), bpe, output("tokenize") / "manifest.json"),
        decoder_digest(config.evaluate.decoder),
    ]  # fmt: skip
    with partial("evaluate", inputs) as work:
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        bundle = out / "model"
        write_bundle(
            bundle, ar_dir=output("train-ar"), nar_dir=output("train-nar"), bpe=bpe, codec_name=config.tokenize.codec,
            decoder=config.evaluate.decoder, sampling=config.evaluate.sampling,
        )  # fmt: skip
        cases = choose_cases(output("tokenize"), config.evaluate, config.transcribe.language)
        with progress("evaluate", len(cases) * (1 + len(ROWS)), "utterances") as advance:
            speed = _speak(work / "speech", bundle, cases, config, advance)
            _reconstruct(work / "speech", cases, config)
            scored, names = _score(work, cases, config, advance)
        metrics = summarise(scored, names, config.evaluate, config.runtime.seed)
        write_json(out / "metrics.json", metrics)
        write_json(out / "cases.json", scored)
        _samples(work / "speech", out / "samples", cases)
        write_report(out / "report", metrics, scored, out / "samples", _context())
        finish(work, "evaluate")
    figure = (
        f"WER {metrics['wer']:.3f}, SIM {metrics['sim_own']:.3f}, DNSMOS {metrics['dnsmos']:.2f}, {len(cases)} cases"
    )
    return StageResult(figure, speed | {"cases": len(cases)})


def _need(path: Path, stage: str) -> None:
    if not path.is_file():
        raise EvaluationError(f"no trained model at {path}; run `valle2 {stage}`, or `dvc repro evaluate`")


def _speak(
    folder: Path, bundle: Path, cases: Sequence[Case], config: EvaluateParams, advance: Advance
) -> dict[str, float]:
    """Synthesise the cases that are not done yet.

    Returns:
        `real_time_factor` (s of work per s of speech) of what was synthesised now, for the log only.
    """
    missing = [(index, case) for index, case in enumerate(cases) if not (folder / "model" / f"{case.id}.wav").is_file()]
    advance(len(cases) - len(missing))
    if not missing:
        return {}
    synthesizer = Synthesizer.from_path(bundle, config.runtime.device)
    spent = spoken_seconds = 0.0
    for first in range(0, len(missing), BATCH):
        batch = missing[first : first + BATCH]
        requests = [
            Request(case.text, torch.from_numpy(case.prompt.wave), case.prompt.text, config.runtime.seed + index)
            for index, case in batch
        ]
        start = time.monotonic()
        spoken = synthesizer.synthesize_batch(requests, config.evaluate.sampling)
        spent += time.monotonic() - start
        for (_, case), item in zip(batch, spoken, strict=True):
            spoken_seconds += len(item.waveform) / synthesizer.sample_rate
            write_text(folder / "model" / f"{case.id}.txt", item.finish_reason)
            _save(folder / "model" / f"{case.id}.wav", item.waveform.cpu().numpy(), synthesizer.sample_rate)
        advance(len(batch))
    return {"real_time_factor": round(spent / max(spoken_seconds, 1e-9), 3), "synthesised_seconds": spoken_seconds}


def _reconstruct(folder: Path, cases: Sequence[Case], config: EvaluateParams) -> None:
    """The readings as they are, and as the codec gives them back."""
    codec = load_codec(config.tokenize.codec, config.runtime.device)
    decoder = load_decoder(config.evaluate.decoder, codec, config.runtime.device)
    for case in cases:
        _save(folder / "ground_truth" / f"{case.id}.wav", case.reference, codec.sample_rate)
        _save(folder / "prompt" / f"{case.id}.wav", case.prompt.wave, codec.sample_rate)
        path = folder / "reconstruction" / f"{case.id}.wav"
        if not path.is_file():
            codes = torch.from_numpy(case.codes.astype(np.int64))[None]
            wave = decoder.decode(codes.to(config.runtime.device))[0].cpu().numpy()
            _save(path, wave[: len(case.reference)], codec.sample_rate)


def _score(
    work: Path, cases: Sequence[Case], config: EvaluateParams, advance: Advance
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every row of every case, read back from 16-bit files, so that a resumed run scores the very same samples."""
    settings = config.evaluate
    asr = load_asr(
        settings.asr, config.transcribe.compute_type, config.transcribe.language, config.runtime.num_threads,
        device=config.runtime.device,
    )  # fmt: skip
    encoder, dnsmos = load_speaker_encoder(settings.speaker_encoder), Dnsmos()
    rate = read_manifest(output("tokenize"))["sample_rate"]
    prompts = {
        case.id: encoder.embed(
            change_rate(read_wave(work / "speech" / "prompt" / f"{case.id}.wav", rate), rate, ASR_RATE)
        )
        for case in cases
    }
    scored = []
    for case in cases:
        # One prompt of each other speaker, the first: all speakers weigh the same.
        firsts = {other.speaker: other.id for other in reversed(cases) if other.speaker != case.speaker}
        others = [prompts[name] for _, name in sorted(firsts.items())]
        entry: dict[str, Any] = {
            "id": case.id, "speaker": case.speaker, "text": case.text,
            "prompt_ids": list(case.prompt.cut_ids), "prompt_text": case.prompt.text, "rows": {},
        }  # fmt: skip
        for row in ROWS:
            done = work / "scores" / row / f"{case.id}.json"
            if not done.is_file():
                wave = read_wave(work / "speech" / row / f"{case.id}.wav", rate)
                figures = _figures(wave, rate, case, asr, encoder, dnsmos, prompts[case.id], others, config)
                if row == "model":
                    reason = (work / "speech" / "model" / f"{case.id}.txt").read_text()
                    figures["ending"] = _ending(wave, rate, reason, case, settings)
                write_json(done, figures)
            entry["rows"][row] = json.loads(done.read_text())
            advance(1)
        scored.append(entry)
    names = {
        "wer_model": asr_name(settings.asr),
        "sim_model": encoder.name,
        "dnsmos_model": dnsmos_name(),
        "decoder": config.evaluate.decoder,
    }
    return scored, names


def _figures(
    wave: Float[np.ndarray, " n"],
    rate: int,
    case: Case,
    asr: Asr,
    encoder: SpeakerEncoder,
    dnsmos: Dnsmos,
    own: Float[np.ndarray, " d"],
    others: Sequence[Float[np.ndarray, " d"]],
    config: EvaluateParams,
) -> dict[str, Any]:
    seconds = len(wave) / rate
    # A model that ends at once says nothing; the metrics' models still need something to hear.
    wave = np.pad(wave, (0, max(0, round(SHORTEST * rate) - len(wave))))
    speech = change_rate(wave, rate, ASR_RATE)
    heard = asr.recognise(speech)
    errors = word_errors(case.text, heard, config.transcribe.language)
    near = similarity(encoder.embed(speech), own, others)
    return {
        "heard": heard,
        "errors": asdict(errors),
        "sim_own": round(near.own, 6),
        "sim_others": [round(value, 6) for value in near.others],
        "sim_wins": near.wins,
        "dnsmos": round(dnsmos.p808(speech), 6),
        "seconds": round(seconds, 3),
    }


def _ending(
    wave: Float[np.ndarray, " n"], rate: int, reason: str, case: Case, settings: EvaluateConfig
) -> dict[str, Any]:
    found = ending(
        wave, rate, "cap" if reason == "cap" else "eos", sound_seconds(case.reference, rate),
        max_trailing_silence=settings.trailing_silence, min_share=settings.cut_words_share,
    )  # fmt: skip
    return asdict(found) | {"finish_reason": reason}


def _samples(speech: Path, target: Path, cases: Sequence[Case]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for row in ("prompt", *ROWS):
            shutil.copyfile(speech / row / f"{case.id}.wav", target / f"{case.id}.{row}.wav")


def _save(path: Path, wave: Float[np.ndarray, " n"], sample_rate: int) -> None:
    write_bytes(path, encode_wave(wave, sample_rate))


def _context() -> dict[str, Any]:
    """What earlier stages tell the report: learning curves and the retention funnel."""
    history = {}
    for kind in ("ar", "nar"):
        path = output("train-ar" if kind == "ar" else "train-nar") / "history.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        history[kind] = [json.loads(line) for line in lines]
    funnel = output("curate") / "funnel.json"
    return {"history": history, "funnel": json.loads(funnel.read_text()) if funnel.is_file() else None}
