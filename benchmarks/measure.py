"""Measures what the course says about speed and memory, and writes it down.

    python benchmarks/measure.py --authors FOLDER        # all of it, into benchmarks/results.json
    python benchmarks/measure.py --only modules          # one part; the file keeps the others
    python benchmarks/measure.py --device cuda           # into benchmarks/results_cuda.json
    python benchmarks/measure.py --rehearse --out FILE   # one round of tiny shapes, for the tests
    python benchmarks/measure.py --page                  # docs/speed.md anew, from the file

Leave the machine alone meanwhile. What is compared is in `contests.py`; FOLDER holds clones of the
repositories of tests/golden/README.md. All entries of a contest take turns in one process, so that
whatever else the machine does meets all of them; a number is the median of its rounds. The peak is
the most that was allocated and not yet freed, beyond weights and input.
"""

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from contests import BFLOAT, BOTH, LAST, PARTS, REHEARSAL, Contest, Entry, Scale
from torch import Tensor

from attn_course.course import speed

os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler's log lines are not for us
SECONDS = {"modules": 2.5, "sweeps": 1.5, "networks": 360, "compiled": 10}  # a contest's rounds
ROUNDS = (3, 25)  # no fewer, no more
SAMPLE = 5e-3  # seconds: what is shorter runs several times in a row


class Contestant:
    """An entry, ready to run."""

    def __init__(self, entry: Entry, device: str, rehearsal: bool) -> None:
        torch.manual_seed(0)
        self.entry, self.times, self.repeats = entry, [], 1
        self.module = entry.make().to(device).eval()
        self.x = torch.randn(entry.shape, device=device)
        if entry.layout == LAST:
            self.module = self.module.to(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        if entry.compiled:
            self.module = torch.compile(self.module, backend="eager" if rehearsal else "inductor")
        self.picture = len(entry.shape) == 4 and entry.shape[1] == 3  # whose gradient nobody wants
        self.inputs = [*self.module.parameters(), *([] if self.picture else [self.x])]
        with torch.no_grad():
            self.gradient = torch.randn_like(self.apply())

    def apply(self) -> Tensor:
        """The result, under autocast where the entry wants that."""
        half = self.entry.dtype == BFLOAT
        with torch.autocast(self.x.device.type, torch.bfloat16) if half else nullcontext():
            return self.module(self.x)

    def run(self) -> None:
        """What is timed."""
        if self.entry.run == BOTH:
            torch.autograd.grad(self.apply(), self.inputs, self.gradient, allow_unused=True)
        else:
            with torch.no_grad():
                self.apply()

    def prepare(self) -> None:
        """Sets the mode: entries may share a module."""
        both = self.entry.run == BOTH
        self.module.train(both)
        self.x.requires_grad_(both and not self.picture)

    def warm_up(self) -> float:
        """Finds how many runs make a turn, after one that is slow; returns the turn's seconds."""
        self.take_turn()
        if self.entry.compiled or self.times[-1] < 20 * SAMPLE:
            self.take_turn()
        self.repeats = max(1, round(SAMPLE / self.times[-1]))
        seconds = self.repeats * self.times[-1]
        self.times.clear()
        return seconds

    def take_turn(self) -> None:
        """Runs, and notes the seconds."""
        self.prepare()
        synchronise(self.x)
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.run()
        synchronise(self.x)
        self.times.append((time.perf_counter() - start) / self.repeats)

    def peak(self) -> float:
        """The most MiB that one run needs beyond weights and input."""
        self.prepare()
        if self.x.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        with torch.profiler.profile(profile_memory=True) as record:
            self.run()
        events = record.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        return max(accumulate(change for _, change in changes), default=0) / 2**20

    def row(self) -> dict[str, Any]:
        """What is written down."""
        entry = self.entry
        low, middle, high = quartiles(self.times)
        return {
            "what": entry.what,
            "rival": entry.rival,
            "shape": list(entry.shape),
            "run": entry.run,
            "dtype": entry.dtype,
            "layout": entry.layout,
            "compiled": entry.compiled,
            "ms": significant(1000 * middle),
            "spread": significant(1000 * (high - low)),
            "rounds": len(self.times),
            "mib": significant(self.peak()) if entry.memory else None,
        }


def quartiles(times: list[float]) -> list[float]:
    """The three quartiles; the middle one is the median."""
    return statistics.quantiles(times, method="inclusive") if len(times) > 1 else 3 * times


def significant(number: float) -> float:
    """Four digits of it."""
    return float(f"{number:.4g}")


def synchronise(x: Tensor) -> None:
    """Waits for the accelerator, if there is one."""
    if x.is_cuda:
        torch.cuda.synchronize()


def hold(contest: Contest, options: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    """The rows of a contest: every entry has its turn in every round."""
    contestants = [Contestant(entry, options.device, options.rehearse) for entry in contest]
    one_round = sum(contestant.warm_up() for contestant in contestants)
    least, most = ROUNDS
    rounds = 1 if options.rehearse else max(least, min(most, round(seconds / one_round)))
    for number in range(rounds):
        for contestant in contestants if number % 2 else reversed(contestants):
            contestant.take_turn()
    return [contestant.row() for contestant in contestants]


def measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """A part of the file: when, where and with what it was measured, and its rows."""
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    for contest in PARTS[part](options.authors, REHEARSAL if options.rehearse else Scale()):
        print(f"{part}: {contest[0].what} {contest[0].shape}", flush=True)
        rows += hold(contest, options, SECONDS[part])
    minutes = (time.monotonic() - start) / 60
    return conditions(options) | {"minutes": round(minutes, 1), "rows": rows}


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """The machine and the versions."""
    processor = torch.cpu.get_capabilities()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "cpu": processor.get("cpu_name", platform.processor() or platform.machine()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": any(processor.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": installed("timm"),
        "torchvision": installed("torchvision"),
        "load": options.load,
    }


def installed(package: str) -> str | None:
    """A package's version, if it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(results: dict[str, Any], file: Path) -> None:
    """Writes the file, one row a line."""
    lines = []
    for part, content in results.items():
        about = {key: value for key, value in content.items() if key != "rows"}
        rows = ",\n".join("      " + json.dumps(row, ensure_ascii=False) for row in content["rows"])
        head = json.dumps(about, ensure_ascii=False, indent=4).removesuffix("\n}")
        lines.append(f'  "{part}": {head},\n    "rows": [\n{rows}\n    ]\n  }}')
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--authors", type=Path, metavar="FOLDER", help="clones of the authors' code"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes; needs --out")
    parser.add_argument("--page", action="store_true", help="measure nothing, write docs/speed.md")
    options = parser.parse_args()
    if options.rehearse and not options.out:
        parser.error("--rehearse needs --out: its numbers are no results")
    name = "results.json" if options.device == "cpu" else f"results_{options.device}.json"
    options.out = options.out or speed.RESULTS.with_name(name)
    options.load = round(os.getloadavg()[0], 2)  # before it is our own
    return options


def main() -> None:
    """Measures part by part, and writes each down when it is done."""
    options = arguments()
    torch.set_num_threads(options.threads)
    for part in () if options.page else options.only:
        done = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        done[part] = measured(part, options)
        write({name: done[name] for name in PARTS if name in done}, options.out)
    if options.out == speed.RESULTS:
        speed.PAGE.write_text(speed.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
