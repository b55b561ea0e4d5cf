"""Speaking with tiny random models and a tiny real EnCodec."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.test_sampling import literal_group
from valle2.codec import Architecture, build_encodec, load_codec, save_encodec
from valle2.config.sampling import SamplingConfig
from valle2.decoding import generate_codes
from valle2.errors import ModelError
from valle2.model.ar import ARModel
from valle2.model.layers import TransformerShape
from valle2.model.nar import NARModel
from valle2.model.sampling import Sampling
from valle2.model_folder import write_bundle
from valle2.stage import write_json
from valle2.synthesis import CODEC_CONTEXT_SECONDS, PAUSE_SECONDS, Request, Synthesizer, fade_over
from valle2.text import train_bpe
from valle2.vocoder import Vocoder, VocosConfig, codebooks_of, load_decoder, save_vocoder

SHAPE = TransformerShape(num_layers=2, dim=32, num_heads=4, ffn_dim=64, dropout=0.1, max_text_tokens=40, max_frames=120)
SETTINGS = SamplingConfig(max_seconds=0.4)
RATE = 75.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    architecture = Architecture(encoder_filters=2, decoder_filters=2, dimension=8)
    encodec = build_encodec(architecture)
    for name, buffer in encodec.named_buffers():
        if name.endswith("embed"):
            buffer.copy_(torch.randn_like(buffer))
    save_encodec(encodec, architecture, root / "codec")
    bpe = train_bpe(["the red boat", "a green bird sings"], 60)
    bpe.save(root / "bpe.json")
    codec = {"name": str(root / "codec"), "digest": load_codec(str(root / "codec")).digest, "codes_digest": "",
             "sample_rate": 24000, "frame_rate": 75.0, "num_codebooks": 8, "codebook_size": 1024}  # fmt: skip
    models = {"ar": ARModel(SHAPE, bpe.vocab_size, 2), "nar": NARModel(SHAPE, bpe.vocab_size)}
    for kind, model in models.items():
        for embedding in [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]:
            torch.nn.init.normal_(embedding.weight, std=0.6)  # scores that are far apart, as a trained model's
        (root / kind).mkdir()
        save_file(model.state_dict(), root / kind / "model.safetensors")
        write_json(root / kind / "config.json", {
            "kind": kind, "transformer": asdict(SHAPE), "group_size": 2, "vocab_size": bpe.vocab_size, "codec": codec,
        })  # fmt: skip
    write_bundle(root / "model", ar_dir=root / "ar", nar_dir=root / "nar", bpe=root / "bpe.json", decoder="codec",
                 codec_name=str(root / "codec"), sampling=SETTINGS)  # fmt: skip
    return root / "model"


@pytest.fixture(scope="module")
def synthesizer(bundle: Path) -> Synthesizer:
    return Synthesizer.from_path(bundle)


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.rand(num, generator=generator) - 0.5 for num in (320 * 9, 320 * 4, 320 * 12 + 7)]
    texts = [("Red boat!", "the bird"), ("a green bird sings the boat", "boat"), ("the", "a red boat sings")]
    return [
        Request(text, prompt, said, seed)
        for seed, ((text, said), prompt) in enumerate(zip(texts, prompts, strict=True), 10)
    ]


def with_cap(voice: Synthesizer, seconds: float) -> Synthesizer:
    return Synthesizer(voice.ar, voice.nar, voice.bpe, voice.codec, SamplingConfig(max_seconds=seconds))


def test_bundle_holds_all_that_is_needed(bundle: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == {"model.json", "ar.safetensors", "nar.safetensors", "bpe.json", "codec/config.json",
                     "codec/model.safetensors"}  # fmt: skip
    facts = json.loads((bundle / "model.json").read_text())
    assert facts["format"] == 1 and facts["group_size"] == 2 and facts["num_codebooks"] == 8
    assert facts["sampling"] == SETTINGS.model_dump()


def test_a_batch_equals_one_by_one(synthesizer: Synthesizer) -> None:
    together = synthesizer.synthesize_batch(requests())
    for request, item in zip(requests(), together, strict=True):
        alone = synthesizer.synthesize(request.text, request.prompt, request.prompt_text, seed=request.seed)
        assert torch.equal(alone.codes, item.codes)
        assert (alone.finish_reason, alone.num_groups) == (item.finish_reason, item.num_groups)
        torch.testing.assert_close(alone.waveform, item.waveform, atol=1e-5, rtol=1e-4)


def test_what_is_more_than_a_batch_is_spoken_in_several(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [replace(request, seed=seed) for seed in range(2) for request in requests()]
    together = synthesizer.synthesize_batch(every)
    monkeypatch.setattr(synthesizer, "batch_size", 4)
    for one, other in zip(together, synthesizer.synthesize_batch(every), strict=True):
        assert torch.equal(one.codes, other.codes) and one.finish_reason == other.finish_reason
    assert synthesizer.synthesize_batch([]) == []


def test_texts_of_any_length_are_one_batch(synthesizer: Synthesizer) -> None:
    synthesizer = with_cap(synthesizer, 1.2)
    prompt = torch.rand(320 * 12, generator=torch.Generator().manual_seed(3)) - 0.5
    texts = [Request("The red boat. The bird sings!", prompt, "a red boat", 3), Request("Boat.", prompt, "a boat", 7)]
    together = synthesizer.synthesize_texts(texts)
    for request, whole in zip(texts, together, strict=True):
        assert torch.equal(whole.codes, synthesizer.synthesize_long(request).codes)


def test_speech_is_as_long_as_its_codes_and_holds_no_prompt(synthesizer: Synthesizer) -> None:
    for item in synthesizer.synthesize_batch(requests()):
        assert item.codes.shape[0] == 8
        assert len(item.waveform) == 320 * item.codes.shape[1]
        assert item.finish_reason == "eos" or item.codes.shape[1] == 30
        assert set(item.seconds_per_stage) == {"prompt", "ar", "nar", "codec"}


def test_the_seed_decides(synthesizer: Synthesizer) -> None:
    one = requests()[0]
    first, again, other = synthesizer.synthesize_batch([one, one, replace(one, seed=99)])
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)


def test_a_streams_first_codebook_is_the_offline_one(synthesizer: Synthesizer) -> None:
    for request in requests():
        whole = synthesizer.synthesize_batch([request])[0]
        chunks = list(synthesizer.stream(request, chunk_seconds=(0.04, 0.16)))
        assert torch.equal(torch.cat([chunk.codes[0] for chunk in chunks]), whole.codes[0])
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
        assert sum(len(chunk.waveform) for chunk in chunks) == len(whole.waveform)
        sizes = [chunk.codes.shape[1] for chunk in chunks]
        assert sizes[:-1] == [3, 6, 12, 12, 12][: len(sizes) - 1]


def test_a_stream_of_one_chunk_is_the_offline_speech(synthesizer: Synthesizer) -> None:
    request = requests()[0]
    whole = synthesizer.synthesize_batch([request])[0]
    [chunk] = synthesizer.stream(request, chunk_seconds=(10.0, 10.0))
    assert torch.equal(chunk.codes, whole.codes)
    torch.testing.assert_close(chunk.waveform, whole.waveform, atol=1e-5, rtol=1e-4)


def test_a_vocos_that_hears_its_context_says_what_it_would_have() -> None:
    decoder = load_decoder("bundled", load_codec("bundled"))
    codes = torch.randint(0, 1024, (8, 300), generator=torch.Generator().manual_seed(2))
    whole = decoder.decode(codes[None])[0]
    before = codes[:, 160 - round(CODEC_CONTEXT_SECONDS * RATE) : 160]
    part = decoder.decode(torch.cat([before, codes[:, 160 : 200 + decoder.context]], 1)[None])[0]
    part = part[before.shape[1] * 320 :][: 40 * 320]
    torch.testing.assert_close(part, whole[160 * 320 : 200 * 320], atol=1e-4, rtol=1e-3)


def test_fading_over_goes_from_one_to_the_other() -> None:
    heard = fade_over(torch.ones(3), torch.zeros(5))
    torch.testing.assert_close(heard, torch.tensor([0.75, 0.5, 0.25, 0, 0]))
    assert fade_over(torch.ones(3), torch.zeros(2)).shape == (2,)
    assert torch.equal(fade_over(torch.zeros(0), torch.ones(2)), torch.ones(2))


@pytest.fixture(scope="module")
def vocos_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The voice model with a Vocos, whose own folder is gone."""
    root, vocos = bundle.parent, tmp_path_factory.mktemp("vocos")
    books = codebooks_of(load_codec(str(root / "codec")))
    config = VocosConfig.model_validate({
        "feature_extractor": {"init_args": {"encodec_model": "codec", "bandwidths": [6.0]}},
        "backbone": {"init_args": {"input_channels": 8, "dim": 16, "intermediate_dim": 32, "num_layers": 1}},
        "head": {"init_args": {"dim": 16, "n_fft": 1280, "hop_length": 320}},
    })  # fmt: skip
    torch.manual_seed(1)
    save_vocoder(Vocoder(config, books), vocos)
    write_bundle(root / "with-vocos", ar_dir=root / "ar", nar_dir=root / "nar", bpe=root / "bpe.json",
                 decoder=str(vocos), codec_name=str(root / "codec"), sampling=SETTINGS)  # fmt: skip
    shutil.rmtree(vocos)
    return root / "with-vocos"


