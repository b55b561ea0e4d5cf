"""A Whisper of many languages whose weights are set by hand: what sounds low is German to it, what sounds high French.

It has the vocabulary size, language tokens and file formats of the genuine multilingual Whisper, so that it is loaded
and asked as that is. Whatever is said, it writes `old`.
"""

import json
from pathlib import Path

import torch
from faster_whisper.tokenizer import _LANGUAGE_CODES
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tests.tiny import ROOT

WIDTH, LOW, HIGH, WORD, END = 8, 0, 1, 2, 3
"""The model's width, and what each place in it stands for."""
LANGUAGES = tuple(code for code in _LANGUAGE_CODES if code != "yue")
"""The 99 of all multilingual Whispers; the latest has one more."""
_TEXT, _TIMES = 50_257, 1_501


def make_polyglot(folder: Path) -> str:
    """Write it as a CTranslate2 model."""
    from ctranslate2.converters import TransformersConverter

    tokenizer = _tokenizer()
    start, end = (tokenizer.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "endoftext"))
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH, encoder_attention_heads=1, decoder_attention_heads=1, num_mel_bins=80, pad_token_id=end,
        bos_token_id=start, eos_token_id=end, decoder_start_token_id=start,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        _set_weights(dict(model.named_parameters()), tokenizer)
    ids = {f"<|{code}|>": tokenizer.token_to_id(f"<|{code}|>") for code in LANGUAGES}
    model.generation_config = GenerationConfig(lang_to_id=ids, suppress_tokens=None, begin_suppress_tokens=None)
    plain = folder.with_name(folder.name + "-plain")
    model.save_pretrained(plain)
    WhisperFeatureExtractor().save_pretrained(plain)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(plain)
    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(plain), copy_files=copied).convert(str(folder))
    return folder.as_posix()


def _tokenizer() -> Tokenizer:
    """The bundled one's letters and words, then what fills Whisper's vocabulary, then Whisper's special tokens."""
    content = json.loads((ROOT / "demo/models/whisper/tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"[unused {place}]": place for place in range(len(vocabulary), _TEXT - 1)}
    vocabulary[""] = _TEXT - 1  # by which CTranslate2 knows that there are many languages
    tokenizer = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
    names = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev"]
    names += ["nospeech", "notimestamps", *(f"{place * 0.02:.2f}" for place in range(_TIMES))]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    return tokenizer


def _set_weights(weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """All zero but the way from the sound to the language, and from the place in the text to the word."""
    for name, value in weights.items():
        value.fill_(1.0 if "layer_norm.weight" in name else 0.0)
    first = weights["model.encoder.conv1.weight"]  # [WIDTH, 80 bands, 3]
    first[LOW, :30, 1], first[HIGH, 30:, 1] = 1 / 30, 1 / 50
    weights["model.encoder.conv1.bias"].copy_(torch.tensor([4.0, 4.0] + [2.0] * (WIDTH - 2)))  # above GELU's bend
    weights["model.encoder.conv2.weight"][:, :, 1] = torch.eye(WIDTH)
    for part in ("v_proj", "out_proj"):
        weights[f"model.decoder.layers.0.encoder_attn.{part}.weight"].copy_(torch.eye(WIDTH))
    tokens = weights["model.decoder.embed_tokens.weight"]
    for name, place in (("<|de|>", LOW), ("<|fr|>", HIGH), ("Ġold", WORD), ("<|endoftext|>", END)):
        tokens[tokenizer.token_to_id(name), place] = 30.0
    positions = weights["model.decoder.embed_positions.weight"]
    positions[3, WORD] = positions[4:, END] = 1000.0
