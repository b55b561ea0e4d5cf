"""From text and a prompt to speech: AR loop, NAR passes, codec (VALL-E 2, arXiv:2406.05370, sections 3.3 and 3.4).

One utterance, a batch, a stream and a long text go through the same parts; every row has its own random numbers, so an
utterance does not depend on the batch that it is in. The AR loop is `valle2.decoding`'s, the folder that a model is
loaded from `valle2.model_folder`'s; which of several readings is best is `valle2.evaluation.best_of`'s.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from valle2.codec import Codec, load_codec
from valle2.config.sampling import SamplingConfig
from valle2.decoding import FinishReason, cut, decode_groups, generate_codes, pad
from valle2.errors import ModelError
from valle2.model.ar import ARModel
from valle2.model.grouping import clip_start
from valle2.model.inference import Weights, check_device, prepare
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel
from valle2.model.sampling import Sampling
from valle2.model_folder import read_facts
from valle2.text import Bpe, normalise, split_sentences
from valle2.types import Seconds
from valle2.vocoder import OWN, Decoder, load_decoder, own_decoder

CHUNK_SECONDS = (0.4, 3.2)
"""Length of a stream's first chunk, and of its longest; each is twice the one before it."""
LOOKAHEAD_SECONDS = 0.16
"""What a chunk's NAR passes see of the codes behind it."""
CODEC_CONTEXT_SECONDS = 2.0
"""What the codec hears again before each chunk, for its state; the convolutions need 0.1 s, the LSTM forgets."""
OVERLAP_SECONDS = 0.01
"""What a decoder that looks ahead says twice, at a chunk's end and again at the next one's start: one fades over into
the other."""
PAUSE_SECONDS = 0.25
"""Between the sentences of a long text."""
FADE_SECONDS = 0.01
"""At either end of a sentence of a long text, so that none begins or ends with a click."""
BATCH_SIZE, CPU_BATCH_SIZE = 64, 8
"""Utterances that are spoken at once; a CPU gains little from a ninth."""
PACE_SLACK = 1.5
"""How much slower than its prompt a text may be spoken when it is decided where a long text is split."""


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
        codes: RVQ codes of the waveform; of a long text those of its sentences, whose pauses have none.
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


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream; joined, the pieces are the whole utterance.

    Attributes:
        waveform: Mono at the model's sample rate.
        codes: RVQ codes of the waveform.
        finish_reason: Why the utterance ended; None on all chunks but the last.
    """

    waveform: Float[Tensor, "n"]
    codes: Int[Tensor, "k t"]
    finish_reason: FinishReason | None


class Synthesizer:
    """A voice model, loaded once, that speaks any number of utterances."""

    def __init__(
        self,
        ar: ARModel,
        nar: NARModel,
        bpe: Bpe,
        codec: Codec,
        sampling: SamplingConfig,
        decoder: Decoder | None = None,
    ) -> None:
        self.ar, self.nar, self.bpe, self.codec = ar.eval(), nar.eval(), bpe, codec
        self.decoder = decoder or own_decoder(codec)
        self.sampling = sampling
        """The settings that the model was evaluated with."""
        self.device = ar.separators.device
        self.batch_size = CPU_BATCH_SIZE if self.device.type == "cpu" else BATCH_SIZE
        """Utterances that are spoken at once; others wait, so that memory has a bound."""

    @property
    def sample_rate(self) -> int:
        """Of prompts and speech, Hz."""
        return self.codec.sample_rate

    @classmethod
    def from_registry(
        cls, name: str = "valle2@champion", device: str = "cpu", weights: Weights = "float32"
    ) -> "Synthesizer":
        """Load a registered model: `valle2@champion` or `valle2/3`; a folder will do, too.

        Raises:
            ModelError: There is no such model, or it is a champion without a valid promotion record.
        """
        from valle2.registry import resolve

        return cls.from_path(resolve(name).bundle, device, weights)

    @classmethod
    def from_path(cls, folder: Path, device: str = "cpu", weights: Weights = "float32") -> "Synthesizer":
        """Load a voice model folder.

        Args:
            folder: As `valle2 evaluate` makes it, or the registry holds it.
            device: torch device.
            weights: Precision that AR and NAR run with; docs/synthesis.md says what it costs and brings.

        Raises:
            ModelError: It is no such folder, its parts do not belong together, or there is no such device.
        """
        check_device(device)
        facts = read_facts(folder)
        codebook_size = facts.get("codebook_size", 1024)
        try:
            ar = ARModel(TransformerShape(**facts["ar"]), facts["vocab_size"], facts["group_size"], codebook_size)
            nar = NARModel(TransformerShape(**facts["nar"]), facts["vocab_size"], facts["num_codebooks"], codebook_size)
            sampling = SamplingConfig.model_validate(facts["sampling"])
        except (KeyError, TypeError, ValidationError) as error:
            raise ModelError(
                f"{folder / 'model.json'} does not describe a voice model ({' '.join(str(error).split())[:200]}); "
                "fetch it again"
            ) from error
        for name, model in (("ar", ar), ("nar", nar)):
            file = folder / f"{name}.safetensors"
            if not file.is_file():
                raise ModelError(f"voice model {folder} lacks {file.name}; fetch it again")
            try:
                stored = load_file(file)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} cannot be read ({error}); fetch it again") from error
            try:
                model.load_state_dict({key: value.float() for key, value in stored.items()})
            except RuntimeError as error:
                raise ModelError(f"{file} does not fit model.json: {' '.join(str(error).split())[:300]}") from error
            bad = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
            if bad:
                raise ModelError(f"{file} has numbers that are not finite, in {bad[0]}; fetch or train it again")
        own = folder / "codec"
        codec = load_codec(str(own) if own.is_dir() else facts["codec"]["name"], device)
        if codec.digest != facts["codec"]["digest"]:
            raise ModelError(
                f"voice model {folder} was trained on codes of codec {facts['codec']['digest'][:12]}, but "
                f"{facts['codec']['name']} is {codec.digest[:12]} here; use the model with the codec of its own"
            )
        wanted, vocos = facts.get("decoder", {"name": OWN}), folder / "vocos"
        decoder = load_decoder(str(vocos) if vocos.is_dir() else wanted["name"], codec, device)
        if decoder.name != OWN and decoder.digest != wanted["digest"]:
            raise ModelError(
                f"voice model {folder} was evaluated with decoder {wanted['digest'][:12]}, but {wanted['name']} is "
                f"{decoder.digest[:12]} here; use the model with the decoder of its own"
            )
        for model in (ar, nar):
            prepare(model.to(device).eval(), weights)
        return cls(ar, nar, Bpe.load(folder / "bpe.json"), codec, sampling, decoder)

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
    def synthesize_batch(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        on_frames: Callable[[int], None] | None = None,
    ) -> list[Synthesis]:
        """Speak several utterances; each sounds as it would alone.

        Args:
            requests: What to say and how; any number, of which `batch_size` are spoken at once, those of similar length
                together.
            sampling: Settings; by default those that the model was evaluated with.
            on_frames: Called as the AR model goes on, with the frames that rows which have not ended were given.

        Raises:
            ModelError: A text or prompt is empty or too long for the model; nothing has been spoken then.
        """
        tokens = [self._tokens(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda row: self.expected_seconds(requests[row]))
        spoken: dict[int, Synthesis] = {}
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            batch = [requests[row] for row in rows]
            found = self._speak([tokens[row] for row in rows], batch, sampling or self.sampling, on_frames)
            spoken |= zip(rows, found, strict=True)
        return [spoken[row] for row in range(len(requests))]

    def _speak(
        self,
        tokens: list[Tensor],
        requests: list[Request],
        sampling: SamplingConfig,
        on_frames: Callable[[int], None] | None,
    ) -> list[Synthesis]:
        times = [time.monotonic()]
        text, text_lengths = pad(tokens, self.device)
        prompts = [self._prompt_codes(request.prompt) for request in requests]
        times.append(time.monotonic())
        seeds = [request.seed for request in requests]
        spoken = generate_codes(self.ar, text, text_lengths, prompts, seeds, *self._limits(sampling), on_frames)
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

    def synthesize_long(
        self,
        request: Request,
        sampling: SamplingConfig | None = None,
        on_frames: Callable[[int], None] | None = None,
    ) -> Synthesis:
        """Say a text of any length; see `synthesize_texts`."""
        return self.synthesize_texts([request], sampling, on_frames)[0]

    def synthesize_texts(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        on_frames: Callable[[int], None] | None = None,
    ) -> list[Synthesis]:
        """Say texts of any length: sentence by sentence, all as one batch, with pauses between them.

        Args:
            requests: As for `synthesize_batch`; the sentences' seeds count up from their request's.
            sampling: Settings; by default those that the model was evaluated with.
            on_frames: As for `synthesize_batch`.

        Returns:
            The wholes; one ended with `cap` if any of its sentences did.

        Raises:
            ModelError: A text or prompt is empty, or a single word is too long for the model.
        """
        texts = [self.sentences(request) for request in requests]
        spoken = iter(self.synthesize_batch([part for text in texts for part in text], sampling, on_frames))
        return [join_spoken(list(islice(spoken, len(text))), self.sample_rate) for text in texts]

    def pieces(self, request: Request) -> list[Request]:
        """The request itself where the model reads its text at once, else its sentences."""
        tokens = self._num_tokens(request.prompt_text) + self._num_tokens(request.text)
        return [request] if tokens <= self._text_limit else self.sentences(request)

    def sentences(self, request: Request) -> list[Request]:
        """A request for each piece that `split` makes of its text, with seeds that count up."""
        return [replace(request, text=text, seed=request.seed + i) for i, text in enumerate(self.split(request))]

    def split(self, request: Request) -> list[str]:
        """The sentences of a request's text, longer ones at their commas and blanks, that the model reads at once.

        A piece is short enough in tokens, and in time: at two thirds of the prompt's pace it ends before the cap that
        the model was evaluated with.
        """
        prompt_tokens, prompt_frames = self._num_tokens(request.prompt_text), self._num_frames(request.prompt)
        cap = self.sampling.max_seconds * self.codec.frame_rate
        cap = min(cap, self.ar.shape.max_frames - prompt_frames, self.nar.shape.max_frames - prompt_frames)
        room = self._text_limit - prompt_tokens
        if prompt_tokens:
            room = min(room, int(cap * prompt_tokens / (PACE_SLACK * max(prompt_frames, 1))))

        def fits(text: str) -> bool:
            return self._num_tokens(text) <= max(room, 1)

        pieces = [piece for piece in split_sentences(request.text, fits) if normalise(piece)]
        return pieces or [request.text]

    def expected_seconds(self, request: Request) -> Seconds:
        """How long a text will take at its prompt's pace; a guess, for progress only."""
        tokens = max(self._num_tokens(request.prompt_text), 1)
        return self._num_tokens(request.text) / tokens * len(request.prompt) / self.sample_rate

    def _num_tokens(self, text: str) -> int:
        return len(self.bpe.encode(normalise(text)))

    def _num_frames(self, prompt: Float[Tensor, "n"]) -> int:
        return -(-len(prompt) // self.codec.hop_length)

    @torch.inference_mode()
    def stream(
        self,
        request: Request,
        sampling: SamplingConfig | None = None,
        chunk_seconds: tuple[Seconds, Seconds] = CHUNK_SECONDS,
    ) -> Iterator[Chunk]:
        """Speak while still thinking: codebook 0 is what `synthesize` would give, chunk by chunk.

        The NAR model sees each chunk behind the prompt and all chunks before it, and little of what follows, so
        codebooks 1..7 are not quite those that it gives to a whole utterance (docs/synthesis.md says how much worse).

        Args:
            request: As for `synthesize_batch`.
            sampling: Settings; by default those that the model was evaluated with.
            chunk_seconds: Length of the first chunk and of the longest; each is twice the one before it.

        Yields:
            Chunks, the last of them with a `finish_reason`.

        Raises:
            ModelError: As for `synthesize_batch`.
        """
        sampling = sampling or self.sampling
        text, text_lengths = pad([self._tokens(request)], self.device)
        prompt = self._prompt_codes(request.prompt)
        rate = float(self.codec.frame_rate)
        lookahead, size = round(LOOKAHEAD_SECONDS * rate), round(chunk_seconds[0] * rate)
        done, heard, tail = prompt, prompt[0, :0], torch.zeros(0, device=self.device)
        groups = decode_groups(self.ar, text, text_lengths, [prompt], [request.seed], *self._limits(sampling))
        for group, (reason,) in groups:
            heard = torch.cat([heard, group[0]])
            if reason is None and len(heard) < size + lookahead:
                continue
            heard = cut(heard, self.ar.eos) if reason else heard
            refined = self._refine(text, text_lengths, [done], [heard])[0]
            new = refined[:, : None if reason else size]
            ahead = refined[:, new.shape[1] : new.shape[1] + self.decoder.context]
            decoded = self._decode(done, torch.cat([new, ahead], 1), round(CODEC_CONTEXT_SECONDS * rate))
            end = new.shape[1] * self.codec.hop_length
            waveform, tail = (
                fade_over(tail, decoded[:end]),
                decoded[end : end + round(OVERLAP_SECONDS * self.sample_rate)],
            )
            yield Chunk(waveform, new, reason)
            done, heard = torch.cat([done, new], 1), heard[new.shape[1] :]
            size = min(2 * size, round(chunk_seconds[1] * rate))

    @property
    def _text_limit(self) -> int:
        return min(self.ar.shape.max_text_tokens, self.nar.shape.max_text_tokens)

    def _limits(self, sampling: SamplingConfig) -> tuple[Sampling, int]:
        """Settings of the draws, and the cap in frames."""
        draws = Sampling(**sampling.model_dump(exclude={"max_seconds"}))
        return draws, round(sampling.max_seconds * self.codec.frame_rate)

    def _tokens(self, request: Request) -> Tensor:
        """Transcript of the prompt, then the text (3.4)."""
        spoken = [normalise(part) for part in (request.prompt_text, request.text)]
        if not spoken[1]:
            raise ModelError(f"nothing to say: the text {request.text!r} has no letters")
        tokens = self.bpe.encode(" ".join(part for part in spoken if part))
        if len(tokens) > self._text_limit:
            raise ModelError(
                f"prompt text and text are {len(tokens)} tokens, the model reads {self._text_limit}; split the text "
                "into sentences"
            )
        return torch.tensor(tokens)

    def _prompt_codes(self, prompt: Float[Tensor, "n"]) -> Int[Tensor, "k t"]:
        """The prompt's codes, whole groups."""
        if not len(prompt):
            raise ModelError("the prompt is empty; give a few seconds of the voice")
        codes = clip_start(self.codec.encode(prompt[None].to(self.device))[0], self.ar.group_size)
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
        codes, lengths = pad(rows, self.device)
        condition = torch.tensor([prompt.shape[1] for prompt in prompts], device=self.device)
        full = self.nar.generate(text, text_lengths, codes, lengths, condition)
        return [row[:, start:end] for row, start, end in zip(full, condition.tolist(), lengths.tolist(), strict=True)]

    def _decode(
        self, before: Int[Tensor, "k t"], new: Int[Tensor, "k u"], context: int | None = None
    ) -> Float[Tensor, "n"]:
        """The new codes' waveform; what came before goes in front for the codec's state, and is cut off again."""
        if not new.shape[1]:
            return torch.zeros(0, device=new.device)
        before = before if context is None else before[:, -context:]
        waveform = self.decoder.decode(torch.cat([before, new], 1)[None])[0]
        return waveform[before.shape[1] * self.codec.hop_length :]


def fade_over(tail: Float[Tensor, "m"], waveform: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """A waveform whose first samples come, less and less, from what was expected of them."""
    size = min(len(tail), len(waveform))
    share = torch.linspace(0, 1, size + 2, device=waveform.device)[1:-1]
    return torch.cat([tail[:size] * (1 - share) + waveform[:size] * share, waveform[size:]])


def join_spoken(parts: Sequence[Synthesis], sample_rate: int) -> Synthesis:
    """Put sentences behind each other with a pause between them, each faded in and out.

    Returns:
        The whole; it ended with `cap` if any sentence did. A single sentence is left as it is.
    """
    if len(parts) == 1:
        return parts[0]
    pause, joined = torch.zeros(round(PAUSE_SECONDS * sample_rate)), []
    for part in parts:
        waveform = part.waveform.cpu().clone()
        length = min(round(FADE_SECONDS * sample_rate), len(waveform) // 2)
        ramp = torch.linspace(0, 1, length)
        waveform[:length] *= ramp
        waveform[len(waveform) - length :] *= ramp.flip(0)
        joined += [pause, waveform]
    return Synthesis(
        torch.cat(joined[1:]),
        torch.cat([part.codes for part in parts], 1),
        "cap" if any(part.finish_reason == "cap" for part in parts) else "eos",
        sum(part.num_groups for part in parts),
        parts[0].seconds_per_stage,
    )
