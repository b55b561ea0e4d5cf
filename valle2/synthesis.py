"""From text and a prompt to speech: prefill, decode group by group, seven NAR passes, codec (VALL-E 2,
arXiv:2406.05370, sections 3.3 and 3.4).

One path serves one utterance and many: every row has its own random numbers, so an utterance does not depend on the
batch that it is in. The sampling itself is in `valle2.model.sampling`; the folder format is written here and nowhere
else.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from valle2.bundled import bundled
from valle2.codec import Codec, load_codec
from valle2.config.sampling import SamplingConfig
from valle2.errors import ModelError
from valle2.model.ar import ARModel
from valle2.model.grouping import clip_start
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel
from valle2.model.sampling import Sampling, sample_group
from valle2.stage import write_json
from valle2.text import Bpe, normalise
from valle2.types import Seconds

FORMAT = 1
"""Version of the voice model folder."""

FinishReason = Literal["eos", "cap"]


@dataclass(frozen=True)
class Request:
    """One utterance to speak.

    Attributes:
        text: What to say.
        prompt: A few seconds of the voice, mono at the model's sample rate, in [-1, 1].
        prompt_text: What the prompt says.
        seed: Of this utterance's random draws.
    """

    text: str
    prompt: Float[Tensor, "n"]
    prompt_text: str
    seed: int = 0


@dataclass(frozen=True)
class Synthesis:
    """What was spoken, without the prompt.

    Attributes:
        waveform: Mono at the model's sample rate.
        codes: RVQ codes of the waveform.
        finish_reason: `eos`: the model ended it; `cap`: it was stopped at `max_seconds` or at the end of the position
            table.
        num_groups: AR steps taken, the one that ended it included.
        seconds_per_stage: Wall time of `prompt`, `ar`, `nar` and `codec`, of the whole batch.
    """

    waveform: Float[Tensor, "n"]
    codes: Int[Tensor, "k t"]
    finish_reason: FinishReason
    num_groups: int
    seconds_per_stage: dict[str, Seconds] = field(default_factory=dict, compare=False)


class Synthesizer:
    """A voice model, loaded once, that speaks any number of utterances."""

    def __init__(self, ar: ARModel, nar: NARModel, bpe: Bpe, codec: Codec, sampling: SamplingConfig) -> None:
        self.ar, self.nar, self.bpe, self.codec = ar.eval(), nar.eval(), bpe, codec
        self.sampling = sampling
        """The settings that the model was evaluated with."""
        self.device = next(ar.parameters()).device

    @property
    def sample_rate(self) -> int:
        """Of prompts and speech, Hz."""
        return self.codec.sample_rate

    @classmethod
    def from_path(cls, folder: Path, device: str = "cpu") -> "Synthesizer":
        """Load a voice model folder.

        Raises:
            ModelError: It is no such folder, or its parts do not belong together.
        """
        facts = _read_facts(folder)
        codebook_size = facts.get("codebook_size", 1024)
        ar = ARModel(TransformerShape(**facts["ar"]), facts["vocab_size"], facts["group_size"], codebook_size)
        nar = NARModel(TransformerShape(**facts["nar"]), facts["vocab_size"], facts["num_codebooks"], codebook_size)
        for name, model in (("ar", ar), ("nar", nar)):
            weights = folder / f"{name}.safetensors"
            if not weights.is_file():
                raise ModelError(f"voice model {folder} lacks {weights.name}; fetch it again")
            try:
                model.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
            except RuntimeError as error:
                raise ModelError(f"{weights} does not fit model.json: {' '.join(str(error).split())[:300]}") from error
        own = folder / "codec"
        codec = load_codec(str(own) if own.is_dir() else facts["codec"]["name"], device)
        if codec.digest != facts["codec"]["digest"]:
            raise ModelError(
                f"voice model {folder} was trained on codes of codec {facts['codec']['digest'][:12]}, but "
                f"{facts['codec']['name']} is {codec.digest[:12]} here; use the model with the codec of its own"
            )
        sampling = SamplingConfig.model_validate(facts["sampling"])
        return cls(ar.to(device), nar.to(device), Bpe.load(folder / "bpe.json"), codec, sampling)

    def synthesize(
        self,
        text: str,
        prompt: Float[Tensor, "n"],
        prompt_text: str,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> Synthesis:
        """Say `text` in the voice of `prompt`; see `Request`."""
        return self.synthesize_batch([Request(text, prompt, prompt_text, seed)], sampling)[0]

    @torch.inference_mode()
    def synthesize_batch(self, requests: Sequence[Request], sampling: SamplingConfig | None = None) -> list[Synthesis]:
        """Speak several utterances at once; each sounds as it would alone.

        Args:
            requests: What to say and how.
            sampling: Settings; by default those that the model was evaluated with.

        Raises:
            ModelError: A text or prompt is empty or too long for the model.
        """
        if not requests:
            return []
        sampling = sampling or self.sampling
        times = [time.monotonic()]
        text, text_lengths = _pad([self._tokens(request) for request in requests], self.device)
        prompts = [self._prompt_codes(request) for request in requests]
        times.append(time.monotonic())
        seeds = [request.seed for request in requests]
        spoken = generate_codes(self.ar, text, text_lengths, prompts, seeds, sampling, float(self.codec.frame_rate))
        times.append(time.monotonic())
        codes = self._refine(text, text_lengths, prompts, [one for one, _, _ in spoken])
        times.append(time.monotonic())
        waveforms = [self._decode(prompt, new) for prompt, new in zip(prompts, codes, strict=True)]
        times.append(time.monotonic())
        names = ("prompt", "ar", "nar", "codec")
        seconds = {name: times[i + 1] - times[i] for i, name in enumerate(names)}
        return [
            Synthesis(waveform, new, reason, num_groups, seconds)
            for waveform, new, (_, reason, num_groups) in zip(waveforms, codes, spoken, strict=True)
        ]

    def _tokens(self, request: Request) -> Tensor:
        """Transcript of the prompt, then the text (3.4)."""
        spoken = [normalise(part) for part in (request.prompt_text, request.text)]
        if not spoken[1]:
            raise ModelError(f"nothing to say: the text {request.text!r} has no letters")
        tokens = self.bpe.encode(" ".join(part for part in spoken if part))
        limit = min(self.ar.shape.max_text_tokens, self.nar.shape.max_text_tokens)
        if len(tokens) > limit:
            raise ModelError(
                f"prompt text and text are {len(tokens)} tokens, the model reads {limit}; split the text into sentences"
            )
        return torch.tensor(tokens)

    def _prompt_codes(self, request: Request) -> Int[Tensor, "k t"]:
        """The prompt's codes, whole groups."""
        if not len(request.prompt):
            raise ModelError("the prompt is empty; give a few seconds of the voice")
        codes = clip_start(self.codec.encode(request.prompt[None].to(self.device))[0], self.ar.group_size)
        limit = min(self.ar.shape.max_frames, self.nar.shape.max_frames) - self.ar.group_size
        if codes.shape[1] > limit:
            raise ModelError(
                f"the prompt lasts {codes.shape[1] / self.codec.frame_rate:.1f} s, the model reads "
                f"{limit / self.codec.frame_rate:.1f} s, prompt and speech together; cut it to about 3 s"
            )
        return codes

    def _refine(
        self, text: Tensor, text_lengths: Tensor, prompts: list[Tensor], new: list[Tensor]
    ) -> list[Int[Tensor, "k _"]]:
        """Codebooks 1..7 of the new frames."""
        rows = [
            torch.cat([prompt, torch.cat([one[None], one.new_zeros(len(prompt) - 1, len(one))])], 1)
            for prompt, one in zip(prompts, new, strict=True)
        ]
        codes, lengths = _pad(rows, self.device)
        condition = torch.tensor([prompt.shape[1] for prompt in prompts], device=self.device)
        full = self.nar.generate(text, text_lengths, codes, lengths, condition)
        return [row[:, start:end] for row, start, end in zip(full, condition.tolist(), lengths.tolist(), strict=True)]

    def _decode(self, prompt: Int[Tensor, "k t"], new: Int[Tensor, "k u"]) -> Float[Tensor, "n"]:
        """The new codes' waveform; the prompt goes in front for the codec's state, and is cut off again."""
        waveform = self.codec.decode(torch.cat([prompt, new], 1)[None])[0]
        return waveform[prompt.shape[1] * self.codec.hop_length :]


