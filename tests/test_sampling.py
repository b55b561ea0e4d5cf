from collections.abc import Sequence

import pytest
import torch
from scipy.stats import chisquare

from valle2.model.sampling import Sampling, draw, nucleus, repeats_too_often, sample_group

EOS = 19


def literal_nucleus(p: Sequence[float], top_p: float) -> list[float]:
    kept, total = [0.0] * len(p), 0.0
    for code in sorted(range(len(p)), key=lambda c: (-p[c], c)):
        kept[code] = p[code]
        total += p[code]
        if total >= top_p:
            break
    return [value / sum(kept) for value in kept]


def literal_draw(p: Sequence[float], uniform: float) -> int:
    place, total = uniform * sum(p), 0.0
    for code, value in enumerate(p):
        total += value
        if place < total:
            return code
    return max(code for code, value in enumerate(p) if value > 0)


def literal_group(
    logits: torch.Tensor, history: list[int], uniforms: torch.Tensor, s: Sampling, eos: int = EOS
) -> list[int]:
    """Algorithm 1 as it is printed, one row, in Python numbers."""
    made: list[int] = []
    for slot in range(len(logits)):
        p = (logits[slot] / s.temperature).softmax(-1).tolist()
        code = literal_draw(literal_nucleus(p, s.top_p), float(uniforms[slot, 0]))
        if s.ras_window and code != eos:
            line = [*history, *made, code]
            first = 0 if s.count_self else 1
            seen = line[::-1][first : s.ras_window + 1]
            if sum(other == code for other in seen) / s.ras_window > s.ras_threshold:
                code = literal_draw(p, float(uniforms[slot, 1]))
        made.append(code)
    return made


def run(logits: torch.Tensor, history: list[int], s: Sampling, seed: int = 0) -> list[int]:
    uniforms = torch.rand(1, len(logits), 2, generator=torch.Generator().manual_seed(seed))
    return sample_group(logits[None], torch.tensor([history]), uniforms, s, EOS)[0][0].tolist()


