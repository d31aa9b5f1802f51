"""What this notebook's kernel has run, so that `export` can compare it with the saved notebook.

IPython's own history will not do: nbval runs cells without storing them there.
"""

from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import ExecutionResult

ran: list[str] = []  # the source of every cell that ran to its end, oldest first


def record(result: ExecutionResult) -> None:
    """Keep the source of a cell that has just run."""
    if result.success and result.info is not None:
        ran.append(result.info.raw_cell)


if shell := get_ipython():
    shell.events.register("post_run_cell", record)
