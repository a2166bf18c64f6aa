"""Where a command prints, and how it writes figures for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 120


def console(quiet: bool = False, width: int = _WIDTH_WITHOUT_TERMINAL) -> "Console":
    """Where a command prints. Paths and figures stay plain; a log file gets lines of `width` columns."""
    from rich.console import Console

    screen = Console(quiet=quiet, highlight=False, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = width
    return screen


def format_bytes(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