@pytest.mark.parametrize("count_self", [True, False])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.8, 1.0])
def test_equals_the_literal_algorithm(top_p: float, count_self: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    settings = Sampling(top_p, 1.0, 10, 0.1, count_self)
    for trial in range(60):
        logits = torch.randn(4, 20, generator=generator) * 3
        history = torch.randint(0, 20, (10,), generator=generator).tolist()
        uniforms = torch.rand(1, 4, 2, generator=generator)
        expected = literal_group(logits, history, uniforms[0], settings)
        made, _ = sample_group(logits[None], torch.tensor([history]), uniforms, settings, EOS)
        assert made[0].tolist() == expected, trial


@pytest.mark.parametrize("count_self", [True, False])
def test_group_follows_the_exact_distribution(count_self: bool) -> None:
    """Both slots of a group against the probabilities that Algorithm 1 implies, by a chi-squared test."""
    generator = torch.Generator().manual_seed(11)
    settings = Sampling(0.7, 1.3, 10, 0.1, count_self)
    logits = torch.randn(2, 20, generator=generator) * 1.5
    logits[:, EOS] += 1.0
    history = torch.randint(0, 20, (10,), generator=generator).tolist()
    exact = torch.zeros(20, 20, dtype=torch.double)
    for first, share in enumerate(literal_distribution(logits[0], history, settings)):
        second = literal_distribution(logits[1], [*history[1:], first], settings)
        exact[first] = share * torch.tensor(second, dtype=torch.double)
    rows = 200_000
    uniforms = torch.rand(rows, 2, 2, generator=generator)
    made, _ = sample_group(
        logits.expand(rows, 2, 20), torch.tensor([history]).expand(rows, 10), uniforms, settings, EOS
    )
    counts = torch.bincount(made[:, 0] * 20 + made[:, 1], minlength=400)
    expected = exact.flatten() * rows
    assert not counts[expected == 0].any()
    usual = expected >= 10
    observed = torch.cat([counts[usual], counts[~usual].sum()[None]]).numpy()
    wanted = torch.cat([expected[usual], expected[~usual].sum()[None]]).numpy()
    assert usual.sum() > 40
    assert chisquare(observed, wanted).pvalue > 0.01


def literal_distribution(logits: torch.Tensor, history: list[int], s: Sampling) -> list[float]:
    """Probability of each code: drawn from the nucleus and kept, or drawn again from all."""
    p = (logits.double() / s.temperature).softmax(-1).tolist()
    first = literal_nucleus(p, s.top_p)
    again = [
        code != EOS and (history[-s.ras_window :].count(code) + int(s.count_self)) / s.ras_window > s.ras_threshold
        for code in range(len(p))
    ]
    drawn_again = sum(share for share, repeated in zip(first, again, strict=True) if repeated)
    return [(0.0 if repeated else share) + drawn_again * whole
            for share, repeated, whole in zip(first, again, p, strict=True)]  # fmt: skip


@pytest.mark.parametrize("ras_ends", [True, False])
def test_second_draw_may_end_the_utterance_as_printed(ras_ends: bool) -> None:
    """Code 3 repeats, so every row is drawn again: from all codes, or, with `ras_ends` off, from all but EOS."""
    p = torch.full((20,), 0.005)
    p[3], p[EOS] = 0.6, 0.31
    rows = 20_000
    uniforms = torch.rand(rows, 1, 2, generator=torch.Generator().manual_seed(9))
    settings = Sampling(top_p=0.5, ras_ends=ras_ends)
    made, _ = sample_group(p.log().expand(rows, 1, 20), torch.full((rows, 10), 3), uniforms, settings, EOS)
    shares = torch.bincount(made[:, 0], minlength=20) / rows
    wanted = p if ras_ends else p * (torch.arange(20) != EOS)
    torch.testing.assert_close(shares, wanted / wanted.sum(), atol=0.015, rtol=0)
    assert (shares[EOS] > 0) == ras_ends


def test_top_p_zero_is_greedy() -> None:
    logits = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    assert run(logits, [-1], Sampling(top_p=0.0, ras_window=0)) == logits.argmax(-1).tolist()


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    p = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
    torch.testing.assert_close(nucleus(p, 0.7), torch.tensor([[0.0, 2 / 3, 1 / 3, 0.0]]))
    torch.testing.assert_close(nucleus(p, 0.5), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(nucleus(p, 1.0), p)


def test_draw_follows_the_distribution() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(5))
    counts = torch.bincount(draw(p.expand(20_000, -1), uniforms), minlength=4) / 20_000
    assert counts[1] == 0
    torch.testing.assert_close(counts, p, atol=0.012, rtol=0)


def test_draw_never_takes_an_impossible_code() -> None:
    p = torch.tensor([[0.3, 0.7, 0.0]])
    assert draw(p, torch.tensor([1.0])).item() == 1
    assert draw(torch.tensor([[0.0, 1.0]]), torch.tensor([0.0])).item() == 1


@pytest.mark.parametrize(("matches", "count_self", "again"),
                         [(0, True, False), (1, True, True), (1, False, False), (2, False, True)])  # fmt: skip
def test_ratio_counts_the_code_itself_as_printed(matches: int, count_self: bool, again: bool) -> None:
    history = torch.tensor([[7] * matches + [0] * (10 - matches)])
    found = repeats_too_often(torch.tensor([7]), history, window=10, threshold=0.1, count_self=count_self)
    assert bool(found) is again


def test_only_the_last_k_codes_count() -> None:
    history = torch.tensor([[7, 0, 0, 0]])
    assert not repeats_too_often(torch.tensor([7]), history, window=3, threshold=0.4, count_self=True)
    assert repeats_too_often(torch.tensor([7]), history, window=4, threshold=0.4, count_self=True)


def test_second_draw_is_from_the_unmasked_original_distribution() -> None:
    # Greedy takes 3; it is in the history, so it is drawn again, from all codes, 3 itself included.
    p = torch.full((20,), 0.4 / 19)
    p[3] = 0.6
    rows = 20_000
    uniforms = torch.rand(rows, 1, 2, generator=torch.Generator().manual_seed(6))
    history = torch.full((rows, 10), 3)
    made, _ = sample_group(p.log().expand(rows, 1, 20), history, uniforms, Sampling(top_p=0.0), EOS)
    shares = torch.bincount(made[:, 0], minlength=20) / rows
    torch.testing.assert_close(shares, p, atol=0.012, rtol=0)


def test_earlier_slots_of_the_group_are_history() -> None:
    logits = torch.full((2, 20), -20.0)
    logits[:, 3] = 0.0
    logits[1, 4] = -0.1
    settings = Sampling(top_p=0.0)
    second = {run(logits, [-1] * 10, settings, seed)[1] for seed in range(20)}
    assert second == {3, 4}
    assert {run(logits[1:], [-1] * 10, settings, seed)[0] for seed in range(20)} == {3}


def test_history_moves_on_by_the_group() -> None:
    logits = torch.full((2, 20), -20.0)
    logits[0, 3], logits[1, 4] = 0.0, 0.0
    _, history = sample_group(logits[None], torch.tensor([[7, 8, 9]]), torch.zeros(1, 2, 2), Sampling(top_p=0.0), EOS)
    assert history.tolist() == [[9, 3, 4]]


def test_eos_is_exempt() -> None:
    logits = torch.zeros(4, 20)
    logits[:, EOS] = 1.0
    assert run(logits, [EOS] * 10, Sampling(top_p=0.0)) == [EOS] * 4


def test_rows_do_not_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(8)
    logits, uniforms = torch.randn(5, 2, 20, generator=generator), torch.rand(5, 2, 2, generator=generator)
    history = torch.randint(0, 20, (5, 10), generator=generator)
    together, _ = sample_group(logits, history, uniforms, Sampling(), EOS)
    for row in range(5):
        one = slice(row, row + 1)
        assert torch.equal(sample_group(logits[one], history[one], uniforms[one], Sampling(), EOS)[0], together[one])
