"""What `benchmarks/measure.py` measured: tables and sweeps for the chapters, and docs/speed.md.

No chapter times for itself: its figures and sentences come from one run of that program on one
machine, kept in `benchmarks/results.json`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results.json"
PAGE = REPOSITORY / "docs" / "speed.md"
BOTH = "forward and backward"
USUAL = {"dtype": "float32", "layout": "contiguous"}
PLAIN = "as it is"


@dataclass(frozen=True)
class Row:
    """One measurement; `benchmarks/contests.py` says what the names mean."""

    what: str
    rival: str
    shape: tuple[int, ...]
    run: str
    dtype: str
    layout: str
    compiled: bool
    ms: float  # the median of the rounds
    spread: float  # between their quartiles
    rounds: int
    mib: float | None

    @property
    def side(self) -> int:
        """Of the feature map, or of the one that the tokens come from."""
        return self.shape[-1] if len(self.shape) == 4 else math.isqrt(self.shape[1])


def results() -> dict[str, Any]:
    """The whole file: part → where it was measured, and rows."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def rows(part: str, **wanted: Any) -> list[Row]:
    """The rows of a part where the named columns have these values: `rows("modules", what="CBAM")`.

    Raises:
        ValueError: There is no such row.
    """
    found = [Row(**row | {"shape": tuple(row["shape"])}) for row in results()[part]["rows"]]
    found = [row for row in found if all(getattr(row, k) == v for k, v in wanted.items())]
    if not found:
        raise ValueError(f"benchmarks/results.json has no row of {part!r} with {wanted}")
    return found


def column(part: str, by: str, value: str = "ms", **wanted: Any) -> dict[Any, Any]:
    """One number for each value of a column.

    Args:
        part: "modules", "sweeps", "networks" or "compiled".
        by: The column whose values become the keys, such as "rival" or "side".
        value: The column of the numbers.
        **wanted: Which rows, as in `rows`.

    Raises:
        ValueError: There is no such row, or two for the same key.
    """
    found = rows(part, **wanted)
    keys = [getattr(row, by) for row in found]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{wanted} leaves several rows of {part!r} for one {by!r}; name more")
    return {key: getattr(row, value) for key, row in zip(keys, found, strict=True)}


def sweep(what: str, value: str = "ms", run: str = "forward") -> dict[str, dict[int, float]]:
    """How a number grows: rival → side of the feature map → milliseconds, or MiB."""
    rivals = dict.fromkeys(row.rival for row in rows("sweeps", what=what))
    return {
        rival: column("sweeps", "side", value, what=what, rival=rival, run=run) for rival in rivals
    }


def draw(
    axes: Axes, lines: Mapping[str, Mapping[int, float]], ylabel: str = "milliseconds"
) -> None:
    """Draws a sweep over the number of positions, on logarithmic axes."""
    for name, values in lines.items():
        axes.loglog([side**2 for side in values], list(values.values()), "o-", label=name)
    sides = sorted({side for values in lines.values() for side in values})
    axes.set_xticks([side**2 for side in sides], [f"{side}²" for side in sides])
    axes.minorticks_off()
    axes.set(xlabel="positions h · w", ylabel=ylabel)
    axes.legend()


def conditions(part: str) -> str:
    """One line: on what, with what and when a part was measured."""
    about = results()[part]
    threads = "one thread" if about["threads"] == 1 else f"{about['threads']} threads"
    where = f"{threads} of {about['cpu']}" if about["device"] == "cpu" else about["device"]
    has = about["instructions"] + (" and bfloat16" if about["bfloat16"] else "")
    return (
        f"{where} (a CPU with {has}), PyTorch {about['torch']}, {about['date']}, "
        f"load at the start {about['load']}"
    )


# --- Tables ---------------------------------------------------------------------------------------

Table = list[list[str]]  # the head first


def text(table: Table) -> str:
    """A table in columns."""
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [[cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])] for cells in table]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, *body = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def beside_others(part: str, **wanted: Any) -> Table:
    """Ours and the others: milliseconds, and ours divided by the least of theirs; so for memory."""
    head = ["", "input", "run", "way", "ours, ms", "others, ms", "ratio", "ratio of memory"]
    return [head] + [
        [
            ours.what,
            " × ".join(map(str, ours.shape)),
            ours.run,
            way(ours),
            number(ours.ms),
            ", ".join(f"{other.rival} {number(other.ms)}" for other in others) or "–",
            ratio(ours, others, "ms"),
            ratio(ours, others, "mib"),
        ]
        for ours, others in contests(part, **wanted)
    ]


