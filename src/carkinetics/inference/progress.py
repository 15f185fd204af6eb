"""The progress bar of a fit: one line a chain, silent when nobody watches."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called by a chain after every block with its number, iterations done and in all, and divergences so far
# (-1 during warm-up).
Report = Callable[[int, int, int, int], None]


def silent(chain: int, done: int, total: int, divergences: int) -> None:
    """Report nothing."""


@contextmanager
def stage(text: str, *, show: bool) -> Iterator[None]:
    """A spinner with one line of text while something without steps runs."""
    from rich.console import Console

    console = Console(stderr=True)
    if show and console.is_terminal:
        with console.status(text):
            yield
    else:
        yield


@contextmanager
def bars(chains: int, total: int, *, show: bool) -> Iterator[Report]:
    """Progress bars with chain, step, divergences and time left; silent when stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield silent
        return
    columns = (
        TextColumn("chain {task.fields[chain]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[phase]:8s} divergences {task.fields[divergences]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    lock = threading.Lock()
    with Progress(*columns, console=console) as progress:
        tasks = [progress.add_task("", total=total, chain=c + 1, divergences=0, phase="warm-up") for c in range(chains)]

        def report(chain: int, done: int, total: int, divergences: int) -> None:
            with lock:
                phase = "sampling" if divergences >= 0 else "warm-up"
                planned = max(total, int(progress.tasks[chain].total or 0))  # a pilot's end is not the run's
                found = max(divergences, 0)
                progress.update(tasks[chain], completed=done, total=planned, divergences=found, phase=phase)

        yield report


@contextmanager
def counted(text: str, total: int, done: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """One bar for things that end one after the other; what it gives takes how many more have ended."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield lambda more: None
        return
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda more: progress.advance(task, more)
