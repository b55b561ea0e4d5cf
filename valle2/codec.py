"""EnCodec: waveform to codes and back. The only importer of the encodec package.

Three kinds of weights give the same `Codec`: the small ones bundled under `demo/models/encodec`, the genuine
`encodec_24khz`, and a folder or file of either format. What is done with codes starts in `valle2.corpus.tokenizer`.
"""

import hashlib
import pickle
import urllib.error
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from encodec.model import EncodecModel
from encodec.modules import SConv1d, SEANetDecoder, SEANetEncoder
from encodec.modules.seanet import SEANetResnetBlock
from encodec.quantization import ResidualVectorQuantizer
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from valle2.errors import CodecError
from valle2.stage import file_sha256

BUNDLED = Path(__file__).parents[1] / "demo" / "models" / "encodec"
GENUINE = "encodec_24khz"
_GENUINE_FILE = "encodec_24khz-d7cc33bc.th"
_BANDWIDTH = 6.0
"""kbps; eight codebooks of ten bits at 75 Hz, the paper's setting (VALL-E 2, section 4.1.1)."""
_TOGETHER, _SHORT = 16, 8
"""Utterances that are encoded together, and frames below which one goes alone: the last convolution, which pads its
start with a reflection, would reflect what is not its own."""
_PIECE, _STEP = 128, 16
"""Frames that the strided convolutions see at a time (more fall out of the processor's cache), and what the last piece
is filled up to a multiple of: for each new shape a convolution is planned anew."""
_LATENT_ROUNDING, _DISTANCE_ROUNDING = 7e-7, 4 * 2**-24
"""How far encoding together moves the difference of two distances, beside the package's: for the latent, as a share of
its length, and for the distances, of the squares that they are made of. 2.7 million codes of speech and noise, of a
trained codec and of the genuine shape, stayed within 7e-7 and 3.4 * 2**-24."""