def contests(part: str, **wanted: Any) -> Iterator[tuple[Row, list[Row]]]:
    """Each row of ours, and those of others who do the same, the quickest first."""

    def same(row: Row) -> tuple[Any, ...]:
        return row.what, row.shape, row.run, row.dtype, row.layout

    found = rows(part, **wanted)
    for ours in (row for row in found if row.rival == "ours"):
        others = [row for row in found if same(row) == same(ours) and row.rival != "ours"]
        yield ours, sorted(others, key=lambda row: row.ms)


def way(row: Row) -> str:
    """What is not the default."""
    marks = ["torch.compile"] if row.compiled else []
    marks += [mark for mark in (row.layout, row.dtype) if mark not in USUAL.values()]
    return ", ".join(marks) or PLAIN


def ratio(ours: Row, others: list[Row], value: str) -> str:
    """Ours divided by the least of the others."""
    known = [getattr(row, value) for row in others if getattr(row, value)]
    return f"{getattr(ours, value) / min(known):.2f}" if known else "–"


def number(ms: float) -> str:
    """Three digits of it, as far as there are any after the point."""
    return f"{ms:.{max(0, 2 - math.floor(math.log10(ms)))}f}"


def networks_beside_others(run: str = "forward") -> Table:
    """Time of each of our networks, divided by that of timm's or the authors', for each way."""
    found = [(ours, others) for ours, others in contests("networks") if ours.run == run]
    ratios = {(way(ours), ours.what): ratio(ours, others, "ms") for ours, others in found}
    return by_way(ratios)


def networks_beside_resnet50() -> Table:
    """Time and memory of each of our networks, divided by those of the one without attention."""
    cells: dict[tuple[str, str], str] = {}
    for label, run, value in (
        ("time, forward", "forward", "ms"),
        ("time, forward and backward", BOTH, "ms"),
        ("memory, forward and backward", BOTH, "mib"),
    ):
        numbers = column("networks", "what", value, rival="ours", run=run, **USUAL)
        plain = numbers["ResNet-50"]
        cells |= {(label, name): f"{number / plain:.2f}" for name, number in numbers.items()}
    return by_way(cells)


def ways(run: str = "forward") -> Table:
    """How many times as fast as the plain way each other way runs our networks."""
    plain = column("networks", "what", rival="ours", run=run, **USUAL)
    found = [row for row in rows("networks", rival="ours", run=run) if way(row) != PLAIN]
    cells = {(way(row), row.what): f"{plain[row.what] / row.ms:.2f}" for row in found}
    if run == "forward":
        plain = column("compiled", "what", compiled=False)
        found = rows("compiled", compiled=True)
        cells |= {(way(row), row.what): f"{plain[row.what] / row.ms:.2f}" for row in found}
    return by_way(cells)


def by_way(cells: dict[tuple[str, str], str]) -> Table:
    """A table of cells that are named by their row and their network."""
    labels, names = (list(dict.fromkeys(parts)) for parts in zip(*cells, strict=True))
    return [["", *names], *([la, *(cells.get((la, name), "–") for name in names)] for la in labels)]


def page() -> str:
    """docs/speed.md."""
    about = results()["modules"]
    return f"""# How fast, beside others

Milliseconds, medians of rounds in which all take turns, measured by `benchmarks/measure.py`, which
also writes this page. Memory is the most that is allocated at once beyond weights and input.

- Modules: {conditions("modules")}.
- Networks: {conditions("networks")}.
- timm is {about["timm"]}, torchvision {about["torchvision"]}; *released* is the code of the
  repositories in [tests/golden](../tests/golden/README.md), for SK a transcription of it;
  *textbook* is the equation as it stands.

The ratios are ours divided by the quickest and by the most sparing of the others: below 1 we are
quicker, or need less. Every number with its spread is in
[benchmarks/results.json](../benchmarks/results.json). Another machine gives other numbers: run the
program on yours.

## Modules

Forward is evaluation without gradients; forward and backward is training.

{markdown(beside_others("modules"))}

## Networks

Ours divided by timm's or, for SGE and EPSA, the released: forward, then forward and backward.

{markdown(networks_beside_others())}

{markdown(networks_beside_others(BOTH))}

Ours divided by our ResNet-50:

{markdown(networks_beside_resnet50())}

How many times as fast as the plain way (float32, contiguous) each other way is: forward, then
forward and backward.

{markdown(ways())}

{markdown(ways(BOTH))}

All of it:

{markdown(beside_others("networks"))}
"""
