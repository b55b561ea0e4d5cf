"""What makes sound of codes: Vocos, or the codec's own decoder. The only importer of the vocos package.

Vocos tells magnitudes and phases for each frame of codes; an inverse Fourier transform makes the waveform.
Weights lie as the project of Vocos publishes them: `config.yaml` beside `pytorch_model.bin`, or `model.safetensors`.
Where codes come from, and EnCodec's own decoder, is in `valle2.codec`.

Source: Siuzdak, Vocos, arXiv:2306.00814; VALL-E 2, section 4.1.1.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone

from valle2.bundled import bundled
from valle2.codec import Codec
from valle2.errors import CodecError
from valle2.stage import file_sha256

OWN = "codec"
PUBLISHED = "vocos-encodec-24khz"
_REPOSITORY = "charactr/vocos-encodec-24khz"
CONFIG = "config.yaml"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CODEBOOKS = "feature_extractor.codebook_weights"
_CODEBOOK_KBPS = 0.75
"""Ten bits at 75 Hz."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _FeatureArguments(_Part):
    encodec_model: str
    bandwidths: tuple[float, ...]
    train_codebooks: bool = False


class _BackboneArguments(_Part):
    input_channels: PositiveInt
    dim: PositiveInt
    intermediate_dim: PositiveInt
    num_layers: PositiveInt
    adanorm_num_embeddings: PositiveInt | None = None


class _HeadArguments(_Part):
    dim: PositiveInt
    n_fft: PositiveInt
    hop_length: PositiveInt
    padding: Literal["same"] = "same"


class _Features(_Part):
    class_path: Literal["vocos.feature_extractors.EncodecFeatures"] = "vocos.feature_extractors.EncodecFeatures"
    init_args: _FeatureArguments


class _Backbone(_Part):
    class_path: Literal["vocos.models.VocosBackbone"] = "vocos.models.VocosBackbone"
    init_args: _BackboneArguments


class _Head(_Part):
    class_path: Literal["vocos.heads.ISTFTHead"] = "vocos.heads.ISTFTHead"
    init_args: _HeadArguments


class VocosConfig(_Part):
    """`config.yaml`, of the kind that reads EnCodec's codes."""

    feature_extractor: _Features
    backbone: _Backbone
    head: _Head