def test_a_voice_model_has_its_decoder_with_it(vocos_bundle: Path, synthesizer: Synthesizer) -> None:
    other = Synthesizer.from_path(vocos_bundle)
    request = requests()[0]
    [ours], [theirs] = synthesizer.synthesize_batch([request]), other.synthesize_batch([request])
    assert torch.equal(ours.codes, theirs.codes) and ours.waveform.shape == theirs.waveform.shape
    assert not torch.allclose(ours.waveform, theirs.waveform)
    [chunk] = other.stream(request, chunk_seconds=(10.0, 10.0))
    torch.testing.assert_close(chunk.waveform, theirs.waveform, atol=1e-5, rtol=1e-4)
    chunks = list(other.stream(request, chunk_seconds=(0.04, 0.16)))
    assert sum(len(chunk.waveform) for chunk in chunks) == len(theirs.waveform)


def test_another_decoder_than_the_evaluated_one_is_refused(vocos_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vocos_bundle, tmp_path / "model")
    weights = load_file(folder / "vocos/model.safetensors")
    save_file({name: value * 0.5 if "head" in name else value for name, value in weights.items()},
              folder / "vocos/model.safetensors")  # fmt: skip
    with pytest.raises(ModelError, match=r"was evaluated with decoder .* use the model with the decoder of its own"):
        Synthesizer.from_path(folder)


