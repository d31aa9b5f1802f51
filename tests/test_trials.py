"""The interval over seeds, against numbers worked by hand and against its own promise."""

import pytest
import torch

from attn_course.course.trials import T95, interval


def test_by_hand():
    # Mean 3, standard deviation √2.5, so ± 2.78 · √2.5 / √5.
    assert interval(torch.tensor([1.0, 2, 3, 4, 5])) == pytest.approx((3, 2.78 * 0.5**0.5))
    assert interval(torch.tensor([4.0, 4.0, 4.0])) == (4, 0)


@pytest.mark.parametrize("count", T95)
def test_it_holds_the_true_mean_in_95_of_100_experiments(count):
    torch.manual_seed(0)
    found = [interval(row) for row in torch.randn(1_000, count)]
    covered = sum(abs(mean) <= margin for mean, margin in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.021)  # three standard errors


@pytest.mark.parametrize("count", [0, 1, 11])
def test_too_few_or_too_many_are_refused(count):
    with pytest.raises(ValueError, match=f"2 to 10 numbers, got {count}"):
        interval(torch.zeros(count))
