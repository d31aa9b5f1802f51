"""The self-tests' two functions: whatever a reader answers, the notebook goes on."""

import pytest
import torch

from attn_course.course.exercises import attempt, solution


def test_is_four(answer):
    assert answer != 5, "that is one too many"
    assert answer == 4, "two and two"


test_is_four.__test__ = False  # a self-test, not one of pytest's


def doubles(answer):
    assert answer({"weight": 2})["weight"] == 4, "twice the weight"


def crashes(state):
    raise RuntimeError("the first line\nand the rest")


@pytest.mark.parametrize(
    ("test", "answer", "printed"),
    [
        (test_is_four, 4, "right"),
        (test_is_four, 5, "not yet: that is one too many"),
        (test_is_four, 3, "not yet: two and two"),
        (test_is_four, ..., "not answered yet: replace the ... and run this cell again"),
        (
            test_is_four,
            torch.zeros(2),
            "not yet: your answer, of type Tensor, raised RuntimeError: Boolean value of Tensor "
            "with more than one value is ambiguous",
        ),
        (
            doubles,
            None,
            "not yet: your answer, of type NoneType, raised TypeError: 'NoneType' object is not "
            "callable",
        ),
        (doubles, {}, "not yet: your answer, of type dict, raised TypeError: 'dict' object is not"),
        (
            doubles,
            lambda state: {"bias": 4},
            "not yet: your answer, of type function, raised KeyError: 'weight'",
        ),
        (
            doubles,
            crashes,
            "not yet: your answer, of type function, raised RuntimeError: the first line",
        ),
        (doubles, int, "not yet: your answer, a class, raised TypeError: int() argument must be"),
    ],
)
def test_attempt_says_what_happened(test, answer, printed, capsys):
    attempt(test, answer)
    line, *rest = capsys.readouterr().out.splitlines()  # pytest adds to the message of an assert
    assert line.startswith(printed)
    assert "and the rest" not in rest


def test_a_solution_proves_the_self_test(capsys):
    solution(test_is_four, right=4, mistakes=[5, 3])
    assert capsys.readouterr().out == "this solution passes the self-test\n"


def test_a_wrong_solution_stops_the_notebook():
    with pytest.raises(AssertionError, match="two and two"):
        solution(test_is_four, right=3, mistakes=[5])


def test_a_self_test_that_accepts_a_mistake_stops_the_notebook():
    with pytest.raises(ValueError, match=r"test_is_four accepts the wrong answer 4\.0; sharpen it"):
        solution(test_is_four, right=4, mistakes=[5, 4.0])


def test_a_solution_without_mistakes_proves_nothing():
    with pytest.raises(ValueError, match=r"mistakes=\[\] proves nothing"):
        solution(test_is_four, right=4, mistakes=[])


def test_a_mistake_must_be_rejected_with_a_reason():
    with pytest.raises(TypeError):
        solution(doubles, right=lambda state: {"weight": 2 * state["weight"]}, mistakes=[None])
