"""Self-tests: a reader tries an answer, a folded solution proves that the test can tell."""

from collections.abc import Callable, Sequence
from typing import Any

SelfTest = Callable[[Any], None]


def attempt(test: SelfTest, answer: Any) -> None:
    """Run a self-test on the reader's answer and print what to do next, whatever the answer does.

    Args:
        test: A function of the answer that raises AssertionError; its message names the likely
            mistake.
        answer: The reader's answer; `...` means that there is none yet.
    """
    if answer is ...:
        print("not answered yet: replace the ... and run this cell again")
        return
    try:
        test(answer)
    except AssertionError as mistake:
        print(f"not yet: {mistake}")
    except Exception as error:
        what = "a class" if isinstance(answer, type) else f"of type {type(answer).__name__}"
        reason = str(error).partition("\n")[0]
        print(f"not yet: your answer, {what}, raised {type(error).__name__}: {reason}")
    else:
        print("right")


def solution(test: SelfTest, right: Any, mistakes: Sequence[Any]) -> None:
    """Prove a self-test: it accepts the right answer and rejects each likely mistake.

    Args:
        test: The self-test of the exercise.
        right: A correct answer.
        mistakes: Wrong answers that readers give; at least one, or the test proves nothing.

    Raises:
        AssertionError: The right answer is rejected.
        ValueError: A mistake is accepted, or there is none.
    """
    test(right)
    if not mistakes:
        raise ValueError("mistakes=[] proves nothing; pass at least one wrong answer")
    for mistake in mistakes:
        if _accepts(test, mistake):
            raise ValueError(f"{test.__name__} accepts the wrong answer {mistake!r}; sharpen it")
    print("this solution passes the self-test")


def _accepts(test: SelfTest, answer: Any) -> bool:
    try:
        test(answer)
    except AssertionError:
        return False
    return True
