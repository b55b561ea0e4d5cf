"""The codec wrapper: the package's own tokens, round trips, and errors that teach."""

import hashlib
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from encodec.model import EncodecModel

from demo.corpus import make_voice
from demo.espeak import SAMPLE_RATE, speak
from demo.grammar import sentence
from demo.recipes.encodec import SpectralLoss, predicted_batch
from demo.recipes.material import FIRST_VOICE, Clip, resample, reserved_sentences
from demo.recipes.predicted import Predicted, draw_pairs
from valle2.codec import BUNDLED, Architecture, Codec, build_encodec, load_codec, save_encodec
from valle2.errors import CodecError


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("bundled")


@pytest.fixture(scope="module")
def utterances() -> list[torch.Tensor]:
    rng = random.Random(5)
    waves = [resample(speak(sentence(rng), make_voice(FIRST_VOICE + index)).samples, SAMPLE_RATE) for index in range(6)]
    return [torch.from_numpy(wave.astype(np.float32)) / 32768 for wave in waves]


def as_batch(waves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves])


def state_digest(codec: Codec) -> str:
    digest = hashlib.sha256()
    for value in codec._model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def test_batched_tokens_are_the_packages_own(codec: Codec, utterances: list[torch.Tensor]) -> None:
    waves = utterances + [utterances[0][3000 : 3000 + length] for length in (1, 321, 1919, 2240, 5000)]
    codes = codec.encode(*as_batch(waves))
    for row, wave in zip(codes, waves, strict=True):
        with torch.inference_mode():  # convolutions that keep what a gradient needs round differently
            [(wanted, _)] = codec._model.encode(wave[None, None])
        assert torch.equal(row[:, : wanted.shape[2]], wanted[0])
        assert not row[:, wanted.shape[2] :].any()


