import json
from pathlib import Path

import pytest
import torch

from valle2.errors import ShapeError
from valle2.model.ar import ARModel
from valle2.model.grouping import clip_start, fold, unfold
from valle2.model.layers import TransformerShape

SHAPE = TransformerShape(num_layers=2, dim=32, num_heads=4, ffn_dim=64, dropout=0.0, max_text_tokens=16, max_frames=64)
GOLDEN = Path(__file__).parent / "golden" / "tiny_models.json"


def tiny(group_size: int = 2) -> ARModel:
    torch.manual_seed(0)
    return ARModel(SHAPE, vocab_size=20, group_size=group_size, codebook_size=50).eval()


def example(num_rows: int = 3, num_frames: int = 12) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 20, (num_rows, 6), generator=generator)
    codes = torch.randint(0, 50, (num_rows, num_frames), generator=generator)
    return text, torch.tensor([6, 4, 5][:num_rows]), codes, torch.tensor([12, 8, 4][:num_rows])


def test_clip_start_drops_frames_from_the_start() -> None:
    assert clip_start(torch.arange(11), 4).tolist() == list(range(3, 11))
    assert clip_start(torch.arange(16).view(2, 8), 4).shape == (2, 8)


def test_fold_and_unfold_round_trip() -> None:
    codes = torch.arange(24).view(2, 12)
    assert fold(codes, 3)[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert torch.equal(unfold(fold(codes, 3)), codes)


def test_fold_rejects_ragged_time() -> None:
    with pytest.raises(ShapeError, match="7 frames do not fold into groups of 2"):
        fold(torch.zeros(1, 7, dtype=torch.long), 2)


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_a_later_group_changes_no_earlier_score(group_size: int) -> None:
    model = tiny(group_size)
    text, text_lengths, codes, _ = example(1)
    lengths = torch.tensor([12 // group_size])
    changed = codes.clone()
    changed[:, 8:] = 0
    states = []
    for one in (codes, changed):
        x, starts = model.embed(text, text_lengths, fold(one, group_size), lengths)
        states.append(model.transformer(x))
    same = int(starts[2]) + 8 // group_size
    assert torch.equal(states[0][:, :same], states[1][:, :same])
    assert not torch.allclose(states[0][:, same:], states[1][:, same:])


def test_text_is_causal_too() -> None:
    model = tiny()
    text, text_lengths, codes, _ = example(1)
    changed = text.clone()
    changed[0, 4] += 1
    states = [model.transformer(model.embed(one, text_lengths, fold(codes, 2), torch.tensor([6]))[0])
              for one in (text, changed)]  # fmt: skip
    assert torch.equal(states[0][:, :4], states[1][:, :4])
    assert not torch.allclose(states[0][:, 4:], states[1][:, 4:])


def test_padding_does_not_change_the_loss() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    together = model.loss(text, text_lengths, codes, lengths)["loss"]
    total = weight = 0.0
    for row in range(3):
        s, t = int(text_lengths[row]), int(lengths[row])
        alone = model.loss(
            text[row : row + 1, :s], text_lengths[row : row + 1], codes[row : row + 1, :t], lengths[row : row + 1]
        )
        total += alone["loss"].item() * (t + 2)
        weight += t + 2
    assert together.item() == pytest.approx(total / weight, abs=1e-5)


def test_loss_is_mean_over_codes_and_a_whole_group_of_eos() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = (value[:1] for value in example())
    x, starts = model.embed(text, text_lengths, fold(codes, 2), lengths // 2)
    scores = model.logits(model.transformer(x)[0, int(starts[2]) - 1 :]).flatten(0, 1).log_softmax(-1)
    targets = torch.cat([codes[0], torch.tensor([model.eos] * 2)])
    literal = -scores[torch.arange(14), targets].mean()
    assert model.loss(text, text_lengths, codes, lengths)["loss"].item() == pytest.approx(literal.item(), abs=1e-5)


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_the_loss_of_the_slots_is_that_of_the_frames_at_their_place_in_a_group(group_size: int) -> None:
    model, (text, text_lengths, codes, lengths) = tiny(group_size), example()
    figures = model.loss(text, text_lengths, codes, lengths, slots=True)
    slots = torch.stack([figures[f"loss_slot_{slot}"] for slot in range(group_size)])
    assert f"loss_slot_{group_size}" not in figures
    torch.testing.assert_close(slots.mean(), figures["loss"])
    assert "loss_slot_0" not in model.loss(text, text_lengths, codes, lengths)
    if group_size > 1:
        # The last frame of each group told right or wrong moves no other slot's loss: codes in a group are independent.
        changed = codes.clone()
        last = [int(length) - 1 for length in lengths]
        changed[torch.arange(3), last] = (codes[torch.arange(3), last] + 1) % 50
        other = model.loss(text, text_lengths, changed, lengths, slots=True)
        assert not torch.isclose(other[f"loss_slot_{group_size - 1}"], slots[-1])


def test_guidance_is_attention_to_the_next_word_and_knowledge_of_the_last() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    text_words = torch.tensor([[1, 1, 2, 3, 3, 4], [1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 2, 0]])
    code_words = torch.tensor([[1] * 4 + [2] * 2 + [3] * 2 + [4] * 4, [1] * 2 + [2] * 4 + [3] * 2 + [0] * 4,
                               [1] * 2 + [2] * 2 + [0] * 8])  # fmt: skip
    figures = model.loss(text, text_lengths, codes, lengths, (text_words, code_words))
    assert figures["loss"] == model.loss(text, text_lengths, codes, lengths)["loss"]
    x, starts = model.embed(text, text_lengths, fold(codes, 2), lengths // 2)
    block = model.transformer.blocks[1]
    seen = model.transformer.blocks[0](x, causal=True)
    read = block.attention_norm(seen)
    query, key = (part[..., :8] for part in block.attention.qkv(read).split(32, -1)[:2])
    wanted, told = [], []
    for row in range(3):
        for group in range(int(lengths[row]) // 2):
            place = int(starts[2][row]) + group - 1
            shares = (key[row, : place + 1] @ query[row, place] / 8**0.5).softmax(0)
            word = code_words[row, 2 * group]
            wanted.append(-sum(shares[i] for i in range(6) if text_words[row, i] == word).log().item())
            state = seen[row, place + 1]
            state = (state - state.mean()) / (state.var(unbiased=False) + 1e-5).sqrt()
            first = text[row, text_words[row].tolist().index(word)]
            told.append(-(3.0 * model.text_embedding.weight @ state).log_softmax(0)[first].item())
    assert figures["guide"].item() == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
    assert figures["word"].item() == pytest.approx(sum(told) / len(told), abs=1e-5)


def test_group_of_one_has_no_group_layers() -> None:
    assert not any("group_embedding" in name or "group_prediction" in name for name, _ in tiny(1).named_parameters())
    names = dict(tiny(4).named_parameters())
    assert names["group_embedding.weight"].shape == (32, 4 * 32)
    assert names["group_prediction.weight"].shape == (4 * 32, 32)


def test_head_is_the_code_embedding() -> None:
    model = tiny(1)
    hidden = torch.randn(3, 32)
    assert torch.equal(model.logits(hidden)[:, 0], hidden @ model.code_embedding.weight.T)
    assert not any("head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("group_size", [1, 2])
def test_cached_decoding_equals_reading_everything_again(group_size: int) -> None:
    model = tiny(group_size)
    text, text_lengths, codes, _ = example()
    prompt = torch.tensor([4, 8, 0])
    scores, cache = model.prefill(text, text_lengths, codes[:, :8], prompt, 3)
    new = torch.randint(0, 50, (3, 3, group_size), generator=torch.Generator().manual_seed(2))
    for step in range(3):
        scores = model.decode_one_group(new[:, step], prompt // group_size + step, cache)
        for row in range(3):
            whole = torch.cat([codes[row, : prompt[row]], new[row, : step + 1].flatten()])[None]
            uncached, _ = model.prefill(
                text[row : row + 1, : text_lengths[row]], text_lengths[row : row + 1], whole,
                torch.tensor([whole.shape[1]]), 0,
            )  # fmt: skip
            torch.testing.assert_close(scores[row], uncached[0], atol=1e-5, rtol=1e-5)


def test_too_long_text_names_the_limit() -> None:
    model = tiny()
    with pytest.raises(ShapeError, match="17 text tokens, but the position table has 16"):
        model.prefill(torch.zeros(1, 17, dtype=torch.long), torch.tensor([17]), torch.zeros(1, 2, dtype=torch.long),
                      torch.tensor([2]), 1)  # fmt: skip


def test_seeded_model_matches_golden_file() -> None:
    golden = json.loads(GOLDEN.read_text())["ar_loss"]
    assert tiny().loss(*example())["loss"].item() == pytest.approx(golden, abs=1e-4)
