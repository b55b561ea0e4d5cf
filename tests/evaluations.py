"""Output folders of the evaluate stage, made in seconds: spoken by espeak-ng, misheard by rule, scored by chance."""

import random
from pathlib import Path

import numpy as np

from demo.corpus import make_voice
from demo.espeak import SAMPLE_RATE, speak
from demo.grammar import sentence
from valle2.audio import change_rate, encode_wave
from valle2.config.evaluate import EvaluateConfig
from valle2.evaluation.metrics import word_errors
from valle2.evaluation.summary import summarise
from valle2.stage import write_bytes, write_json
from valle2.text import normalise

RATE = 24_000
NAMES = {
    "wer_model": "bundled Whisper, whisperx 3.8.6", "sim_model": "resemblyzer 0.1.4 (GE2E)",
    "dnsmos_model": "DNSMOS P.808 of speechmos 0.0.1.1", "decoder": "bundled",
}  # fmt: skip
CATEGORIES = ("numbers", "tongue-twisters", "very-long")
POINT = {"loss": 4.0, "valid_loss": 4.2, "top1": 0.3, "valid_top1": 0.2}
FUNNEL = {
    "in": {"count": 9, "hours": 0.9},
    "dropped": {"noise": {"count": 1, "hours": 0.1}},
    "kept": {"train": {"count": 8, "hours": 0.8}},
}


def spoken(text: str, voice: int) -> np.ndarray:
    """Speech at `RATE`."""
    samples = speak(text, make_voice(voice)).samples.astype(np.float32) / 32768
    return change_rate(samples, SAMPLE_RATE, RATE)


def make_evaluation(folder: Path, num_cases: int, system: int = 0, num_hard: int = 0) -> Path:
    """Write one.

    Args:
        folder: Where.
        num_cases: Of protocol `unseen`; case 0 is cut short, and every third is misheard.
        system: Another number gives other figures and other speech for the same texts, prompts and seeds.
        num_hard: Of protocol `hard`, which has categories and no ground truth.
    """
    rng, chance = random.Random(7), random.Random(f"system {system}")
    cases = []
    for place in range(num_cases + num_hard):
        hard = place >= num_cases
        text, prompt, voice = normalise(sentence(rng)), normalise(sentence(rng)), place % 8
        name = f"{'hard.' if hard else ''}case-{place:03d}"
        speech = {"prompt": spoken(prompt, voice), "model": spoken(text, voice + 20 + system)}
        if not hard:
            speech["ground_truth"] = spoken(text, voice)
            speech["reconstruction"] = speech["ground_truth"] * 0.8
        for row, wave in speech.items():
            write_bytes(folder / "samples" / f"{name}.{row}.wav", encode_wave(wave, RATE))
        rows = {
            row: scored(text, heard(text, place + system) if row == "model" else text, wave, chance, row)
            for row, wave in speech.items()
            if row != "prompt"
        }
        rows["model"]["ending"]["cut"] = place == 0 and system == 0
        cases.append(
            {"id": name, "protocol": "hard" if hard else "unseen", "category": CATEGORIES[place % 3] if hard else None,
             "speaker": f"voice-{voice}", "text": text, "seed": place, "prompt_ids": [f"utterance-{place}"],
             "prompt_text": prompt, "rows": rows}
        )  # fmt: skip
    write_json(folder / "cases.json", cases)
    write_json(folder / "metrics.json", summarise(cases, NAMES, EvaluateConfig(), 0))
    history = [{"step": step, **POINT} for step in (10, 20, 30)]
    write_json(folder / "context.json", {"history": {"ar": history, "nar": history}, "funnel": FUNNEL})
    return folder


def heard(text: str, place: int) -> str:
    """Every third case has a substitution, a deletion and an insertion."""
    words = text.split()
    return " ".join(["green", *words[1:-1], "indeed", "so"][: len(words)] if place % 3 == 1 else words)


def scored(text: str, said: str, wave: np.ndarray, chance: random.Random, row: str) -> dict:
    """A row as in `cases.json`."""
    ending = {"infinite": False, "cut": False, "finish_reason": "eos"}
    return {
        "errors": vars(word_errors(text, said)), "heard": said, "sim_own": round(chance.uniform(0.5, 0.95), 4),
        "sim_others": [0.4, 0.6], "sim_wins": 2, "sim_reconstructed": 0.8, "dnsmos": round(chance.uniform(2, 4), 3),
        "dnsmos_ovrl": 2.5, "seconds": round(len(wave) / RATE, 3), "silence": 0.2, "repetition": 0.3,
        **({"ending": ending} if row == "model" else {}),
    }  # fmt: skip