@pytest.mark.parametrize("num_samples", [1, 319, 320, 321, 24_001])
def test_one_frame_per_started_hop(codec: Codec, num_samples: int) -> None:
    codes = codec.encode(torch.randn(1, num_samples) * 0.1)
    assert codes.shape == (1, 8, -(-num_samples // 320))
    assert codec.decode(codes).shape == (1, 320 * codes.shape[2])


def test_round_trip_keeps_the_loudness_contour(codec: Codec, utterances: list[torch.Tensor]) -> None:
    wave = utterances[0] / utterances[0].abs().max() * 0.8
    heard = codec.decode(codec.encode(wave[None]))[0, : len(wave)]
    contours = [clip[: len(wave) // 1200 * 1200].view(-1, 1200).square().mean(1).sqrt() for clip in (wave, heard)]
    assert torch.corrcoef(torch.stack(contours))[0, 1] > 0.9


def test_encoding_is_causal(codec: Codec, utterances: list[torch.Tensor]) -> None:
    whole = codec.encode(utterances[0][None])
    start = codec.encode(utterances[0][None, : 320 * 60])
    assert torch.equal(whole[:, :, :59], start[:, :, :59])


def test_codebooks_are_alive(codec: Codec, utterances: list[torch.Tensor]) -> None:
    codes = torch.cat([codec.encode(wave[None])[0] for wave in utterances], dim=1)
    assert min(len(book.unique()) for book in codes) > 100


def test_inference_changes_no_buffer(codec: Codec, utterances: list[torch.Tensor]) -> None:
    before = state_digest(codec)
    codec.decode(codec.encode(utterances[0][None]))
    assert state_digest(codec) == before


def test_genuine_format_file_loads(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        genuine = EncodecModel.encodec_model_24khz(pretrained=False)
    path = tmp_path / "encodec_24khz-00000000.th"
    torch.save(genuine.state_dict(), path)
    codec = load_codec(str(path))
    wave = torch.randn(1, 2000) * 0.1
    genuine.eval().set_target_bandwidth(6.0)
    assert (codec.num_codebooks, codec.codebook_size, codec.hop_length, codec.frame_rate) == (8, 1024, 320, 75)
    assert torch.equal(codec.encode(wave), genuine.encode(wave[None])[0][0])
    assert codec.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_codes_digest_is_that_of_what_makes_the_codes(tmp_path: Path) -> None:
    shape = Architecture(encoder_filters=2, decoder_filters=2)
    model = build_encodec(shape)
    digests = []
    for changed in (None, model.decoder, model.encoder, model.quantizer):
        with torch.no_grad():
            for value in changed.state_dict().values() if changed is not None else ():
                value.add_(1)
        save_encodec(model, shape, tmp_path)
        codec = load_codec(str(tmp_path))
        digests.append((codec.digest, codec.codes_digest))
    whole, codes = zip(*digests, strict=True)
    assert len(set(whole)) == 4
    assert codes[0] == codes[1] and len(set(codes)) == 3


def test_saved_folder_loads_and_refuses_other_shapes(tmp_path: Path) -> None:
    architecture = Architecture(name="tiny", encoder_filters=2, decoder_filters=2, dimension=16)
    save_encodec(build_encodec(architecture), architecture, tmp_path)
    assert load_codec(str(tmp_path)).num_codebooks == 8
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dimension": 32}))
    with pytest.raises(CodecError, match="another shape"):
        load_codec(str(tmp_path))


def test_bad_paths_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"bundled.*encodec_24khz"):
        load_codec(str(tmp_path / "nowhere"))
    broken = tmp_path / "broken.th"
    broken.write_bytes(b"not weights")
    with pytest.raises(CodecError, match="cannot read"):
        load_codec(str(broken))
    shutil.copy(BUNDLED / "config.json", tmp_path)
    with pytest.raises(CodecError, match="unreadable"):
        load_codec(str(tmp_path))


def test_wrong_arguments_are_refused(codec: Codec) -> None:
    with pytest.raises(CodecError, match="1 to n"):
        codec.encode(torch.zeros(1, 100), torch.tensor([101]))
    with pytest.raises(CodecError, match="special tokens"):
        codec.decode(torch.full((1, 8, 3), 1024))
    with pytest.raises(CodecError, match="codebooks"):
        codec.decode(torch.zeros(1, 9, 3, dtype=torch.long))


def test_material_leaves_the_corpus_alone() -> None:
    rng = random.Random(2406)
    assert {sentence(rng) for _ in range(1000)} <= reserved_sentences()


def test_predicted_segments_are_aligned_and_short_ones_end_in_silence() -> None:
    codes = np.tile(np.arange(12, dtype=np.int16), (8, 1))
    samples = np.repeat(np.arange(12, dtype=np.int16) * 1000, 320)
    rng = np.random.default_rng(0)
    for num_frames in (5, 20):
        made, waves = predicted_batch([Predicted(codes, samples)], 3, num_frames, rng)
        assert made.shape == (8, 3, num_frames) and waves.shape == (3, 1, num_frames * 320)
        for row in range(3):
            heard = (waves[row, 0].view(num_frames, 320) * 32767).round() / 1000
            inside = torch.arange(num_frames) < 12
            assert torch.equal(heard[inside, 7].long(), made[0, row, inside])
            assert not heard[~inside].any()


def test_a_prompt_is_another_utterance_of_the_targets_voice() -> None:
    clips = [Clip(np.zeros(1, np.int16), f"{voice} {turn}", [], [], voice) for voice in range(4) for turn in range(3)]
    pairs = draw_pairs(clips, 8, seed=1)
    assert all(prompt.voice == target.voice and prompt.text != target.text for prompt, target in pairs)
    assert [target.voice for _, target in pairs[:4]] == [target.voice for _, target in pairs[4:]]
    assert {target.voice for _, target in pairs[:4]} == set(range(4))


def test_without_phases_only_magnitudes_are_compared() -> None:
    wave = torch.rand(1, 1, 8000) - 0.5
    loss = SpectralLoss()
    assert loss(-wave, wave, phases=False).item() == pytest.approx(0, abs=1e-4)
    assert loss(-wave, wave).item() > 1
