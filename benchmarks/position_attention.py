"""Time and peak memory of position attention, in chunks and with the whole n × n matrix.

Chapter 07 prints what this measured at 96 × 96 positions. From the root of the repository:

    python benchmarks/position_attention.py 32 64 96
"""

import os
import sys
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from attn_course.dual_attention import PositionAttention

Form = Callable[[Tensor], Tensor]

os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler's log lines are not for us
RUNS = 4
module = PositionAttention(channels=512)
torch.nn.init.ones_(module.alpha)


def whole_matrix(x: Tensor) -> Tensor:
    """The form of the authors' released code: all scores exist at once."""
    q, k, v = (layer(x).flatten(2) for layer in (module.query, module.key, module.value))
    weights = (q.mT @ k).softmax(2)  # (b, n, n)
    return x + module.alpha * (v @ weights.mT).view_as(x)  # (b, c, h, w)


def forward(form: Form, x: Tensor) -> None:
    with torch.no_grad():
        form(x)


def forward_and_backward(form: Form, x: Tensor) -> None:
    form(x.clone().requires_grad_()).sum().backward()


def milliseconds(run: Callable[[Form, Tensor], None], form: Form, x: Tensor) -> float:
    start = time.perf_counter()
    run(form, x)
    return 1000 * (time.perf_counter() - start)


def peak(run: Callable[[Form, Tensor], None], form: Form, x: Tensor) -> float:
    """The largest sum of what was allocated and not yet freed, in MiB."""
    with torch.profiler.profile(profile_memory=True) as record:
        run(form, x)
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes)) / 2**20


def main(sides: list[int]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    forms = {"whole matrix": whole_matrix, "chunks": module}
    for side in sides:
        x = torch.randn(1, 512, side, side)
        torch.testing.assert_close(module(x), whole_matrix(x))
        for run in (forward, forward_and_backward):
            # In turns, so that whatever else the machine does meets both.
            rounds = [[milliseconds(run, form, x) for form in forms.values()] for _ in range(RUNS)]
            best = [min(times) for times in zip(*rounds, strict=True)]
            for (name, form), least in zip(forms.items(), best, strict=True):
                mib = peak(run, form, x)
                print(f"{side}² {run.__name__:20} {name:12} {least:7.0f} ms {mib:6.0f} MiB")


if __name__ == "__main__":
    main([int(side) for side in sys.argv[1:]] or [32, 64, 96])
