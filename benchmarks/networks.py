"""Times SE-, CBAM- and SK-ResNet-50 in five ways; chapter 9 prints its table.

    python benchmarks/networks.py --threads 1 --batch 4 --rounds 11

Each row is a way to run the same network in evaluation mode, each number the least time of the
plain way divided by the least of this one: 2.00 is twice as fast. Networks and ways take turns, so
that what else the machine does falls on all of them.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from attn_course import create_network

Way = Callable[[Tensor], Tensor]
BASELINE = "none"


def ways(attention: str | None, x: Tensor, compiled: bool) -> dict[str, tuple[Way, Tensor]]:
    """Each way to run the network, with its input."""
    torch.manual_seed(0)
    net = create_network("resnet50", attention).eval()
    torch.manual_seed(0)
    last = create_network("resnet50", attention).eval().to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)

    def autocast(run: Way) -> Way:
        def inner(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                return run(x)

        return inner

    found: dict[str, tuple[Way, Tensor]] = {
        "as it is": (net, x),
        "channels_last": (last, x_last),
        "bfloat16": (autocast(net), x),
        "channels_last, bfloat16": (autocast(last), x_last),
    }
    if compiled:
        found["torch.compile"] = (torch.compile(net), x)
        found["torch.compile, channels_last"] = (torch.compile(last), x_last)
        found["all three"] = (autocast(torch.compile(last)), x_last)
    return found


@torch.inference_mode()
def least(
    runs: dict[tuple[str, str], tuple[Way, Tensor]], rounds: int
) -> dict[tuple[str, str], float]:
    """The least seconds of each way, after one run that is not counted."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    torch._dynamo.config.cache_size_limit = 64  # many networks share one class
    for counted in range(rounds + 1):
        for name, (run, x) in runs.items():
            synchronise(x)
            start = time.perf_counter()
            run(x)
            synchronise(x)
            if counted:
                times[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def synchronise(x: Tensor) -> None:
    """Waits for the accelerator, if there is one."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measures, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    x = torch.randn(shape, device=arguments.device)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {arguments}", flush=True)
    runs = {}
    for attention in (None, "se", "cbam", "sk"):
        with torch.device(arguments.device):
            found = ways(attention, x, not arguments.no_compile)
        runs |= {(attention or BASELINE, way): run for way, run in found.items()}
    columns: dict[str, dict[str, float]] = {}
    for (attention, way), seconds in least(runs, arguments.rounds).items():
        columns.setdefault(attention, {})[way] = seconds
    rows = next(iter(columns.values()))
    print("| | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for row in rows:
        ratios = (values["as it is"] / values[row] for values in columns.values())
        print(f"| {row} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    plain = columns[BASELINE]["as it is"]
    times = (f"{values['as it is'] / plain:.2f}" for values in columns.values())
    print("| time against ResNet-50 | " + " | ".join(times) + " |")


if __name__ == "__main__":
    main()