class Vocoder(nn.Module):
    """Codes to waveform.

    Attributes:
        codebooks: Entries [Q, size, D] that codes stand for; the first K of them read K codebooks.
        context: Frames on either side that a frame's sound depends on.
    """

    codebooks: Tensor

    def __init__(self, config: VocosConfig, codebooks: Float[Tensor, "q c d"]) -> None:
        super().__init__()
        self.config = config
        self.backbone = VocosBackbone(**config.backbone.init_args.model_dump())
        self.head = ISTFTHead(**config.head.init_args.model_dump())
        self.register_buffer("codebooks", codebooks)
        head = config.head.init_args
        # A convolution of seven frames in front and one in each layer; then windows of n_fft overlap.
        self.context = 3 * (config.backbone.init_args.num_layers + 1) + -(-head.n_fft // (2 * head.hop_length))

    def latent(self, codes: Int[Tensor, "b k t"]) -> Float[Tensor, "b d t"]:
        """What EnCodec's quantizer gives: the sum of the codes' entries."""
        found = [book[indices] for book, indices in zip(self.codebooks, codes.unbind(1), strict=False)]
        return torch.stack(found).sum(0).transpose(1, 2)

    def forward(self, codes: Int[Tensor, "b k t"]) -> Float[Tensor, "b n"]:
        """Waveforms of hop_length samples a frame.

        Raises:
            CodecError: There are codes without an entry, or the weights were not trained for as many codebooks.
        """
        if int(codes.min()) < 0 or int(codes.max()) >= self.codebooks.shape[1]:
            raise CodecError(
                f"Found codes from {int(codes.min())} to {int(codes.max())}; expected 0 to "
                f"{self.codebooks.shape[1] - 1}: cut special tokens such as the end of sequence before decoding."
            )
        condition = None
        if self.config.backbone.init_args.adanorm_num_embeddings:
            bandwidths = self.config.feature_extractor.init_args.bandwidths
            bandwidth = codes.shape[1] * _CODEBOOK_KBPS
            if bandwidth not in bandwidths:
                listed = " or ".join(map(str, bandwidths))
                raise CodecError(
                    f"Found {codes.shape[1]} codebooks ({bandwidth} kbps); expected {listed} kbps: this "
                    "Vocos was trained for these alone."
                )
            condition = torch.tensor([bandwidths.index(bandwidth)], device=codes.device)
        waveform: Tensor = self.head(self.backbone(self.latent(codes), bandwidth_id=condition))
        return waveform


@dataclass(frozen=True)
class Decoder:
    """What makes sound of a codec's codes.

    Attributes:
        name: As in `evaluate.decoder`.
        digest: SHA-256 of its weights file.
        context: Frames after a frame that its sound depends on.
        decode: Indices [B, K, T] to waveforms [B, N] of hop_length samples a frame, on the indices' device. Raises
            CodecError for indices or a number of codebooks that it does not know.
    """

    name: str
    digest: str
    context: int
    decode: Callable[[Tensor], Tensor]


def own_decoder(codec: Codec) -> Decoder:
    """EnCodec's own decoder, which is causal."""
    return Decoder(OWN, codec.digest, 0, codec.decode)


def load_decoder(name: str, codec: Codec, device: str = "cpu") -> Decoder:
    """What decodes a codec's codes.

    Args:
        name: `codec`, its own; or a Vocos: `bundled`, `vocos-encodec-24khz`, or a folder.
        codec: The codec.
        device: torch device that a Vocos runs on.

    Raises:
        CodecError: There are no such weights, they are of another shape, or they were trained for other codes.
    """
    if name == OWN:
        return own_decoder(codec)
    vocoder, digest = load_vocoder(*vocoder_files(name))
    entries = codebooks_of(codec)[: codec.num_codebooks]
    theirs = vocoder.codebooks[: codec.num_codebooks]
    if entries.shape != theirs.shape or not torch.allclose(entries, theirs, rtol=1e-2, atol=1e-3):
        raise CodecError(
            f"Found Vocos {name}, which reads the codes of another codec than {codec.name}; expected one of its codes: "
            f"set evaluate.decoder to `{OWN}`, EnCodec's own, or to a Vocos trained for it."
        )
    vocoder = vocoder.to(device)

    @torch.inference_mode()
    def decode(codes: Tensor) -> Tensor:
        heard: Tensor = vocoder(codes.long().to(device))
        return heard.to(codes.device)

    return Decoder(name, digest, vocoder.context, decode)


def codebooks_of(codec: Codec) -> Float[Tensor, "q c d"]:
    """The entries that a codec's codes stand for."""
    return torch.stack([layer._codebook.embed for layer in codec._model.quantizer.vq.layers]).cpu()


def vocoder_files(name: str) -> tuple[Path, Path]:
    """Configuration and weights.

    Args:
        name: `bundled`, `vocos-encodec-24khz`, which the hub gives once, or a folder.

    Raises:
        CodecError: There are none.
        ConfigError: The bundled one is missing.
    """
    if name == PUBLISHED:
        try:
            config, weights = (Path(hf_hub_download(_REPOSITORY, file)) for file in (CONFIG, WEIGHTS[1]))
        except (OSError, HfHubHTTPError) as error:
            raise CodecError(
                f"Found no way to fetch {_REPOSITORY} ({_first_line(error)}); expected it in the hub's cache or a "
                "network: set evaluate.decoder to the folder of a copy, or to `codec`."
            ) from error
        return config, weights
    folder = bundled("vocos") if name == "bundled" else Path(name)
    found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not (folder / CONFIG).is_file() or not found:
        raise CodecError(
            f"Found no Vocos at {folder}; expected a folder with {CONFIG} and {WEIGHTS[1]}: set evaluate.decoder to "
            f"`codec`, `bundled`, `{PUBLISHED}` or such a folder."
        )
    return folder / CONFIG, found[0]


def decoder_digest(decoder: str) -> str:
    """SHA-256 of the weights of what `evaluate.decoder` names; empty where it is the codec's own.

    Raises:
        CodecError: There are none.
    """
    return "" if decoder == OWN else file_sha256(vocoder_files(decoder)[1])


def load_vocoder(config_file: Path, weights_file: Path) -> tuple[Vocoder, str]:
    """A Vocos and its weights' SHA-256.

    Raises:
        CodecError: The files cannot be read, or do not belong together.
    """
    try:
        config = VocosConfig.model_validate(yaml.safe_load(config_file.read_text()))
        state = _read(weights_file)
    except (
        yaml.YAMLError,
        ValidationError,
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        raise CodecError(
            f"Found an unreadable Vocos at {config_file.parent} ({_first_line(error)}); expected the files of one that "
            f"reads EnCodec's codes, such as {_REPOSITORY}: fetch them again."
        ) from error
    try:
        books = state[_CODEBOOKS].float().unflatten(0, (-1, 1024))
        vocoder = Vocoder(config, books)
        parts = {key: value.float() for key, value in state.items() if not key.startswith("feature_extractor.")}
        missing = vocoder.load_state_dict(parts, strict=False)
    except (KeyError, RuntimeError) as error:
        missing_text = _first_line(error)
    else:
        left = [key for key in missing.missing_keys if key not in ("codebooks", "head.istft.window")]
        if not left and not missing.unexpected_keys:
            return vocoder.eval(), file_sha256(weights_file)
        missing_text = ", ".join((*left, *missing.unexpected_keys))[:100]
    raise CodecError(
        f"Found weights in {weights_file} that do not fit {config_file.name} ({missing_text}); expected one Vocos's "
        "own files: fetch them again."
    )


def save_vocoder(vocoder: Vocoder, folder: Path) -> None:
    """Write weights (float16) and shape as `load_vocoder` reads them; each file appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value for key, value in vocoder.state_dict().items() if key not in ("codebooks", "head.istft.window")}
    state[_CODEBOOKS] = vocoder.codebooks.flatten(0, 1)
    weights, config = folder / "model.safetensors.tmp", folder / "config.yaml.tmp"
    save_file({key: value.half().contiguous() for key, value in state.items()}, weights)
    weights.chmod(0o644)
    config.write_text(yaml.safe_dump(vocoder.config.model_dump(mode="json"), sort_keys=False))
    weights.replace(folder / WEIGHTS[0])
    config.replace(folder / CONFIG)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, no weights")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
