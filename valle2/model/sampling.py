"""Nucleus and repetition aware sampling: pure functions of logits (VALL-E 2, arXiv:2406.05370, Algorithm 1).

All draws are by inverse transform from uniforms in [0, 1) that the caller makes, one per row, so that a row's codes do
not depend on the rows beside it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Settings of `sample_group`; the meaning of each is in `valle2.config.sampling`."""

    top_p: float = 0.8
    temperature: float = 1.0
    ras_window: int = 10
    ras_threshold: float = 0.1
    count_self: bool = True
    ras_ends: bool = True


def nucleus(probabilities: Float[Tensor, "b v"], top_p: float) -> Float[Tensor, "b v"]:
    """Keep the smallest set of most likely codes whose share reaches `top_p`, and scale it to one.

    At least one code is kept, so `top_p` = 0 is greedy. Of equally likely codes the lower index is kept first.
    """
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    exact = ranked.double()
    kept = exact.cumsum(-1) - exact < top_p
    kept[:, 0] = True
    ranked = ranked * kept
    return torch.zeros_like(probabilities).scatter(-1, order, ranked / ranked.sum(-1, keepdim=True))


def draw(probabilities: Float[Tensor, "b v"], uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    """The code at each row's place in the cumulative distribution; codes of probability 0 are never drawn."""
    cumulative = probabilities.double().cumsum(-1)
    code = torch.searchsorted(cumulative, uniform.double()[:, None] * cumulative[:, -1:], right=True)[:, 0]
    # Rounding can put the place on the very end of the distribution.
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(code, last)


def repeats_too_often(
    code: Int[Tensor, "b"], history: Int[Tensor, "b w"], *, window: int, threshold: float, count_self: bool
) -> Bool[Tensor, "b"]:
    """Whether the repetition ratio r = (1/K) * sum of [code == c_(t'-k)] is above the threshold (Algorithm 1).

    Args:
        code: The codes drawn, c_t'.
        history: What precedes them, newest last: the prompt's codes, the codes generated, and the earlier slots of the
            same group. Negative where there is no history.
        window: K.
        threshold: t_r.
        count_self: Sum from k = 0, as Algorithm 1 is printed, so that a code counts itself; otherwise from k = 1.
    """
    matches = (history[:, max(history.shape[1] - window, 0) :] == code[:, None]).sum(-1) + int(count_self)
    return matches / window > threshold


def sample_group(
    logits: Float[Tensor, "b g v"],
    history: Int[Tensor, "b w"],
    uniforms: Float[Tensor, "b g 2"],
    sampling: Sampling,
    eos: int,
) -> tuple[Int[Tensor, "b g"], Int[Tensor, "b w"]]:
    """Draw one group, slot by slot (Algorithm 1).

    The second draw is from the original distribution: nothing is masked, and there is no nucleus. EOS is exempt from
    the ratio, or a group of EOS would draw itself again. (The paper says neither how EOS is treated.) With `ras_ends`
    off, which is ours, the second draw leaves EOS out: in a pause nearly every code is drawn twice, and where EOS has a
    little of the distribution in every frame, some utterances end in their middle.

    Args:
        logits: Scores of the group's codes.
        history: The last codes before the group, newest last, at least K of them, negative where there are none.
        uniforms: For each slot one number in [0, 1) for the nucleus draw and one for the second draw.
        sampling: Settings.
        eos: The code that ends an utterance.

    Returns:
        The codes, and the history moved on by them.
    """
    group = []
    for slot in range(logits.shape[1]):
        probabilities = (logits[:, slot].float() / sampling.temperature).softmax(-1)
        code = draw(nucleus(probabilities, sampling.top_p), uniforms[:, slot, 0])
        if sampling.ras_window:
            again = (code != eos) & repeats_too_often(
                code,
                history,
                window=sampling.ras_window,
                threshold=sampling.ras_threshold,
                count_self=sampling.count_self,
            )
            if not sampling.ras_ends:
                probabilities[:, eos] = 0
            code = torch.where(again, draw(probabilities, uniforms[:, slot, 1]), code)
        history = torch.cat([history[:, 1:], code[:, None]], 1)
        group.append(code)
    return torch.stack(group, 1), history
