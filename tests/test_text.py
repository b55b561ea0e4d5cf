"""Normalisation and BPE."""

from pathlib import Path

import pytest

from valle2.errors import ConfigError, ModelError
from valle2.text import Bpe, normalise, spell_numbers, train_bpe

TEXTS = ["the doctor sees two birds", "the bird holds it", "my sister's house is red", "two birds sleep"] * 5


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Mr. O'Neil’s 21 dogs!", "mister o'neil's twenty one dogs"),
        (
            "It cost 1,234.5 — the 3rd 'time'.",
            "it cost one thousand two hundred and thirty four point five the third time",
        ),
        ("café & bar: 50%", "cafe and bar fifty percent"),
        ("… --- ''", ""),
    ],
)
def test_normalise_leaves_words_alone(raw: str, expected: str) -> None:
    assert normalise(raw) == expected
    assert normalise(expected) == expected


def test_other_languages_keep_their_letters() -> None:
    assert normalise("Straße für 2 Äpfel", "de") == "straße für zwei äpfel"


def test_unknown_language_is_told_only_for_digits() -> None:
    assert normalise("no digits", "xx") == "no digits"
    with pytest.raises(ConfigError, match="num2words does not know"):
        normalise("3 digits", "xx")


def test_numbers_are_spelled_and_punctuation_stays() -> None:
    assert spell_numbers("Count 2, 3.") == "Count two, three."


def test_bpe_round_trip_order_and_bytes(tmp_path: Path) -> None:
    bpe, again = train_bpe(TEXTS, 80), train_bpe(TEXTS[::-1], 80)
    bpe.save(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded = Bpe.load(tmp_path / "a.json")
    for text in [*TEXTS, "quite other letters jump"]:
        tokens = loaded.encode(text)
        assert loaded.decode(tokens) == text
        assert max(tokens) < loaded.vocab_size <= 80


def test_frequent_word_is_one_token() -> None:
    bpe = train_bpe(TEXTS, 80)
    assert len(bpe.encode("birds two")) == 2


def test_unseen_letter_is_an_error_not_a_gap() -> None:
    with pytest.raises(ModelError, match="'ß'"):
        train_bpe(TEXTS, 80).encode("groß")


def test_vocabulary_must_hold_the_letters() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        train_bpe(TEXTS, 10)


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Unigram"}}'])
def test_broken_bpe_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bpe.json").write_text(content)
    with pytest.raises(ModelError, match=r"bpe\.json"):
        Bpe.load(tmp_path / "bpe.json")
