"""Text as the models see it: normalised words, then BPE tokens.

Normalised text is lower-case letters, apostrophes inside words and single blanks. Recognition, curation, training and
synthesis all go through `normalise`, so that a text has one form everywhere. Pronunciation is left to the models.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from num2words import num2words
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from valle2.errors import ConfigError, ModelError

ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
"""Letters that every vocabulary holds, whether or not the training text has them."""

WORD_MARK = "▁"
"""Starts each word's first token, so that a frequent word is one token."""

_ABBREVIATIONS = {"mr.": "mister", "mrs.": "missus", "dr.": "doctor", "&": "and", "%": "percent"}
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_LONGEST_NUMBER = 15
_CLAUSE_END = re.compile(r"(?<=[,;:])\s+")


def spell_numbers(text: str, language: str = "en") -> str:
    """Replace digits by words and leave all else, punctuation too, as it is.

    Word alignment needs this: an aligner has no sound for a digit.

    Args:
        text: Any text.
        language: ISO 639-1 code, one that num2words speaks.

    Raises:
        ConfigError: The text has digits and num2words does not know the language.
    """

    def cardinal(match: re.Match[str]) -> str:
        digits = match.group().replace(",", "")
        if len(digits) > _LONGEST_NUMBER:
            return " ".join(_spell(digit, language, ordinal=False) for digit in digits if digit.isdigit())
        return _spell(digits, language, ordinal=False)

    if language == "en":
        text = _ORDINAL.sub(lambda match: _spell(match.group(1), language, ordinal=True), text)
    return _NUMBER.sub(cardinal, text)


def _spell(digits: str, language: str, *, ordinal: bool) -> str:
    try:
        return str(num2words(digits, lang=language, to="ordinal" if ordinal else "cardinal"))
    except NotImplementedError as error:
        raise ConfigError(
            f"numbers cannot be put in words in language {language!r}: num2words does not know it; spell the numbers "
            "in the given texts, or set another `transcribe.language`"
        ) from error


def normalise(text: str, language: str = "en") -> str:
    """The one form of a text: lower-case words, numbers spelled, no punctuation but apostrophes inside words.

    Args:
        text: As written, recognised or given.
        language: ISO 639-1 code; English also loses its accents and gets its commonest abbreviations spelled.

    Returns:
        Words separated by single blanks; empty if nothing can be said. Normalising again changes nothing.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'")
    if language == "en":
        text = " ".join(_ABBREVIATIONS.get(word, word) for word in text.replace("%", " % ").replace("&", " & ").split())
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    text = spell_numbers(text, language).lower()
    kept = "".join(char if char.isalpha() or unicodedata.combining(char) or char == "'" else " " for char in text)
    words = (word.strip("'") for word in kept.split())
    return " ".join(word for word in words if word)


class Bpe:
    """Byte-pair encoding over normalised text (the paper says BPE and no more; VALL-E's lab uses 4,000 entries).

    There are no special tokens: the models add their own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters = {char for token in tokenizer.get_vocab() for char in token}

    @classmethod
    def load(cls, path: Path) -> "Bpe":
        """Read a `bpe.json`.

        Raises:
            ModelError: It is missing, or no tokenizer.
        """
        if not path.is_file():
            raise ModelError(f"no text tokenizer at {path}; `valle2 curate` makes it, a voice model holds it")
        text = path.read_text()
        try:
            known = json.loads(text)["model"]["type"] == "BPE"
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ModelError(f"{path} is no BPE tokenizer in the format of the tokenizers package; run `valle2 curate`")
        return cls(Tokenizer.from_str(text))

    def save(self, path: Path) -> None:
        """Write `bpe.json`; the same vocabulary is always the same bytes."""
        path.write_text(self._tokenizer.to_str(pretty=True) + "\n")

    @property
    def vocab_size(self) -> int:
        """Number of different tokens; ids are in [0, vocab_size)."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a normalised text.

        Raises:
            ModelError: A letter that the vocabulary lacks; it would otherwise vanish without a word.
        """
        unknown = sorted(set(text) - self._letters - {" "})
        if unknown:
            raise ModelError(
                f"the text tokenizer has no {', '.join(map(repr, unknown))} (text {text!r}); it takes text from "
                "`valle2.text.normalise` in the language that it was trained on"
            )
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids; inverse of `encode`."""
        return str(self._tokenizer.decode(tokens))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Bpe:
    """Learn a vocabulary; the same texts in any order give the same one.

    Args:
        texts: Normalised texts.
        vocab_size: Entries at most; few texts give fewer.

    Raises:
        ConfigError: `vocab_size` cannot even hold the letters.
    """
    texts = sorted(texts)
    letters = sorted({*ALPHABET, WORD_MARK, *(char for text in texts for char in text)} - {" "})
    if vocab_size < len(letters):
        raise ConfigError(f"`curate.vocab_size` is {vocab_size}; the text alone has {len(letters)} letters: raise it")
    tokenizer = Tokenizer(models.BPE())
    # Split before each mark only, never inside a word.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(WORD_MARK, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(f"(?={WORD_MARK})"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(WORD_MARK, prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=letters, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Bpe(tokenizer)


def split_sentences(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Split a text where a reader would pause.

    Args:
        text: Any text, with its punctuation.
        fits: Whether a piece is short enough.

    Returns:
        Its sentences in order; those that do not fit are split at commas and the like, and then at blanks, into few
        pieces that do. A word that does not fit is a piece of its own.
    """
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    known = PunktParameters()
    known.abbrev_types = {word.rstrip(".") for word in _ABBREVIATIONS}
    sentences = PunktSentenceTokenizer(known).tokenize(text)
    return [piece for sentence in sentences for piece in _clauses(sentence, fits)]


def _clauses(sentence: str, fits: Callable[[str], bool]) -> list[str]:
    """The longest runs of clauses that fit; a clause that does not is split into equal runs of words."""
    if fits(sentence):
        return [sentence]
    packed: list[str] = []
    for clause in _CLAUSE_END.split(sentence):
        joined = f"{packed[-1]} {clause}" if packed else clause
        if packed and fits(joined):
            packed[-1] = joined
        else:
            packed += _equal_runs(clause.split(), fits)
    return packed


def _equal_runs(words: list[str], fits: Callable[[str], bool]) -> list[str]:
    """As few runs of about as many words as fit; at worst single words."""
    for num_runs in range(1, len(words) + 1):
        ends = [round(len(words) * (run + 1) / num_runs) for run in range(num_runs)]
        runs = [" ".join(words[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        if all(fits(run) for run in runs):
            return runs
    return words
