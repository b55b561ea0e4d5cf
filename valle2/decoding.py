"""The AR loop: prefill, then group by group with a key-value cache (VALL-E 2, arXiv:2406.05370, section 3.4).

There is one loop. A batch, an utterance alone and a stream all read it, so repetition aware sampling is the same in
each. Every row has its own random numbers: an utterance does not depend on its company. What becomes of the codes is
`valle2.synthesis`'s; the sampling itself is in `valle2.model.sampling`.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from valle2.config.sampling import SamplingConfig
from valle2.model.ar import ARModel
from valle2.model.sampling import Sampling, sample_group

FinishReason = Literal["eos", "cap"]


def decode_groups(
    ar: ARModel,
    text: Int[Tensor, "b s"],
    text_lengths: Int[Tensor, "b"],
    prompts: list[Int[Tensor, "k _"]],
    seeds: list[int],
    settings: SamplingConfig,
    frame_rate: float,
) -> Iterator[tuple[Int[Tensor, "b g"], list[FinishReason | None]]]:
    """Codebook 0 of the new speech, one group after the other, until every row has ended (3.3.1, Algorithm 1).

    Args:
        ar: The model.
        text: BPE tokens of prompt and target, padded on the right with anything.
        text_lengths: Tokens in each row.
        prompts: All codes of each row's prompt, whole groups.
        seeds: Of each row's random draws.
        settings: Sampling, and the cap.
        frame_rate: Frames per second, for the cap.

    Yields:
        The next group of each row, and why each row has ended, None while it has not. What a row says after its end,
        or behind the first EOS of its last group, is to be left out: `cut` does.
    """
    sampling, size, device = Sampling(**settings.model_dump(exclude={"max_seconds"})), ar.group_size, text.device
    codes, lengths = pad([prompt[0] for prompt in prompts], device)
    caps = (ar.shape.max_frames // size - lengths // size).clamp(
        max=-(-round(settings.max_seconds * frame_rate) // size)
    )
    logits, cache = ar.prefill(text, text_lengths, codes, lengths, int(caps.max()))
    history = torch.full((len(seeds), max(sampling.ras_window, 1)), -1, device=device)
    for row, prompt in enumerate(prompts):
        tail = prompt[0, -history.shape[1] :]
        history[row, history.shape[1] - len(tail) :] = tail
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    reasons: list[FinishReason | None] = [None] * len(seeds)
    num_groups, limits = 0, caps.tolist()
    while True:
        uniforms = torch.stack([torch.rand(size, 2, generator=generator) for generator in generators]).to(device)
        group, history = sample_group(logits, history, uniforms, sampling, ar.eos)
        num_groups += 1
        ends = (group == ar.eos).any(1).tolist()
        for row, (end, limit) in enumerate(zip(ends, limits, strict=True)):
            if reasons[row] is None and (end or num_groups >= limit):
                reasons[row] = "eos" if end else "cap"
        yield group, list(reasons)
        if None not in reasons:
            return
        # Rows that have ended go on with anything, within the tables; nothing of it is kept.
        position = (lengths // size + num_groups - 1).clamp(max=ar.shape.max_frames // size - 1)
        logits = ar.decode_one_group(group.clamp(max=ar.eos - 1), position, cache)


def generate_codes(
    ar: ARModel,
    text: Int[Tensor, "b s"],
    text_lengths: Int[Tensor, "b"],
    prompts: list[Int[Tensor, "k _"]],
    seeds: list[int],
    settings: SamplingConfig,
    frame_rate: float,
    on_frames: Callable[[int], None] | None = None,
) -> list[tuple[Int[Tensor, "_"], FinishReason, int]]:
    """All of `decode_groups` at once.

    Args:
        ar, text, text_lengths, prompts, seeds, settings, frame_rate: As for `decode_groups`.
        on_frames: Called in each step with the frames that all rows together were given.

    Returns:
        For each row the codes before the first EOS, why it ended, and the AR steps taken.
    """
    groups: list[Tensor] = []
    ends: dict[int, tuple[FinishReason, int]] = {}
    for group, reasons in decode_groups(ar, text, text_lengths, prompts, seeds, settings, frame_rate):
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
