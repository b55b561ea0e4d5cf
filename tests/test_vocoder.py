"""Vocos in the published layout: the package's own sound, and files that do not fit."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from encodec.model import EncodecModel
from vocos.pretrained import Vocos

from valle2.codec import Architecture, build_encodec, load_codec, save_encodec
from valle2.errors import CodecError
from valle2.vocoder import Vocoder, VocosConfig, decoder_digest, load_decoder, load_vocoder, save_vocoder

PUBLISHED = {
    "feature_extractor": {
        "class_path": "vocos.feature_extractors.EncodecFeatures",
        "init_args": {
            "encodec_model": "encodec_24khz",
            "bandwidths": [1.5, 3.0, 6.0, 12.0],
            "train_codebooks": False,
        },
    },
    "backbone": {
        "class_path": "vocos.models.VocosBackbone",
        "init_args": {
            "input_channels": 128,
            "dim": 48,
            "intermediate_dim": 96,
            "num_layers": 2,
            "adanorm_num_embeddings": 4,
        },
    },
    "head": {
        "class_path": "vocos.heads.ISTFTHead",
        "init_args": {"dim": 48, "n_fft": 1280, "hop_length": 320, "padding": "same"},
    },
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vocos]:
    """A small Vocos that the package made, with random weights, and the folder that its project would publish."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(4)
    (folder / "config.yaml").write_text(yaml.safe_dump(PUBLISHED))
    with pytest.MonkeyPatch.context() as patch:
        genuine = EncodecModel.encodec_model_24khz
        patch.setattr(EncodecModel, "encodec_model_24khz", staticmethod(lambda pretrained: genuine(pretrained=False)))
        vocos = Vocos.from_hparams(str(folder / "config.yaml"))
    for parameter in vocos.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {key: value for key, value in vocos.state_dict().items() if ".encodec." not in key}
    torch.save(state, folder / "pytorch_model.bin")
    return folder, vocos.eval()


def codes(num_codebooks: int = 8, num_frames: int = 40) -> torch.Tensor:
    return torch.randint(0, 1024, (2, num_codebooks, num_frames), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("num_codebooks", "bandwidth"), [(2, 0), (8, 2), (16, 3)])
def test_published_files_sound_as_the_package_does(
    package: tuple[Path, Vocos], num_codebooks: int, bandwidth: int
) -> None:
    folder, vocos = package
    vocoder, _ = load_vocoder(folder / "config.yaml", folder / "pytorch_model.bin")
    with torch.inference_mode():
        for row in codes(num_codebooks):
            wanted = vocos.decode(vocos.codes_to_features(row), bandwidth_id=torch.tensor([bandwidth]))
            torch.testing.assert_close(vocoder(row[None]), wanted)
            assert wanted.shape == (1, 320 * row.shape[1])


def test_an_untrained_number_of_codebooks_is_refused(package: tuple[Path, Vocos]) -> None:
    vocoder, _ = load_vocoder(package[0] / "config.yaml", package[0] / "pytorch_model.bin")
    with pytest.raises(CodecError, match=r"Found 3 codebooks \(2.25 kbps\); expected 1.5 or 3.0 or 6.0 or 12.0 kbps"):
        vocoder(codes(3))


def test_a_frames_sound_depends_on_its_context_alone(package: tuple[Path, Vocos]) -> None:
    vocoder, _ = load_vocoder(package[0] / "config.yaml", package[0] / "pytorch_model.bin")
    row = codes()[:1]
    other = row.clone()
    other[:, :, 30:] = (other[:, :, 30:] + 1) % 1024
    with torch.inference_mode():
        same = vocoder(row)[0] == vocoder(other)[0]
    start = (30 - vocoder.context) * 320
    assert same[:start].all() and not same[start : start + 640].all()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A codec with random codebooks, and a Vocos that reads its codes."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(5)
    architecture = Architecture(encoder_filters=2, decoder_filters=2, dimension=8)
    encodec = build_encodec(architecture)
    books = [buffer for name, buffer in encodec.named_buffers() if name.endswith("embed")]
    for book in books:
        book.copy_(torch.randn_like(book))
    save_encodec(encodec, architecture, folder / "codec")
    config = VocosConfig.model_validate(
        {
            **PUBLISHED,
            "feature_extractor": {"init_args": {"encodec_model": "codec", "bandwidths": [6.0]}},
            "backbone": {"init_args": {"input_channels": 8, "dim": 16, "intermediate_dim": 32, "num_layers": 1}},
            "head": {"init_args": {"dim": 16, "n_fft": 1280, "hop_length": 320}},
        }
    )
    save_vocoder(Vocoder(config, torch.stack(books)), folder / "vocos")
    return folder / "codec", folder / "vocos"


