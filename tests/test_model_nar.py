import json

import pytest
import torch

from tests.test_model_ar import GOLDEN, SHAPE
from valle2.model.nar import NARModel, draw_condition_lengths


def tiny() -> NARModel:
    torch.manual_seed(0)
    return NARModel(SHAPE, vocab_size=20, num_codebooks=4, codebook_size=50).eval()


def example() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, 20, (3, 6), generator=generator)
    codes = torch.randint(0, 50, (3, 4, 12), generator=generator)
    return text, torch.tensor([6, 4, 5]), codes, torch.tensor([12, 8, 10])


CONDITION = torch.tensor([6, 4, 2])


def test_a_later_frame_changes_earlier_states() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    changed = codes.clone()
    changed[0, 0, 11] = (changed[0, 0, 11] + 1) % 50
    states = [model.hidden(text, text_lengths, one, lengths, 1, CONDITION) for one in (codes, changed)]
    assert not torch.allclose(states[0][0, 0], states[1][0, 0])
    assert torch.equal(states[0][1:], states[1][1:])


def test_padding_is_never_attended_to() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    changed_text, changed = text.clone(), codes.clone()
    changed_text[1, 4:], changed[1, :, 8:] = 0, 0
    one = model.loss(text, text_lengths, codes, lengths, 2, CONDITION)["loss"]
    assert torch.equal(one, model.loss(changed_text, text_lengths, changed, lengths, 2, CONDITION)["loss"])


def test_finer_codebooks_are_read_in_the_condition_only() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    reference = model.hidden(text, text_lengths, codes, lengths, 2, CONDITION)
    behind = codes.clone()
    behind[0, 2:, 6:] = 7
    assert torch.equal(reference, model.hidden(text, text_lengths, behind, lengths, 2, CONDITION))
    inside = codes.clone()
    inside[0, 3, 5] = (inside[0, 3, 5] + 1) % 50
    assert not torch.allclose(reference[0], model.hidden(text, text_lengths, inside, lengths, 2, CONDITION)[0])


def test_loss_is_on_frames_behind_the_condition_only() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    hidden = model.hidden(text, text_lengths, codes, lengths, 3, CONDITION)
    scores = model.logits(hidden, 3).log_softmax(-1)
    literal = [
        -scores[row, t, codes[row, 3, t]] for row in range(3) for t in range(int(CONDITION[row]), int(lengths[row]))
    ]
    loss = model.loss(text, text_lengths, codes, lengths, 3, CONDITION)["loss"]
    assert loss.item() == pytest.approx(torch.stack(literal).mean().item(), abs=1e-5)


def test_codebooks_have_distinct_embeddings_that_are_their_heads() -> None:
    model = tiny()
    weights = [embedding.weight for embedding in model.code_embeddings]
    assert len({weight.data_ptr() for weight in weights}) == 4
    hidden = torch.randn(5, 32)
    for codebook in range(1, 4):
        assert torch.equal(model.logits(hidden, codebook), hidden @ weights[codebook].T)


def test_code_id_says_which_codebook_is_predicted() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    before = model.hidden(text, text_lengths, codes, lengths, 2, CONDITION)
    with torch.no_grad():
        model.code_id_embedding.weight[1] += 1
    assert not torch.allclose(before, model.hidden(text, text_lengths, codes, lengths, 2, CONDITION))
    with torch.no_grad():
        model.code_id_embedding.weight[1] -= 1
        model.code_id_embedding.weight[0] += 1
    torch.testing.assert_close(before, model.hidden(text, text_lengths, codes, lengths, 2, CONDITION))


def test_condition_is_half_or_three_to_thirty_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    short = draw_condition_lengths(torch.tensor([75, 301, 450]), 75.0, generator)
    assert short.tolist() == [37, 150, 225]
    long = torch.cat([draw_condition_lengths(torch.full((500,), 20_000), 75.0, generator)])
    assert 225 <= int(long.min()) < 300 and 2200 < int(long.max()) <= 2250


def test_generation_keeps_the_prompt_and_the_first_codebook_and_is_greedy() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    made = model.generate(text, text_lengths, codes, lengths, CONDITION)
    for row in range(3):
        assert torch.equal(made[row, :, : CONDITION[row]], codes[row, :, : CONDITION[row]])
    assert torch.equal(made[:, 0], codes[:, 0])
    hidden = model.hidden(text, text_lengths, made, lengths, 3, CONDITION)
    best = model.logits(hidden, 3).argmax(-1)
    assert torch.equal(made[0, 3, 6:12], best[0, 6:12])


def test_batched_generation_equals_one_by_one() -> None:
    model = tiny()
    text, text_lengths, codes, lengths = example()
    made = model.generate(text, text_lengths, codes, lengths, CONDITION)
    for row in range(3):
        one = slice(row, row + 1)
        s, t = int(text_lengths[row]), int(lengths[row])
        alone = model.generate(text[one, :s], text_lengths[one], codes[one, :, :t], lengths[one], CONDITION[one])
        assert torch.equal(made[row, :, :t], alone[0])


def test_seeded_model_matches_golden_file() -> None:
    golden = json.loads(GOLDEN.read_text())["nar_loss"]
    assert tiny().loss(*example(), 2, CONDITION)["loss"].item() == pytest.approx(golden, abs=1e-4)
