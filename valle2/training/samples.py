"""What a model in training sounds like: a few sentences of the dev split, said every so many steps, to hear and to see.

The AR model says them by the real decoding, in a voice that it has seen nothing but a prompt of; a NAR model that is at
hand adds the other codebooks. The NAR model in training adds them to the true first codebook. All of it happens in a
copy: the training's weights, mode and random numbers stay as they are, so samples change no byte of an output.
"""

import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from valle2.config.sampling import SamplingConfig
from valle2.decoding import generate_codes, pad
from valle2.errors import TrainingError, Valle2Error
from valle2.evaluation.cases import choose_prompt, cut_prompt
from valle2.model.ar import ARModel
from valle2.model.grouping import clip_start
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel
from valle2.model.sampling import Sampling
from valle2.shards import load_codes, read_shards
from valle2.stage import output
from valle2.text import Bpe
from valle2.training.objective import CodecFacts, Objective
from valle2.types import Seconds

NUM_SAMPLES = 3
PROMPT_SECONDS: Seconds = 3.0
LONGEST: Seconds = 10.0
"""Of the sentences that are said; longer ones cost more than they tell."""
SLOWEST = 2.0
"""How much longer than the speaker's own reading an AR model may take: one that has learnt little never ends."""


class Gallery(Protocol):
    """Where samples go; `valle2.training_run.TrainingRun` is one."""

    def log_audio(self, step: int, name: str, waveform: Float[np.ndarray, " n"], sample_rate: int) -> None:
        """Keep a sound."""

    def log_image(self, step: int, name: str, png: bytes) -> None:
        """Keep a picture."""

    def tag(self, name: str, value: str) -> None:
        """Say something of all of them."""


@dataclass(frozen=True)
class Sample:
    """A sentence to say, and how its speaker said it.

    Attributes:
        name: The utterance's id, fit for file names.
        text: Tokens of the prompt's text and the sentence.
        prompt: Codes of the prompt.
        codes: Codes of the speaker's own reading.
    """

    name: str
    text: Int[Tensor, "s"]
    prompt: Int[Tensor, "k p"]
    codes: Int[Tensor, "k t"]


