"""`python -m local_stack up` and `python -m local_stack demo`."""

from __future__ import annotations

import asyncio
import signal
import sys

import typer
from carillon import CarillonError
from rich.console import Console

from local_stack import demo as the_demo
from local_stack import up as the_stack
from local_stack.processes import LocalStackError

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@cli.command()
def up() -> None:
    """Starts PostgreSQL, a scheduler, a worker and the examples, until Ctrl-C."""
    _run(the_stack.run())


@cli.command()
def demo(seconds: float = typer.Option(20.0, help="How long to watch.")) -> None:
    """Shows the main job on free ports and a fresh folder, and compares the records with what happened."""
    _run(the_demo.run(seconds))


def _run(main: the_stack.Main) -> None:
    try:
        raise typer.Exit(asyncio.run(_until_stopped(main)))
    except LocalStackError as error:
        raise _fail(str(error)) from None
    except (CarillonError, TimeoutError) as error:
        said = str(error) or "the stack did not come up in time"
        raise _fail(f"{said}\nTo start afresh, remove {the_stack.home()}") from None


def _fail(sentence: str) -> typer.Exit:
    Console(stderr=True, highlight=False).print(sentence, style="red", markup=False, soft_wrap=True)
    return typer.Exit(1)


async def _until_stopped(main: the_stack.Main) -> int:
    task = asyncio.ensure_future(main)
    for wanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(wanted, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 130


if __name__ == "__main__":
    sys.exit(cli())