def test_a_vocos_of_its_codes_decodes_a_codecs(small: tuple[Path, Path]) -> None:
    codec = load_codec(str(small[0]))
    own, other = load_decoder("codec", codec), load_decoder(str(small[1]), codec)
    heard = other.decode(codes())
    assert heard.shape == own.decode(codes()).shape and bool(heard.isfinite().all())
    assert not torch.allclose(heard, own.decode(codes()))
    assert (other.name, other.digest) == (str(small[1]), decoder_digest(str(small[1])))
    assert (own.name, own.digest, own.context, decoder_digest("codec")) == ("codec", codec.digest, 0, "")


@pytest.mark.parametrize("code", [-1, 1024])
def test_codes_without_an_entry_are_refused(small: tuple[Path, Path], code: int) -> None:
    decoder = load_decoder(str(small[1]), load_codec(str(small[0])))
    with pytest.raises(CodecError, match=r"expected 0 to 1023: cut special tokens"):
        decoder.decode(torch.full((1, 8, 3), code))


def test_saved_weights_are_the_same_bytes_again(small: tuple[Path, Path], tmp_path: Path) -> None:
    vocoder, _ = load_vocoder(small[1] / "config.yaml", small[1] / "model.safetensors")
    save_vocoder(vocoder, tmp_path)
    for name in ("config.yaml", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (small[1] / name).read_bytes()


def test_a_vocos_of_another_codec_is_refused(small: tuple[Path, Path]) -> None:
    with pytest.raises(CodecError, match=r"reads the codes of another codec than bundled.*set evaluate.decoder"):
        load_decoder(str(small[1]), load_codec("bundled"))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.yaml", "head: [", "unreadable Vocos"),
        ("config.yaml", "sample_rate: 24000", "unreadable Vocos"),
        ("pytorch_model.bin", "not weights", "unreadable Vocos"),
        ("pytorch_model.bin", None, "Found no Vocos at"),
        ("config.yaml", None, "Found no Vocos at"),
    ],
)
def test_files_that_are_no_vocos(
    package: tuple[Path, Vocos], file: str, text: str | None, message: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(package[0], tmp_path / "broken")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(CodecError, match=message):
        load_decoder(str(folder), load_codec("bundled"))


def test_weights_of_another_shape_are_named(package: tuple[Path, Vocos], tmp_path: Path) -> None:
    folder = shutil.copytree(package[0], tmp_path / "deeper")
    config = (folder / "config.yaml").read_text().replace("num_layers: 2", "num_layers: 3")
    (folder / "config.yaml").write_text(config)
    with pytest.raises(CodecError, match=r"do not fit config.yaml \(backbone.convnext.2"):
        load_decoder(str(folder), load_codec("bundled"))


def test_no_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: str) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr("valle2.vocoder.hf_hub_download", unreachable)
    with pytest.raises(CodecError, match=r"no way to fetch charactr/vocos-encodec-24khz \(no route to the hub\)"):
        load_decoder("vocos-encodec-24khz", load_codec("bundled"))


def test_the_bundled_vocos_keeps_the_speech() -> None:
    codec = load_codec("bundled")
    decoder = load_decoder("bundled", codec)
    time = torch.arange(24_000) / 24_000
    wave = 0.3 * torch.sin(2 * torch.pi * 200 * time) * (time > 0.3)
    heard = decoder.decode(codec.encode(wave[None]))[0]
    assert heard[9600:].square().mean() > 100 * heard[:6400].square().mean(), "silence stays silence"
