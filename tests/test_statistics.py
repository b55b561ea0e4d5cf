"""Intervals cover the truth, paired tests find what is there, and metrics are what their packages say."""

import jiwer
import numpy as np
import pytest
import torch
from scipy import stats

from tests import fabricated
from valle2.asr import ASR_RATE, load_asr
from valle2.config.evaluate import EvaluateConfig, EvaluateParams
from valle2.errors import EvaluationError
from valle2.evaluation import scorer as module
from valle2.evaluation.metrics import WordErrors, corpus_wer, repetition, silence, word_errors
from valle2.evaluation.scorer import Scorer
from valle2.evaluation.statistics import interval, paired
from valle2.evaluation.summary import summarise


def case(name: str, errors: int = 0, words: int = 10, sim: float = 0.5, protocol: str = "unseen", **row):
    counted = {"substitutions": errors, "deletions": 0, "insertions": 0, "words": words, "diff": []}
    scores = {"errors": counted, "sim_own": sim, "sim_others": [], "sim_wins": 0, "dnsmos": 3.0} | row
    return {"id": name, "protocol": protocol, "speaker": name[0], "rows": {"model": scores}}


def test_the_interval_of_wer_covers_the_truth() -> None:
    """Cases of 5 to 20 words, each word wrong with a chance of the case's own: how many intervals hold the mean?"""
    rng = np.random.default_rng(5)
    covered, rounds = 0, 200
    for turn in range(rounds):
        words = rng.integers(5, 20, 60)
        errors = rng.binomial(words, rng.beta(1, 9, 60))
        low, high = interval(60, lambda chosen, e=errors, w=words: float(e[chosen].sum() / w[chosen].sum()), turn)
        covered += low <= 0.1 <= high
    # 95 % are aimed at; percentile intervals of 60 skewed cases fall a little short, and 200 rounds vary by 1.5 %.
    assert 0.89 <= covered / rounds <= 0.985


def test_a_paired_test_finds_a_difference_that_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(3)
    hardness = rng.uniform(0.2, 0.8, 40)
    a = [case(str(i), sim=value) for i, value in enumerate(hardness)]
    b = [case(str(i), sim=value - 0.03 + rng.normal(0, 0.02)) for i, value in enumerate(hardness)]
    found = paired(a, b, "sim_own")
    assert found.num_pairs == 40 and found.difference == pytest.approx(0.03, abs=0.01)
    assert found.low > 0 and found.p_value < 0.001
    values = [[one["rows"]["model"]["sim_own"] for one in side] for side in (a, b)]
    assert stats.ttest_ind(*values).pvalue > 0.1
    assert found.p_value == pytest.approx(stats.ttest_rel(*values).pvalue, abs=0.005)


def test_a_paired_test_of_noise_finds_nothing_too_often() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for turn in range(60):
        a, b = ([case(str(i), int(rng.binomial(10, 0.1))) for i in range(30)] for _ in range(2))
        found += paired(a, b, "wer", seed=turn).p_value < 0.05
    assert found <= 8


def test_wer_differs_by_words_not_by_cases() -> None:
    a = [case("long", 10, 100), case("short", 0, 1)]
    b = [case("long", 0, 100), case("short", 1, 1)]
    found = paired(a, b, "wer")
    assert found.mean_a == pytest.approx(10 / 101) and found.mean_b == pytest.approx(1 / 101)
    assert found.difference == pytest.approx(9 / 101)


def test_equal_systems_do_not_differ_and_strangers_are_refused() -> None:
    cases = [case(str(i), i % 3) for i in range(6)]
    same = paired(cases, cases, "wer")
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    with pytest.raises(EvaluationError, match="share no case with a figure for wer: 6 and 1 cases"):
        paired(cases, [case("other")], "wer")
    with pytest.raises(EvaluationError, match="figure for utmos"):
        paired(cases, cases, "utmos")


def test_figures_are_kept_apart_by_protocol_and_row() -> None:
    cases = [case("a", 1), case("b", 2), case("hard.c", 5, protocol="hard")]
    cases[0]["rows"]["ground_truth"] = cases[0]["rows"]["model"]
    found = summarise(cases, {"wer_model": "one"}, EvaluateConfig(), 0)
    assert found["protocols"] == "unseen,hard" and found["wer_model"] == "one"
    assert (found["wer"], found["ground_truth_wer"], found["hard_wer"]) == (0.15, 0.1, 0.5)
    assert (found["num_cases"], found["hard_num_cases"]) == (2, 1)
    assert found["wer_low"] <= found["wer"] <= found["wer_high"]


