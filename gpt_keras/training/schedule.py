"""The learning rate over a run, as a function of how much of it is done.

Progress is the share of the steps, or of the minutes, that the run was given. So a run with a time budget always ends
with its schedule complete, on a fast machine and on a slow one.
"""

from __future__ import annotations

import math


def learning_rate_factor(kind: str, step: int, progress: float, warmup_steps: int, decay: float) -> float:
    """What the peak learning rate is multiplied with, 0 to 1.

    Args:
        kind: `wsd`, warm up, stay, decay linearly to 0 (Hu et al. 2024, https://arxiv.org/abs/2404.06395); `cosine`
            (Loshchilov and Hutter 2016) down to a tenth; `linear`, down to 0 from the start.
        step: Steps done.
        progress: Share of the run that is done, 0 to 1.
        warmup_steps: Steps over which the rate rises linearly from 0.
        decay: For `wsd`, the share of the run at its end over which the rate falls.
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    left = max(0.0, 1.0 - progress)
    if kind == "cosine":
        return warmup * (0.1 + 0.45 * (1.0 + math.cos(math.pi * min(1.0, progress))))
    if kind == "linear":
        return warmup * left
    return warmup * min(1.0, left / decay if decay > 0 else 1.0)