def test_the_codec_hears_enough_of_what_came_before() -> None:
    codec = load_codec("bundled")
    codes = torch.randint(0, 1024, (8, 400), generator=torch.Generator().manual_seed(2))
    whole = codec.decode(codes[None])[0]
    for start in (160, 250, 340):
        before = codes[:, start - round(CODEC_CONTEXT_SECONDS * RATE) : start]
        part = codec.decode(torch.cat([before, codes[:, start:]], 1)[None])[0, before.shape[1] * 320 :]
        error = (part - whole[start * 320 :]).square().mean() / whole[start * 320 :].square().mean()
        assert error < 1e-4, "more than -40 dB at a chunk's seam"


def test_a_long_text_is_split_into_sentences_and_joined_without_clicks(synthesizer: Synthesizer) -> None:
    prompt = 0.5 * torch.sin(torch.arange(320 * 12) * 0.1)
    request = Request("The red boat. A green bird, sings! The boat?", prompt, "a red boat", 3)
    synthesizer = with_cap(synthesizer, 1.2)
    assert synthesizer.split(request) == ["The red boat.", "A green bird, sings!", "The boat?"]
    whole = synthesizer.synthesize_long(request)
    alone = [
        synthesizer.synthesize(text, prompt, "a red boat", seed=3 + i)
        for i, text in enumerate(synthesizer.split(request))
    ]
    pause = round(PAUSE_SECONDS * 24000)
    assert len(whole.waveform) == sum(len(part.waveform) for part in alone) + 2 * pause
    assert torch.equal(whole.codes, torch.cat([part.codes for part in alone], 1))
    end = len(alone[0].waveform)
    assert not whole.waveform[end : end + pause].any()
    seam = whole.waveform[end - 24 : end + pause + len(alone[1].waveform)]
    assert seam[:24].abs().max() <= 0.11 * alone[0].waveform[-24:].abs().max() + 1e-6