class Samples:
    """Says the samples of one training.

    Args:
        objective: Which model is trained.
        codec: Facts of the codes.
        bpe: Tokenizer of the training's text.
        weights: Gives the weights to speak with, the averaged ones where there are some. It is called on all ranks, as
            it may gather them.
        tracker: Where samples go.
        device: That the model speaks on.
        is_speaker: Whether this rank speaks.
    """

    def __init__(
        self,
        objective: Objective,
        codec: CodecFacts,
        bpe: Bpe,
        weights: Callable[[], Mapping[str, Tensor]],
        tracker: Gallery,
        device: str,
        is_speaker: bool = True,
    ) -> None:
        self._objective, self._codec_facts, self._bpe = objective, codec, bpe
        self._weights, self._tracker, self._device = weights, tracker, device
        self._speaks = is_speaker
        self._samples: list[Sample] = []

    def speak(self, step: int) -> None:
        """Say all samples, every `sample_every` steps and at the last one; what fails is told and stops no training."""
        settings = self._objective.train
        if not settings.sample_every or (step % settings.sample_every and step != settings.num_steps):
            return
        weights = self._weights()
        if not self._speaks:
            return
        devices = [torch.device(self._device)] if torch.device(self._device).type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), torch.inference_mode():
                if not self._samples:
                    self._prepare()
                self._say(step, weights)
        except (Valle2Error, OSError, RuntimeError, ValueError) as error:
            self._speaks = False
            print(f"samples: none from step {step} on, because {' '.join(str(error).split())[:300]}", file=sys.stderr)

    def _prepare(self) -> None:
        """Load what is needed beside the model, and keep the speakers' own readings, as the codec has them."""
        from valle2.codec import load_codec

        self._codec = load_codec(self._codec_facts.name, self._device)
        if self._codec.codes_digest != self._codec_facts.codes_digest:
            raise TrainingError(f"the codec {self._codec_facts.name} is another one than that of the shards")
        self._nar, self._sampling, finer = None, SamplingConfig(), "by the model in training"
        limits = self._objective.shape.max_text_tokens, self._objective.shape.max_frames
        if self._objective.kind == "ar":
            found = find_nar(self._objective, self._codec_facts, self._bpe)
            finer = f"by {found[1]}" if found else "left out: no NAR model of these codes and this text at hand"
            if found:
                self._nar = found[0].to(self._device).eval()
                limits = (
                    min(limits[0], self._nar.shape.max_text_tokens), min(limits[1], self._nar.shape.max_frames)
                )  # fmt: skip
            self._sampling = _sampling_of(self._objective.train.warm_start)
        self._samples = choose_samples(output("tokenize"), self._bpe, self._codec_facts.frame_rate, *limits)
        self._tracker.tag("valle2.samples", f"codebooks 1-{self._codec_facts.num_codebooks - 1} {finer}")
        for sample in self._samples:
            self._keep(0, f"{sample.name}.reference", sample.prompt, sample.codes)

    def _say(self, step: int, weights: Mapping[str, Tensor]) -> None:
        model = self._objective.build(_vocab_size(weights)).to(self._device).eval()
        model.load_state_dict(dict(weights))
        text, lengths = pad([sample.text for sample in self._samples], torch.device(self._device))
        prompts = [clip_start(one.prompt.to(self._device), self._objective.group_size) for one in self._samples]
        if isinstance(model, ARModel):
            longest = max(sample.codes.shape[1] for sample in self._samples)
            cap = min(round(SLOWEST * longest), round(self._sampling.max_seconds * self._codec_facts.frame_rate))
            draws = Sampling(**self._sampling.model_dump(exclude={"max_seconds"}))
            spoken = generate_codes(model, text, lengths, prompts, list(range(len(prompts))), draws, cap)
            first, nar = [codes for codes, _, _ in spoken], self._nar
        else:
            assert isinstance(model, NARModel)
            first, nar = [sample.codes[0].to(self._device) for sample in self._samples], model
        codes = refine(nar, text, lengths, prompts, first) if nar is not None else [one[None] for one in first]
        suffix = "" if nar is not None else ".codebook-0"
        for sample, prompt, new in zip(self._samples, prompts, codes, strict=True):
            self._keep(step, sample.name + suffix, prompt[: len(new)], new)

    def _keep(self, step: int, name: str, prompt: Int[Tensor, "k p"], new: Int[Tensor, "k t"]) -> None:
        from valle2.corpus.inspection import draw_wave

        whole = torch.cat([prompt, new], 1).to(self._device)
        wave = self._codec.decode(whole[None])[0, prompt.shape[1] * self._codec.hop_length :].cpu().numpy()
        wave = np.pad(wave, (0, max(0, self._codec.hop_length - len(wave))))  # an AR model may end at once
        png = io.BytesIO()
        draw_wave(wave, self._codec.sample_rate, png, name)
        self._tracker.log_audio(step, name, wave, self._codec.sample_rate)
        self._tracker.log_image(step, name, png.getvalue())


def choose_samples(shards: Path, bpe: Bpe, frame_rate: float, max_text_tokens: int, max_frames: int) -> list[Sample]:
    """The same few utterances of the dev split each time, of as many speakers as there are, with prompts of theirs.

    Args:
        shards: A tokenize output.
        bpe: Tokenizer of the text.
        frame_rate: Of the codes, Hz.
        max_text_tokens: Bound of prompt and sentence together.
        max_frames: The same; an AR model may take longer than the speaker did.

    Raises:
        TrainingError: No speaker has two utterances that are short enough.
    """
    speakers: dict[str, list[Any]] = {}
    for cut in read_shards(shards, "dev"):
        speakers.setdefault(cut.supervisions[0].speaker, []).append(cut)
    chosen: list[list[Sample]] = []
    for _, cuts in sorted(speakers.items()):
        cuts.sort(key=lambda cut: cut.id)
        found: list[Sample] = []
        for target in (cut for cut in cuts if cut.duration <= LONGEST):
            prompts = choose_prompt([cut for cut in cuts if cut.id != target.id], PROMPT_SECONDS)[:1]
            found += [one for prompt in prompts if (one := _sample(target, prompt, bpe, frame_rate))]
            if len(found) == NUM_SAMPLES:
                break
        chosen.append([
            one for one in found
            if len(one.text) <= max_text_tokens
            and one.prompt.shape[1] + round(SLOWEST * one.codes.shape[1]) <= max_frames
        ])  # fmt: skip
    order = [of[turn] for turn in range(NUM_SAMPLES) for of in chosen if turn < len(of)][:NUM_SAMPLES]
    if not order:
        raise TrainingError(f"no speaker of the dev split has an utterance of at most {LONGEST:.0f} s and another one")
    return order