class Architecture(BaseModel):
    """Shape of an EnCodec of our own training; `config.json` of a weights folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "encodec-demo"
    sample_rate: int = 24_000
    encoder_filters: int = 8
    decoder_filters: int = 16
    ratios: tuple[int, ...] = (2, 4, 5, 8)
    """Decoder strides; the encoder takes them backwards. Large encoder strides first leave little work at full rate."""
    dimension: int = 128
    num_lstm_layers: int = 1
    num_residual_layers: int = 1
    num_codebooks: int = 8
    codebook_size: int = 1024
    bandwidth: float = _BANDWIDTH
    """kbps with all codebooks on."""


class Codec:
    """A loaded EnCodec; inference only, its weights and codebooks never change.

    Attributes:
        name: What `load_codec` was asked for.
        sample_rate: Of the waveforms, Hz.
        frame_rate: Frames of codes per second.
        hop_length: Waveform samples per frame.
        num_codebooks: Codes per frame, K.
        codebook_size: Codes lie in [0, codebook_size).
        digest: SHA-256 of the weights file.
        codes_digest: SHA-256 of what makes the codes, encoder and codebook entries. Codecs that share it differ in how
            they decode; models trained on the codes of one read those of the other.
    """

    def __init__(self, model: EncodecModel, name: str, digest: str, device: str = "cpu") -> None:
        self._device = device
        self.name = name
        self.digest = digest
        self.codes_digest = _codes_digest(model)
        self._model = model.to(device).eval()
        self._convolutions, self._recurrence = _halves(model.encoder.model)
        self.sample_rate: int = model.sample_rate
        self.frame_rate: int = model.frame_rate
        self.hop_length = int(model.encoder.hop_length)
        self._pieces = _Pieces(self._convolutions, self.hop_length)
        quantizer = model.quantizer
        self.num_codebooks: int = quantizer.get_num_quantizers_for_bandwidth(model.frame_rate, model.bandwidth)
        self.codebook_size: int = quantizer.bins

    @torch.inference_mode()
    def encode(
        self, waveform: Float[Tensor, "b n"], num_samples: Int[Tensor, " b"] | None = None
    ) -> Int[Tensor, "b k t"]:
        """Waveforms to codes, those that the package finds for each utterance alone.

        Utterances of similar length are encoded together: the strided convolutions take them end to end, in pieces of
        equal length; the LSTM, which reads all its weights at every frame, and the codebooks take them side by side.
        All are causal, so a row's company changes nothing but the last bits; where these could decide between two
        entries, the utterance is done again alone.

        Args:
            waveform: Mono at `sample_rate`, in [-1, 1].
            num_samples: Valid samples of each; without it, all.

        Returns:
            Codes on the waveform's device; t is the longest ceil(num_samples / hop_length), shorter rows end in zeros.

        Raises:
            CodecError: an utterance is empty or longer than its row.
        """
        lengths = [waveform.shape[1]] * len(waveform) if num_samples is None else [int(n) for n in num_samples]
        if not lengths or min(lengths) < 1 or max(lengths) > waveform.shape[1]:
            raise CodecError(
                f"Found num_samples {lengths} for waveforms of shape {tuple(waveform.shape)}; "
                "expected 1 to n for each: drop empty utterances before encoding."
            )
        num_frames = -(-max(lengths) // self.hop_length)
        codes = torch.zeros(len(lengths), self.num_codebooks, num_frames, dtype=torch.long, device=waveform.device)
        for rows in _buckets(lengths, max(_SHORT, self._pieces.context) * self.hop_length):
            waves = [waveform[row, : lengths[row]].to(self._device) for row in rows]
            found = [self._alone(waves[0])] if len(rows) == 1 else self._together(waves)
            for row, own in zip(rows, found, strict=True):
                codes[row, :, : own.shape[1]] = own
        return codes

    def _alone(self, wave: Float[Tensor, " n"]) -> Int[Tensor, "k t"]:
        """Codes by the package's own layers, one after the other."""
        latents = self._recurrence(self._convolutions(wave[None, None]))
        found: Tensor = self._model.quantizer.encode(latents, self.frame_rate, self._model.bandwidth)
        return found[:, 0]

    def _together(self, waves: list[Tensor]) -> Iterator[Int[Tensor, "k t"]]:
        """Codes of several utterances, each at least as long as the context of a piece."""
        frames = self._frames(waves)
        padded = nn.utils.rnn.pad_sequence(frames, batch_first=True).transpose(1, 2)
        for wave, own, entries, doubtful in zip(waves, frames, *self._nearest(self._recurrence(padded)), strict=True):
            yield self._alone(wave) if doubtful[: len(own)].any() else entries[:, : len(own)]

    def _frames(self, waves: list[Tensor]) -> list[Float[Tensor, "t c"]]:
        """What the strided convolutions make of each utterance.

        Its first frames, before which they pad with a reflection, are done beside those of others; a last frame that is
        not whole, behind which they do, is done by itself.
        """
        hop, context = self.hop_length, self._pieces.context
        whole = [len(wave) // hop for wave in waves]
        starts = self._convolutions(torch.stack([wave[: context * hop] for wave in waves])[:, None]).transpose(1, 2)
        inner = self._pieces(torch.cat([wave[: n * hop] for wave, n in zip(waves, whole, strict=True)])).split(whole)
        ends = [
            self._convolutions(wave[None, None, (n - context) * hop :])[0].T if len(wave) > n * hop else starts[0]
            for wave, n in zip(waves, whole, strict=True)
        ]
        return [
            torch.cat([start, own[context:], end[context:]])
            for start, own, end in zip(starts, inner, ends, strict=True)
        ]

    def _nearest(self, latents: Float[Tensor, "b d t"]) -> tuple[Int[Tensor, "b k t"], Bool[Tensor, "b t"]]:
        """The entries nearest to latents, and where others are as near, within what rounding changes."""
        residual = latents.transpose(1, 2).flatten(0, 1)
        rounding = 2 * _LATENT_ROUNDING * residual.norm(dim=-1)
        codes, doubtful = [], torch.zeros_like(rounding, dtype=torch.bool)
        for layer in self._model.quantizer.vq.layers[: self.num_codebooks]:
            entries = layer._codebook.embed
            sizes = entries.square().sum(1)
            nearest = torch.addmm(sizes, residual, entries.T, alpha=-2).topk(2, largest=False)
            first, second = nearest.indices.unbind(-1)
            squares = residual.square().sum(1) + sizes[first] + sizes[second]
            apart = (entries[first] - entries[second]).norm(dim=-1)
            doubtful |= nearest.values.diff(dim=-1)[:, 0] <= rounding * apart + _DISTANCE_ROUNDING * squares
            codes.append(first)
            residual = residual - entries[first]
        shape = latents.shape[0], latents.shape[2]
        return torch.stack([found.view(shape) for found in codes], 1), doubtful.view(shape)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "b k t"]) -> Float[Tensor, "b n"]:
        """Codes to waveforms of hop_length samples a frame.

        Args:
            codes: Indices in [0, codebook_size); the first K codebooks alone are a coarser waveform.

        Raises:
            CodecError: codes are out of range, or there are too many codebooks or no frame.
        """
        num_codebooks, num_frames = codes.shape[1:]
        if not 1 <= num_codebooks <= self.num_codebooks or num_frames < 1:
            raise CodecError(
                f"Found codes of shape {tuple(codes.shape)}; expected 1 to {self.num_codebooks} codebooks and at least "
                "one frame: decode with the codec that encoded."
            )
        if int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size:
            raise CodecError(
                f"Found codes from {int(codes.min())} to {int(codes.max())}; expected 0 to {self.codebook_size - 1}: "
                "cut special tokens such as the end of sequence before decoding."
            )
        waveform: Tensor = self._model.decode([(codes.long().to(self._device), None)])
        return waveform[:, 0, : num_frames * self.hop_length].to(codes.device)


