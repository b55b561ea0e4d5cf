"""What bfloat16, int8 and streaming cost in quality: the test cases of a finished run, spoken by its model each way.

python -m benchmarks.quality

It wants a workspace whose `evaluate` has run, such as `make demo` leaves behind. The figures are those of the run's own
evaluation, and the models' losses on the readings of the test speakers, which tell smaller differences.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Figure, main
from valle2.asr import ASR_RATE, load_asr
from valle2.audio import change_rate
from valle2.config.params import PARAMS, Config, load_config
from valle2.corpus.quality import Dnsmos
from valle2.evaluation.cases import Case, choose_cases
from valle2.evaluation.metrics import corpus_wer, load_speaker_encoder, similarity, word_errors
from valle2.model.grouping import clip_start
from valle2.model.inference import Weights, has_bfloat16
from valle2.stage import output
from valle2.synthesis import Request, Synthesizer
from valle2.text import normalise

SHORTEST = 0.5
"""Seconds that the metrics' models are given at least."""


def run(options: argparse.Namespace) -> Sequence[Figure]:
    """All figures."""
    options.out = options.out.absolute()
    os.chdir(options.workspace)
    config = load_config(PARAMS)
    cases = choose_cases(output("tokenize"), config)[: options.cases]
    model = Path(options.model) if options.model else output("evaluate") / "model"
    kinds: list[Weights] = ["float32", "bfloat16", "int8"] if has_bfloat16() else ["float32", "int8"]
    voices = {kind: Synthesizer.from_path(model, weights=kind) for kind in kinds}
    judge = Judge(config, cases)
    figures = [Figure("utterances spoken each way", len(cases) * options.repeats, "")]
    for kind, voice in voices.items():
        figures += [Figure(f"{kind}: {name}", value, "nats") for name, value in losses(voice, cases).items()]
    ways = {kind: partial(whole, voice) for kind, voice in voices.items()} | {
        "float32, streamed": partial(streamed, voices["float32"])
    }
    for name, way in ways.items():
        figures += [Figure(f"{name}: {key}", *figure) for key, figure in judge(way, options.repeats).items()]
    return figures


@torch.inference_mode()
def losses(voice: Synthesizer, cases: Sequence[Case]) -> dict[str, float]:
    """Mean loss in nats per code of AR and NAR on the test speakers' own readings."""
    found: dict[str, list[float]] = {"AR loss": [], "NAR loss": []}
    for case in cases:
        if case.codes is None:
            continue
        text = torch.tensor([voice.bpe.encode(normalise(case.text))])
        lengths = torch.tensor([text.shape[1]])
        codes = clip_start(torch.from_numpy(case.codes.astype(np.int64)), voice.ar.group_size)[None]
        frames = torch.tensor([codes.shape[2]])
        found["AR loss"].append(voice.ar.loss(text, lengths, codes[:, 0], frames)["loss"].item())
        for codebook in range(1, codes.shape[1]):
            loss = voice.nar.loss(text, lengths, codes, frames, codebook, frames // 2)["loss"]
            found["NAR loss"].append(loss.item())
    return {name: float(np.mean(values)) for name, values in found.items()}


def whole(voice: Synthesizer, requests: Sequence[Request]) -> list[torch.Tensor]:
    """Speak all in batches."""
    return [spoken.waveform for spoken in voice.synthesize_batch(requests)]


def streamed(voice: Synthesizer, requests: Sequence[Request]) -> list[torch.Tensor]:
    """Speak one after the other, as streams."""
    return [torch.cat([chunk.waveform for chunk in voice.stream(request)]) for request in requests]


class Judge:
    """The evaluation's recogniser, speaker encoder and DNSMOS."""

    def __init__(self, config: Config, cases: Sequence[Case]) -> None:
        settings, transcribe = config.evaluate, config.transcribe
        self.cases, self.language = cases, transcribe.language
        self.asr = load_asr(settings.asr, transcribe.compute_type, transcribe.language, config.runtime.num_threads)
        self.encoder, self.dnsmos = load_speaker_encoder(settings.speaker_encoder), Dnsmos()
        self.prompts = {case.speaker: self.encoder.embed(change_rate(case.prompt.wave, 24_000, ASR_RATE))
                        for case in reversed(cases)}  # fmt: skip

    def __call__(
        self, speak: Callable[[Sequence[Request]], list[torch.Tensor]], repeats: int
    ) -> dict[str, tuple[float, str]]:
        """WER, nearness of the own voice, and P.808 of every case read `repeats` times."""
        errors, wins, pairs, opinions = [], 0, 0, []
        for turn in range(repeats):
            requests = [
                Request(case.text, torch.from_numpy(case.prompt.wave), case.prompt.text, 1000 * turn + index)
                for index, case in enumerate(self.cases)
            ]
            for case, wave in zip(self.cases, speak(requests), strict=True):
                heard = np.pad(wave.numpy(), (0, max(0, int(SHORTEST * 24_000) - len(wave))))
                heard = change_rate(heard, 24_000, ASR_RATE)
                errors.append(word_errors(case.text, self.asr.recognise(heard), self.language))
                others = [prompt for speaker, prompt in self.prompts.items() if speaker != case.speaker]
                own = change_rate(case.prompt.wave, 24_000, ASR_RATE)
                wins += similarity(self.encoder.embed(heard), self.encoder.embed(own), others).wins
                pairs += len(others)
                opinions.append(self.dnsmos.p808(heard))
        return {
            "WER": (corpus_wer(errors), "share"),
            "own voice nearest": (wins / max(pairs, 1), "share"),
            "DNSMOS P.808": (float(np.mean(opinions)), "MOS"),
        }


if __name__ == "__main__":
    main("Quality", run, workspace=".valle2/latest", model="", cases=96)