def generate_codes(
    ar: ARModel,
    text: Int[Tensor, "b s"],
    text_lengths: Int[Tensor, "b"],
    prompts: list[Int[Tensor, "k _"]],
    seeds: list[int],
    settings: SamplingConfig,
    frame_rate: float,
) -> list[tuple[Int[Tensor, "_"], FinishReason, int]]:
    """Codebook 0 of the new speech, group by group, with a key-value cache (3.3.1, Algorithm 1).

    Returns:
        For each row the codes before the first EOS, why it ended, and the AR steps taken.
    """
    sampling, size, device = _sampling(settings), ar.group_size, text.device
    codes, lengths = _pad([prompt[0] for prompt in prompts], device)
    caps = (ar.shape.max_frames // size - lengths // size).clamp(
        max=-(-round(settings.max_seconds * frame_rate) // size)
    )
    logits, cache = ar.prefill(text, text_lengths, codes, lengths, int(caps.max()))
    history = torch.full((len(seeds), max(sampling.ras_window, 1)), -1, device=device)
    for row, prompt in enumerate(prompts):
        tail = prompt[0, -history.shape[1] :]
        history[row, history.shape[1] - len(tail) :] = tail
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    groups: list[Tensor] = []
    ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)
    while True:
        uniforms = torch.stack([torch.rand(size, 2, generator=generator) for generator in generators]).to(device)
        group, history = sample_group(logits, history, uniforms, sampling, ar.eos)
        groups.append(group)
        ended |= (group == ar.eos).any(1) | (len(groups) >= caps)
        if bool(ended.all()):
            break
        # Rows that have ended go on with anything, within the tables; nothing of it is kept.
        position = (lengths // size + len(groups) - 1).clamp(max=ar.shape.max_frames // size - 1)
        logits = ar.decode_one_group(group.clamp(max=ar.eos - 1), position, cache)
    stream = torch.cat(groups, 1)
    return [_cut(row[: cap * size], ar.eos, size) for row, cap in zip(stream, caps.tolist(), strict=True)]


def write_bundle(
    folder: Path,
    *,
    ar_dir: Path,
    nar_dir: Path,
    bpe: Path,
    codec_name: str,
    sampling: SamplingConfig,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a voice model folder from the two training outputs.

    Args:
        folder: Where; what is there is replaced.
        ar_dir: Output of train-ar.
        nar_dir: Output of train-nar.
        bpe: The text tokenizer's `bpe.json`.
        codec_name: As in `tokenize.codec`; unless it is a published one, its files are copied in.
        sampling: Settings that the model is to be used with.
        dtype: Of the stored weights; they are loaded as fp32.

    Raises:
        ModelError: The two models were trained on different codes or vocabularies.
    """
    facts = {kind: json.loads((path / "config.json").read_text()) for kind, path in (("ar", ar_dir), ("nar", nar_dir))}
    for name in ("codec", "vocab_size"):
        if facts["ar"][name] != facts["nar"][name]:
            raise ModelError(
                f"AR and NAR do not belong together: {name} is {facts['ar'][name]} there and {facts['nar'][name]} "
                "here; run `dvc repro` so that both are of the same data"
            )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for kind, path in (("ar", ar_dir), ("nar", nar_dir)):
        weights = load_file(path / "model.safetensors")
        save_file({key: value.to(dtype) for key, value in weights.items()}, folder / f"{kind}.safetensors")
    shutil.copyfile(bpe, folder / "bpe.json")
    source = bundled("encodec") if codec_name == "bundled" else Path(codec_name)
    if source.is_dir():
        (folder / "codec").mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(source / name, folder / "codec" / name)
    codec = facts["ar"]["codec"]
    write_json(folder / "model.json", {
        "format": FORMAT,
        "group_size": facts["ar"]["group_size"],
        "ar": facts["ar"]["transformer"],
        "nar": facts["nar"]["transformer"],
        "vocab_size": facts["ar"]["vocab_size"],
        "codec": {name: codec[name] for name in ("name", "digest", "codes_digest")},
        **{name: codec[name] for name in ("sample_rate", "frame_rate", "num_codebooks", "codebook_size")},
        "sampling": sampling.model_dump(),
    })  # fmt: skip


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        raise ModelError(f"{folder} is no voice model: it has no model.json; name the folder of a registered model")
    facts: dict[str, Any] = json.loads(path.read_text())
    if facts.get("format") != FORMAT:
        raise ModelError(f"{path} is of format {facts.get('format')}, this version reads {FORMAT}; update valle2")
    return facts


def _sampling(settings: SamplingConfig) -> Sampling:
    return Sampling(**settings.model_dump(exclude={"max_seconds"}))


def _cut(codes: Int[Tensor, "t"], eos: int, group_size: int) -> tuple[Int[Tensor, "u"], FinishReason, int]:
    """What comes before the first EOS, in whatever slot it is."""
    ends = (codes == eos).nonzero()[:, 0].tolist()
    if not ends:
        return codes, "cap", len(codes) // group_size
    return codes[: ends[0]], "eos", ends[0] // group_size + 1


def _pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Int[Tensor, "b"]]:
    """Stack tensors that differ in their last axis, with zeros on the right."""
    lengths = torch.tensor([row.shape[-1] for row in rows], device=device)
    padded = torch.zeros(len(rows), *rows[0].shape[:-1], int(lengths.max()), dtype=torch.long, device=device)
    for place, row in zip(padded, rows, strict=True):
        place[..., : row.shape[-1]] = row
    return padded, lengths
