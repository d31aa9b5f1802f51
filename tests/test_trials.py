"""Training, its controls and the interval, against numbers worked by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attn_course import SqueezeExcitation
from attn_course.course.trials import T95, accuracy, batches, frozen, interval, train

IMAGES = torch.randn(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))


def gated():
    torch.manual_seed(0)
    gate = SqueezeExcitation(8, reduction=2)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(gate), nn.Flatten())


# -- Training -----------------------------------------------------------------------------------


def test_batches_are_drawn_with_their_labels():
    images, labels = batches(torch.arange(60.0), torch.arange(60), 7)(torch.Generator())
    assert images.tolist() == labels.tolist()
    assert len(set(labels.tolist())) > 3


def test_training_is_that_of_pytorch():
    """Each step written out, with a learning rate of its own for the last layer."""
    ours, theirs = network(), network()
    draw = batches(IMAGES, LABELS, 20)
    groups = [{"params": ours[0].parameters()}, {"params": ours[3].parameters(), "lr": 0.05}]
    seen = []
    train(
        ours,
        draw,
        steps=5,
        seed=3,
        rate=0.02,
        groups=groups,
        watch=seen.append,
    )
    assert seen == [ours] * 5
    assert not ours.training

    optimiser = torch.optim.AdamW(
        [{"params": theirs[0].parameters()}, {"params": theirs[3].parameters()}]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [0.02, 0.05], total_steps=5)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        chosen = torch.randint(60, (20,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(theirs(IMAGES[chosen]), LABELS[chosen]).backward()
        optimiser.step()
        schedule.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_training_learns():
    trained = train(network(), batches(IMAGES, LABELS, 30), steps=60, seed=0)
    assert accuracy(trained, IMAGES, LABELS) > 95
    assert accuracy(trained, IMAGES, 1 - LABELS) < 5


# -- The control --------------------------------------------------------------------------------


def test_frozen_gates_are_their_means_over_the_images():
    before = gated().eval()
    gates = before[1][0].attention(before[0](IMAGES))  # (60, 8, 1, 1)
    copy = frozen(before, SqueezeExcitation, IMAGES)
    other = torch.randn(2, 3, 4, 4)
    expected = (before[0](other) * gates.mean(0, keepdim=True)).flatten(1)
    torch.testing.assert_close(copy(other), expected)
    assert isinstance(before[1][0], SqueezeExcitation)  # as it was
    assert not before[1][0]._forward_hooks


def test_a_constant_gate_loses_nothing_when_it_is_frozen():
    before = gated().eval()
    nn.init.zeros_(before[1][0].expand.weight)
    torch.testing.assert_close(frozen(before, SqueezeExcitation, IMAGES)(IMAGES), before(IMAGES))


# -- The interval -------------------------------------------------------------------------------


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