def _sample(target: Any, source: Any, bpe: Bpe, frame_rate: float) -> Sample | None:
    said, end = cut_prompt(source, PROMPT_SECONDS, source.supervisions[0].language or "en")
    if not said:
        return None
    text = bpe.encode(f"{said} {target.supervisions[0].text}")
    codes = [torch.from_numpy(load_codes(cut).astype(np.int64)) for cut in (source, target)]
    name = re.sub(r"[^\w.-]", "_", target.id)
    return Sample(name, torch.tensor(text), codes[0][:, : round(end * frame_rate)], codes[1])


def find_nar(objective: Objective, codec: CodecFacts, bpe: Bpe) -> tuple[NARModel, str] | None:
    """A NAR model of the same codes and text: the warm start's, else the stage's, with its folder; None without one."""
    bundle, stage = Path(objective.train.warm_start or "-"), output("train-nar")
    if (bundle / "nar.safetensors").is_file():
        facts = json.loads((bundle / "model.json").read_text())
        if (
            facts["codec"].get("codes_digest") == codec.codes_digest
            and (bundle / "bpe.json").read_text() == (output("curate") / "bpe.json").read_text()
        ):
            return _nar(facts["nar"], facts["vocab_size"], codec, bundle / "nar.safetensors"), bundle.as_posix()
    if (stage / "config.json").is_file():
        facts = json.loads((stage / "config.json").read_text())
        if facts["codec"]["codes_digest"] == codec.codes_digest and facts["vocab_size"] == bpe.vocab_size:
            return _nar(facts["transformer"], bpe.vocab_size, codec, stage / "model.safetensors"), stage.as_posix()
    return None


def refine(
    nar: NARModel,
    text: Int[Tensor, "b s"],
    text_lengths: Int[Tensor, "b"],
    prompts: list[Int[Tensor, "k _"]],
    first: list[Int[Tensor, "_"]],
) -> list[Int[Tensor, "k _"]]:
    """All codebooks of new speech whose first one is known."""
    rows = [
        torch.cat([prompt, torch.cat([one[None], one.new_zeros(len(prompt) - 1, len(one))])], 1)
        for prompt, one in zip(prompts, first, strict=True)
    ]
    codes, lengths = pad(rows, text.device)
    condition = torch.tensor([prompt.shape[1] for prompt in prompts], device=text.device)
    full = nar.generate(text, text_lengths, codes, lengths, condition)
    return [row[:, start:end] for row, start, end in zip(full, condition.tolist(), lengths.tolist(), strict=True)]


def _nar(shape: dict[str, Any], vocab_size: int, codec: CodecFacts, weights: Path) -> NARModel:
    nar = NARModel(TransformerShape(**shape), vocab_size, codec.num_codebooks, codec.codebook_size)
    nar.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return nar


def _sampling_of(warm_start: str) -> SamplingConfig:
    """The settings that the parent was evaluated with, else the usual ones."""
    path = Path(warm_start or "-") / "model.json"
    return (
        SamplingConfig.model_validate(json.loads(path.read_text())["sampling"]) if path.is_file() else SamplingConfig()
    )


def _vocab_size(weights: Mapping[str, Tensor]) -> int:
    return len(weights["text_embedding.weight"])