def test_a_sentence_too_long_for_the_model_is_split_at_commas_and_then_at_blanks(synthesizer: Synthesizer) -> None:
    words = "the green bird sings the boat, " * 3 + "a red boat sings " * 8
    request = Request(words, torch.rand(320 * 12) - 0.5, "a red boat sings", 0)
    pieces = with_cap(synthesizer, 1.4).split(request)
    assert " ".join(pieces).split() == words.split()
    assert len(pieces) > 3 and all(len(piece.split()) > 1 for piece in pieces)
    assert [piece for piece in pieces if piece.endswith("boat,")]


def test_one_capped_sentence_makes_a_long_text_capped(synthesizer: Synthesizer) -> None:
    request = Request("The red boat. The bird.", torch.rand(320 * 12) - 0.5, "a red boat sings", 0)
    assert synthesizer.synthesize_long(request, SamplingConfig(max_seconds=0.03)).finish_reason == "cap"


def test_progress_counts_the_frames_of_rows_that_go_on(synthesizer: Synthesizer) -> None:
    counted: list[int] = []
    spoken = synthesizer.synthesize_batch(requests(), on_frames=counted.append)
    assert sum(counted) == 2 * sum(item.num_groups for item in spoken)


def test_weights_that_are_not_finite_are_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "model")
    weights = load_file(bundle / "nar.safetensors")
    weights["separators"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model" / "nar.safetensors")
    with pytest.raises(ModelError, match=r"not finite, in separators"):
        Synthesizer.from_path(tmp_path / "model")


def test_parts_that_cannot_be_read_or_do_not_fit_are_named(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "model")
    weights = (folder / "ar.safetensors").read_bytes()
    (folder / "ar.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"ar\.safetensors cannot be read .*fetch it again"):
        Synthesizer.from_path(folder)
    (folder / "ar.safetensors").write_bytes(weights)
    facts = json.loads((folder / "model.json").read_text())
    write_json(folder / "model.json", facts | {"group_size": 4})
    with pytest.raises(ModelError, match=r"ar\.safetensors does not fit model\.json"):
        Synthesizer.from_path(folder)
    write_json(folder / "model.json", {"format": 1})
    with pytest.raises(ModelError, match=r"does not describe a voice model \('ar'\)"):
        Synthesizer.from_path(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelError, match=r"model\.json is no JSON object"):
        Synthesizer.from_path(folder)


@pytest.mark.parametrize("device", ["cuda", "tpu", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(bundle: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match=rf"no device '{device}' here \(.*\); give cpu"):
        Synthesizer.from_path(bundle, device)


class Scripted(ARModel):
    """Scores that always end the utterance in a given slot of a given step."""

    def __init__(self, steps: int, slot: int) -> None:
        super().__init__(SHAPE, vocab_size=20, group_size=2, codebook_size=50)
        self.steps, self.slot, self.step = steps, slot, 0

    def logits(self, hidden: Tensor) -> Tensor:
        scores = torch.zeros(len(hidden), 2, 51)
        scores[:, 0, 3], scores[:, 1, 4] = 50.0, 50.0
        self.step += 1
        if self.step == self.steps:
            scores[:, self.slot, self.eos] = 100.0
        return scores


def speak(
    ar: ARModel, sampling: Sampling, max_frames: int, prompt: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, str, int]:
    prompt = torch.zeros(8, 4, dtype=torch.long) if prompt is None else prompt
    text, length = torch.zeros(1, 3, dtype=torch.long), torch.tensor([3])
    with torch.no_grad():
        return generate_codes(ar.eval(), text, length, [prompt], [seed], sampling, max_frames)[0]


@pytest.mark.parametrize(("slot", "expected"), [(0, [3, 4, 3, 4]), (1, [3, 4, 3, 4, 3])])
def test_decoding_stops_at_the_first_eos_in_any_slot(slot: int, expected: list[int]) -> None:
    codes, reason, steps = speak(Scripted(3, slot), Sampling(), 30)
    assert codes.tolist() == expected
    assert (reason, steps) == ("eos", 3)


def test_decoding_stops_at_the_cap_and_says_so() -> None:
    codes, reason, steps = speak(Scripted(1000, 0), Sampling(), 30)
    assert (len(codes), reason, steps) == (30, "cap", 15)


def test_decoding_stops_at_the_end_of_the_position_table() -> None:
    codes, reason, _ = speak(Scripted(1000, 0), Sampling(), 7500)
    assert (len(codes), reason) == (120 - 4, "cap")


def test_cached_decoding_equals_algorithm_1_without_a_cache() -> None:
    torch.manual_seed(3)
    ar = ARModel(SHAPE, vocab_size=20, group_size=2, codebook_size=50)
    torch.nn.init.normal_(ar.code_embedding.weight, std=0.5)
    prompt = torch.randint(0, 50, (8, 14))
    codes, _, _ = speak(ar, Sampling(), 30, prompt, seed=5)
    generator, expected = torch.Generator().manual_seed(5), prompt[0].tolist()
    text, length = torch.zeros(1, 3, dtype=torch.long), torch.tensor([3])
    with torch.no_grad():
        while len(expected) < 14 + 30:
            logits, _ = ar.prefill(text, length, torch.tensor([expected]), torch.tensor([len(expected)]), 0)
            expected += literal_group(logits[0], expected, torch.rand(2, 2, generator=generator), Sampling(), ar.eos)
    new = expected[14:]
    assert codes.tolist() == (new[: new.index(ar.eos)] if ar.eos in new else new)
    assert len(codes) > 10


def test_the_prompt_is_history_of_repetition_aware_sampling() -> None:
    greedy = Sampling(top_p=0.0)
    again = torch.full((8, 10), 7)
    ar = ARModel(SHAPE, vocab_size=20, group_size=1, codebook_size=50)
    ar.logits = lambda hidden: torch.nn.functional.one_hot(torch.full((len(hidden), 1), 7), 51) * 4.0  # type: ignore
    fresh = [speak(ar, greedy, 2, torch.zeros(8, 10, dtype=torch.long), seed)[0][0].item() for seed in range(12)]
    repeated = [speak(ar, greedy, 2, again, seed)[0][0].item() for seed in range(12)]
    assert set(fresh) == {7}
    assert len(set(repeated)) > 1


def test_empty_and_too_long_requests_say_what_is_wrong(synthesizer: Synthesizer) -> None:
    prompt = torch.rand(3200) - 0.5
    with pytest.raises(ModelError, match="nothing to say"):
        synthesizer.synthesize("...", prompt, "the boat")
    with pytest.raises(ModelError, match="the prompt is empty"):
        synthesizer.synthesize("the boat", prompt[:0], "the boat")
    with pytest.raises(ModelError, match=r"tokens, the model reads 40; split the text"):
        synthesizer.synthesize("the green bird sings " * 20, prompt, "the boat")
    with pytest.raises(ModelError, match=r"the prompt lasts 2\.0 s, the model reads 1\.6 s"):
        synthesizer.synthesize("the boat", torch.rand(48000) - 0.5, "the boat")


def test_a_folder_that_is_no_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no voice model: it has no model\.json"):
        Synthesizer.from_path(tmp_path)
    facts = json.loads((bundle / "model.json").read_text())
    write_json(tmp_path / "model.json", facts)
    with pytest.raises(ModelError, match=r"lacks ar\.safetensors"):
        Synthesizer.from_path(tmp_path)
    write_json(tmp_path / "model.json", facts | {"format": 2})
    with pytest.raises(ModelError, match=r"of format 2, this version reads 1"):
        Synthesizer.from_path(tmp_path)


def test_what_was_learnt_by_heart_is_spoken_to_the_end() -> None:
    torch.manual_seed(1)
    ar = ARModel(replace(SHAPE, dropout=0.0), vocab_size=20, group_size=2, codebook_size=50)
    text, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    codes, frames = torch.randint(0, 50, (2, 14)), torch.tensor([14, 10])
    optimiser = torch.optim.AdamW(ar.parameters(), 3e-3)
    for _ in range(120):
        ar.loss(text, lengths, codes, frames)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    greedy = Sampling(top_p=0.0, ras_window=0)
    prompts = [codes[:1, :4].expand(8, -1), codes[1:, :4].expand(8, -1)]
    with torch.no_grad():
        spoken = generate_codes(ar, text, lengths, prompts, [0, 0], greedy, 75)
    for row, (new, reason, _) in enumerate(spoken):
        assert new.tolist() == codes[row, 4 : frames[row]].tolist()
        assert reason == "eos"