class _Pieces:
    """The strided convolutions of an encoder over one long waveform, a piece at a time.

    A piece brings the samples that its first frame depends on, so that nothing is padded, and has its channels last, so
    that nothing is copied.

    Attributes:
        context: Frames before a frame that it depends on.
    """

    def __init__(self, layers: nn.Sequential, hop_length: int) -> None:
        self._layers, self._hop_length = layers, hop_length
        convolutions = [layer for layer in layers.modules() if isinstance(layer, nn.Conv1d)]
        self._weights = {convolution: _channels_last(convolution) for convolution in convolutions}
        rate, samples = 1, 0
        for convolution in convolutions:
            samples += rate * _lookback(convolution)
            rate *= convolution.stride[0]
        self.context = -(-samples // hop_length)

    def __call__(self, waveform: Float[Tensor, " n"]) -> Float[Tensor, "t c"]:
        """Frames of whole hops; before the first is silence."""
        hop, context = self._hop_length, self.context
        padded = nn.functional.pad(waveform, (context * hop, -len(waveform) % (_STEP * hop)))[:, None]
        frames = []
        for first in range(0, len(waveform) // hop, _PIECE):
            found, start = self._run(self._layers, padded[first * hop : (first + context + _PIECE) * hop], 0)
            frames.append(found[context - start :])
        return torch.cat(frames)[: len(waveform) // hop]

    def _run(self, layers: Iterable[nn.Module], x: Float[Tensor, "n c"], start: int) -> tuple[Tensor, int]:
        """What layers make of places `start` and on; returns it with its own first place, the waveform's being 0."""
        for layer in layers:
            if isinstance(layer, SEANetResnetBlock):
                inner, behind = self._run(layer.block, x, start)
                shortcut, _ = self._run([layer.shortcut], x[behind - start :], behind)
                x, start = inner.add_(shortcut), behind
            elif isinstance(layer, SConv1d):
                convolution = next(part for part in layer.modules() if isinstance(part, nn.Conv1d))
                (stride,), lookback = convolution.stride, _lookback(convolution)
                behind = -(-(start + lookback) // stride)
                image = x[behind * stride - lookback - start :].view(1, 1, -1, x.shape[1]).permute(0, 3, 1, 2)
                weight, dilation = self._weights[convolution], (1, *convolution.dilation)
                found = nn.functional.conv2d(image, weight, convolution.bias, (1, stride), dilation=dilation)
                x, start = found.permute(0, 2, 3, 1)[0, 0], behind
            else:
                x = layer(x)
        return x, start


def load_codec(name: str, device: str = "cpu") -> Codec:
    """Load a codec.

    Args:
        name: `bundled`; `encodec_24khz`, which the encodec package fetches once; a folder of `save_encodec`; or a
            genuine `encodec_24khz-*.th` file.
        device: torch device it runs on.

    Raises:
        CodecError: there are no such weights, or they are of another shape.
    """
    if name == GENUINE:
        return Codec(*_fetch_genuine(), device=device)
    path = BUNDLED if name == "bundled" else Path(name)
    if (path / "config.json").is_file():
        return Codec(_read_folder(path), name, file_sha256(path / "model.safetensors"), device)
    if path.is_file():
        return Codec(_read_genuine(path), name, file_sha256(path), device)
    raise CodecError(
        f"Found no codec at {path}; expected a folder with config.json and model.safetensors, or an encodec_24khz-*.th "
        f"file: set tokenize.codec to `bundled`, `{GENUINE}` or such a path."
    )


def build_encodec(architecture: Architecture) -> EncodecModel:
    """An EnCodec of the package's own modules with fresh weights, in training mode.

    Dead-code replacement is off: with small batches it would copy the batch into the codebooks.
    """
    shape: dict[str, Any] = {
        "dimension": architecture.dimension,
        "ratios": list(architecture.ratios),
        "n_residual_layers": architecture.num_residual_layers,
        "lstm": architecture.num_lstm_layers,
        "norm": "weight_norm",
        "causal": True,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
        encoder = SEANetEncoder(n_filters=architecture.encoder_filters, **shape)
        decoder = SEANetDecoder(n_filters=architecture.decoder_filters, **shape)
    quantizer = ResidualVectorQuantizer(
        dimension=architecture.dimension,
        n_q=architecture.num_codebooks,
        bins=architecture.codebook_size,
        threshold_ema_dead_code=0,
    )
    rate = architecture.sample_rate
    model = EncodecModel(encoder, decoder, quantizer, [architecture.bandwidth], rate, 1, name=architecture.name)
    model.set_target_bandwidth(architecture.bandwidth)
    return model


def save_encodec(model: EncodecModel, architecture: Architecture, folder: Path) -> None:
    """Write weights (float16) and shape as `load_codec` reads them; each file appears whole.

    The running means of codebook training are left out: they follow from the entries and their counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() for key, value in model.state_dict().items() if not key.endswith("embed_avg")}
    weights, config = folder / "model.safetensors.tmp", folder / "config.json.tmp"
    save_file(state, weights)
    weights.chmod(0o644)
    config.write_text(architecture.model_dump_json(indent=2) + "\n")
    weights.replace(folder / "model.safetensors")
    config.replace(folder / "config.json")


def _halves(encoder: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """The strided convolutions, and what follows at the frame rate: LSTM and a last convolution."""
    layers = list(encoder)
    convolutions = [[part for part in layer.modules() if isinstance(part, nn.Conv1d)] for layer in layers]
    strides = [max((part.stride[0] for part in parts), default=1) for parts in convolutions]
    first = max(place for place, stride in enumerate(strides) if stride > 1) + 1
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def _lookback(convolution: nn.Conv1d) -> int:
    """Places before the first of its own stride that a causal convolution reads."""
    return (convolution.kernel_size[0] - 1) * convolution.dilation[0] + 1 - convolution.stride[0]


def _channels_last(convolution: nn.Conv1d) -> Float[Tensor, "c_out c_in 1 k"]:
    """Its weight as that of a convolution over an image one pixel high, the weight normalisation worked out."""
    direction, size = (convolution.get_parameter(name).detach() for name in ("weight_v", "weight_g"))
    return torch._weight_norm(direction, size)[:, :, None].contiguous(memory_format=torch.channels_last)


def _buckets(lengths: list[int], shortest: int) -> Iterator[list[int]]:
    """Rows of similar length, longest last; those shorter than `shortest` come alone."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    short = sum(length < shortest for length in lengths)
    yield from ([row] for row in order[:short])
    yield from (order[first : first + _TOGETHER] for first in range(short, len(order), _TOGETHER))


def _codes_digest(model: EncodecModel) -> str:
    found = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if key.startswith("encoder.") or key.endswith("._codebook.embed"):
            found.update(key.encode() + value.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _read_folder(folder: Path) -> EncodecModel:
    try:
        architecture = Architecture.model_validate_json((folder / "config.json").read_text())
        state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    except (ValidationError, SafetensorError, OSError) as error:
        raise CodecError(
            f"Found an unreadable codec in {folder} ({_first_line(error)}); expected config.json and model.safetensors "
            "of demo.recipes.encodec: restore the folder with `git checkout` or train it again."
        ) from error
    for key in [key for key in state if key.endswith("._codebook.embed")]:
        state[key + "_avg"] = state[key] * state[key.removesuffix("embed") + "cluster_size"][:, None]
    return _with_weights(build_encodec(architecture), state, folder)


def _read_genuine(path: Path) -> EncodecModel:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CodecError(
            f"Found {path}, which torch cannot read ({_first_line(error)}); expected an encodec_24khz-*.th file: "
            "fetch it again."
        ) from error
    return _genuine(state, path)


def _fetch_genuine() -> tuple[EncodecModel, str, str]:
    try:
        state = EncodecModel._get_pretrained(_GENUINE_FILE)
    except (urllib.error.URLError, RuntimeError, OSError) as error:
        raise CodecError(
            f"Found no way to fetch {_GENUINE_FILE} ({_first_line(error)}); expected it in torch's hub folder or a "
            "network: set tokenize.codec to the path of a copy, or to `bundled`."
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / _GENUINE_FILE
    return _genuine(state, path), GENUINE, file_sha256(path)


def _genuine(state: Mapping[str, Tensor], path: Path) -> EncodecModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
        model = EncodecModel.encodec_model_24khz(pretrained=False)
    model.set_target_bandwidth(_BANDWIDTH)
    return _with_weights(model, state, path)


def _with_weights(model: EncodecModel, state: Mapping[str, Tensor], path: Path) -> EncodecModel:
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CodecError(
            f"Found weights of another shape in {path}; expected those of EnCodec at 24 kHz: use an encodec_24khz-*.th "
            "file, or a folder whose config.json belongs to its weights."
        ) from error
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
