"""The benchmark program runs, compares like with like, and what is written comes from its file."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attn_course.course import speed

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import contests  # noqa: E402
import measure  # noqa: E402

PARTS = tuple(contests.PARTS)
KEYS = ("what", "rival", "shape", "run", "dtype", "layout", "compiled")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The file that a rehearsal of the whole program writes, without anybody's clones."""
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    command = [sys.executable, ROOT / "benchmarks/measure.py", "--rehearse", "--out", file]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_rehearsal_measures_every_entry(rehearsed):
    """What is not compared with clones has a row, with a time, and a peak where one is wanted."""
    for part in PARTS:
        entries = [e for contest in contests.PARTS[part](None, contests.REHEARSAL) for e in contest]
        rows = rehearsed[part]["rows"]
        expected = [[getattr(entry, key) for key in KEYS] for entry in entries]
        found = [
            [tuple(row["shape"]) if key == "shape" else row[key] for key in KEYS] for row in rows
        ]
        assert found == expected
        assert all(row["ms"] > 0 for row in rows)
        assert [row["mib"] is not None for row in rows] == [entry.memory for entry in entries]


class Slow(torch.nn.Module):
    """Takes at least ten milliseconds, and for a moment 8 MiB beside its result of 1 KiB."""

    def forward(self, x):
        time.sleep(0.01)
        return x + torch.zeros(2**21)[:256]


@pytest.mark.parametrize("run", [contests.FORWARD, contests.BOTH])
def test_time_and_peak_are_what_they_are_known_to_be(run):
    entry = contests.Entry("slow", "ours", (256,), Slow, run, memory=True)
    options = argparse.Namespace(device="cpu", rehearse=False)
    [row] = measure.hold([entry], options, seconds=0.1)
    assert row["rounds"] >= 3
    assert 10 <= row["ms"] < 1000  # a busy machine may let it sleep much longer
    assert 8 <= row["mib"] < 8.1


def test_medians_and_quartiles():
    assert measure.quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == [2, 3, 4]
    assert measure.quartiles([7.0]) == [7, 7, 7]
    assert measure.significant(0.0123456) == 0.01235


def test_the_stored_results_are_whole_and_of_one_machine():
    """Every row that the program would write with all clones, timm and torchvision."""
    stored = speed.results()
    assert tuple(stored) == PARTS
    machine = ("device", "cpu", "instructions", "cores", "threads", "python", "torch", "timm")
    for part in PARTS:
        assert [stored[part][key] for key in machine] == [stored["modules"][key] for key in machine]
        ours = {
            (entry.what, entry.shape, entry.run, entry.dtype, entry.layout, entry.compiled)
            for contest in contests.PARTS[part](None, contests.Scale())
            for entry in contest
            if entry.rival == "ours"
        }
        rows = [row for row in speed.rows(part) if row.rival == "ours"]
        assert len(rows) == len(ours)
        assert ours == {(r.what, r.shape, r.run, r.dtype, r.layout, r.compiled) for r in rows}
    rivals = {(row.what, row.rival) for row in speed.rows("modules")}
    for name in contests.RELEASED:
        assert (name, "released") in rivals, f"measure with --authors: {name} lacks the released"


def test_the_page_comes_from_the_file():
    page = speed.PAGE.read_text(encoding="utf-8")
    assert page == speed.page(), "run python benchmarks/measure.py --page"


TEXTBOOKS = [
    (contests.WeightedCopy, "SpatialGroupEnhance", (2, 64, 5, 7)),
    (contests.Materialised, "MultiHeadSelfAttention", (2, 35, 64)),
    (contests.WholeMatrix, "PositionAttention", (2, 256, 5, 7)),
    (contests.Padded, "PositionAttention", (2, 256, 5, 7)),
    (contests.SharedQueries, "PositionAttention", (2, 256, 5, 7)),
]


@pytest.mark.parametrize(
    ("form", "name", "shape"), TEXTBOOKS, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_textbook_computes_what_ours_does(form, name, shape):
    made = getattr(contests, name, None) or getattr(contests.attn_course, name)
    ours = made(shape[2] if len(shape) == 3 else shape[1])
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(shape)
    torch.testing.assert_close(form(ours)(x), ours(x), rtol=1e-4, atol=1e-5)


def test_rivals_give_results_of_one_shape():
    """With timm and torchvision, where they are; the released code is compared in test_golden."""
    for part in ("modules", "sweeps"):
        for contest in contests.PARTS[part](None, contests.REHEARSAL):
            x = torch.randn(contest[0].shape)
            with torch.no_grad():
                shapes = {tuple(e.make().eval()(x).shape) for e in contest if e.what != "kernels"}
            assert len(shapes) <= 1, contest[0].what


def test_networks_have_as_many_parameters_as_timms(timm):
    with torch.device("meta"):
        for what, makes in contests.competitors(None, contests.Scale()).items():
            counts = {sum(p.numel() for p in make().parameters()) for make in makes.values()}
            assert max(counts) < 1.001 * min(counts), what  # timm's CBAM has fewer biases
            assert ("timm" in makes) == (contests.NETWORKS[what] in contests.OF_TIMM)


def test_a_row_is_found_or_missed():
    assert len(speed.rows("sweeps", what="gates", rival="SE", side=56)) == 1
    with pytest.raises(ValueError, match=r"no row of 'sweeps' with \{'what': 'doors'\}"):
        speed.rows("sweeps", what="doors")
    with pytest.raises(ValueError, match="leaves several rows of 'sweeps' for one 'rival'"):
        speed.column("sweeps", by="rival", what="gates")


@pytest.mark.parametrize(
    ("ms", "expected"), [(0.01234, "0.0123"), (1.2, "1.20"), (98.76, "98.8"), (1234.5, "1234")]
)
def test_numbers_have_three_digits(ms, expected):
    assert speed.number(ms) == expected
