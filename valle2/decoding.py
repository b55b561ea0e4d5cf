"""The AR loop: prefill, then group by group with a key-value cache (VALL-E 2, arXiv:2406.05370, section 3.4).

There is one loop. A batch, an utterance alone and a stream all read it, so repetition aware sampling is the same in
each. Every row has its own random numbers: an utterance does not depend on its company. A turn of the loop is in
`valle2.model.step`, the sampling in `valle2.model.sampling`; what becomes of the codes is `valle2.synthesis`'s.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from valle2.model.ar import ARModel
from valle2.model.sampling import Sampling
from valle2.model.step import ar_step

FinishReason = Literal["eos", "cap"]
TURNS_AT_ONCE = 64
"""Turns whose random numbers are drawn together: drawing costs more than the numbers."""


@torch.inference_mode()
def decode_groups(
    ar: ARModel,
    text: Int[Tensor, "b s"],
    text_lengths: Int[Tensor, "b"],
    prompts: list[Int[Tensor, "k _"]],
    seeds: list[int],
    sampling: Sampling,
    max_frames: int,
) -> Iterator[tuple[Int[Tensor, "b g"], list[FinishReason | None]]]:
    """Codebook 0 of the new speech, one group after the other, until every row has ended (3.3.1, Algorithm 1).

    Args:
        ar: The model.
        text: BPE tokens of prompt and target, padded on the right with anything.
        text_lengths: Tokens in each row.
        prompts: All codes of each row's prompt, whole groups.
        seeds: Of each row's random draws.
        sampling: Settings of the draws.
        max_frames: The cap: frames of new speech after which a row is stopped, made whole groups.

    Yields:
        The next group of each row, and why each row has ended, None while it has not. What a row says after its end,
        or behind the first EOS of its last group, is to be left out: `cut` does.
    """
    size = ar.group_size
    codes, lengths = pad([prompt[0] for prompt in prompts], text.device)
    limits = (ar.shape.max_frames // size - lengths // size).clamp(max=-(-max_frames // size)).tolist()
    reasons: list[FinishReason | None] = [None] * len(seeds)
    num_keys = text.shape[1] + 2 + codes.shape[1] // size + max(limits)
    uniforms = draw_uniforms(seeds, size)
    with ar_step(ar, len(seeds), num_keys, sampling) as step:
        step.start(text, text_lengths, codes, lengths, next(uniforms))
        for num_groups in count(1):
            for row, (end, limit) in enumerate(zip(step.ended.tolist(), limits, strict=True)):
                if reasons[row] is None and (end or num_groups >= limit):
                    reasons[row] = "eos" if end else "cap"
            yield step.group.clone(), list(reasons)
            if None not in reasons:
                return
            step.turn(next(uniforms))


def draw_uniforms(seeds: list[int], group_size: int) -> Iterator[Float[Tensor, "b g 2"]]:
    """Random numbers in [0, 1) for each turn, each row's from its own seed; the same on every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        drawn = [torch.rand(TURNS_AT_ONCE, group_size, 2, generator=generator) for generator in generators]
        yield from torch.stack(drawn, 1)


def generate_codes(
    ar: ARModel,
    text: Int[Tensor, "b s"],
    text_lengths: Int[Tensor, "b"],
    prompts: list[Int[Tensor, "k _"]],
    seeds: list[int],
    sampling: Sampling,
    max_frames: int,
    on_frames: Callable[[int], None] | None = None,
) -> list[tuple[Int[Tensor, "_"], FinishReason, int]]:
    """All of `decode_groups` at once.

    Args:
        ar, text, text_lengths, prompts, seeds, sampling, max_frames: As for `decode_groups`.
        on_frames: Called in each step with the frames that all rows together were given.

    Returns:
        For each row the codes before the first EOS, why it ended, and the AR steps taken.
    """
    groups: list[Tensor] = []
    ends: dict[int, tuple[FinishReason, int]] = {}
    for group, reasons in decode_groups(ar, text, text_lengths, prompts, seeds, sampling, max_frames):
        groups.append(group)
        if on_frames is not None:
            on_frames((len(seeds) - len(ends)) * ar.group_size)
        for row, reason in enumerate(reasons):
            if reason is not None:
                ends.setdefault(row, (reason, len(groups)))
    stream = torch.cat(groups, 1)
    return [
        (cut(stream[row, : num * ar.group_size], ar.eos), reason, num) for row, (reason, num) in sorted(ends.items())
    ]


def cut(codes: Int[Tensor, "t"], eos: int) -> Int[Tensor, "u"]:
    """What comes before the first EOS, in whatever slot it is; all if there is none."""
    ends = (codes == eos).nonzero()
    return codes[: int(ends[0])] if len(ends) else codes


def pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Int[Tensor, "b"]]:
    """Stack tensors that differ in their last axis, with zeros on the right.

    Returns:
        The stack, and each row's length.
    """
    lengths = torch.tensor([row.shape[-1] for row in rows], device=device)
    padded = torch.zeros(len(rows), *rows[0].shape[:-1], int(lengths.max()), dtype=torch.long, device=device)
    for place, row in zip(padded, rows, strict=True):
        place[..., : row.shape[-1]] = row
    return padded, lengths