def test_loops_and_silence_of_codes_are_counted() -> None:
    codes = np.zeros((8, 9), np.int64)
    codes[0] = [1, 1, 1, 2, 3, 3, 4, 5, 6]
    assert repetition(codes) == 3 / 8
    assert repetition(codes[:, :1]) == 0
    wave = np.concatenate([np.full(16_000, 0.3), np.zeros(16_000)]).astype(np.float32)
    assert silence(wave, 16_000) == 0.5
    assert silence(wave[:10], 16_000) == 1


@pytest.fixture
def waves() -> list[np.ndarray]:
    return [fabricated.voice("dee", 1.0), fabricated.voice("eve", 3.3), np.zeros(10, np.float32)]


def test_metrics_are_what_their_packages_say(waves, tmp_path, monkeypatch) -> None:
    """DNSMOS by speechmos, SIM by resemblyzer, texts by the recogniser alone: all at 16 kHz, called directly."""
    import resemblyzer
    from speechmos import dnsmos

    waves = [wave[: len(wave) // 480 * 480] for wave in waves[:2]]
    speeches = [wave[::2] for wave in waves]  # any 16 kHz signal will do: nothing is resampled below
    config = EvaluateParams()
    heard = Scorer(config, tmp_path).listen(speeches, ASR_RATE)
    asr = load_asr("bundled", config.transcribe.compute_type, "en", 2)
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    for speech, found in zip(speeches, heard, strict=True):
        direct = dnsmos.run(speech, ASR_RATE)
        assert (found.mos.p808, found.mos.sig, found.mos.bak, found.mos.ovrl) == pytest.approx(
            [direct[name] for name in ("p808_mos", "sig_mos", "bak_mos", "ovrl_mos")], abs=1e-6
        )
        voice = encoder.embed_utterance(resemblyzer.preprocess_wav(speech, source_sr=ASR_RATE))
        assert np.allclose(found.voice, voice, atol=1e-5)
        assert found.text == asr.recognise(speech)


def test_word_errors_are_jiwers() -> None:
    wanted = ["the red boat sails", "a small garden by the sea"]
    heard = ["the bed boat", "a small small garden by sea"]
    errors: list[WordErrors] = [word_errors(*pair) for pair in zip(wanted, heard, strict=True)]
    direct = jiwer.process_words(wanted, heard)
    assert corpus_wer(errors) == pytest.approx(direct.wer)
    counts = [sum(getattr(error, kind) for error in errors) for kind in ("substitutions", "deletions", "insertions")]
    assert counts == [direct.substitutions, direct.deletions, direct.insertions]


def test_what_was_heard_once_is_not_heard_again(waves, tmp_path, monkeypatch) -> None:
    first = Scorer(EvaluateParams(), tmp_path).listen(waves, 24_000)
    for name in ("load_asr", "load_speaker_encoder", "Dnsmos"):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("a model was loaded"))
    again = Scorer(EvaluateParams(), tmp_path).listen(list(reversed(waves)), 24_000)
    for one, two in zip(first, reversed(again), strict=True):
        assert one.text == two.text and one.mos == two.mos and np.array_equal(one.voice, two.voice)


class Plain(torch.nn.Module):
    def forward(self, wave: torch.Tensor, rate: int) -> torch.Tensor:
        return 1 + wave.abs().amax(1) + rate / 16000


def test_utmos_is_asked_where_its_weights_are_and_missed_where_they_are_not(waves, tmp_path) -> None:
    path = tmp_path / "utmos.pt"
    torch.jit.script(Plain()).save(str(path))
    config = EvaluateParams(evaluate=EvaluateConfig(utmos=str(path)))
    scorer = Scorer(config, tmp_path / "scores")
    found = scorer.listen(waves[:1], 24_000)[0].utmos
    assert found is not None and 2 < found < 3
    assert "utmos.pt, SHA-256" in scorer.names["utmos_model"]
    with pytest.raises(EvaluationError, match=r"no UTMOS at .*none.pt; .* DNSMOS .* is always measured"):
        Scorer(EvaluateParams(evaluate=EvaluateConfig(utmos=str(tmp_path / "none.pt"))), tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="UTMOS cannot be loaded"):
        Scorer(config, tmp_path / "others").listen(waves[:1], 24_000)
