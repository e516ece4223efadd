"""Help as plain text in two columns. Of a flag's names the first long one and the letters are shown."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

LEFT = 24  # columns for the names


def two_columns(console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
    if not panel.entries:
        return
    lines = [f"{panel.title}:"]
    for entry in panel.entries:
        label, told = f"  {_label(entry)}", textwrap.wrap(_told(entry), max(30, min(110, console.width) - LEFT))
        if len(label) >= LEFT - 1:
            lines.append(label)
            label = ""
        lines += [f"{label if i == 0 else '':{LEFT}}{line}" for i, line in enumerate(told or [""])]
    print("\n".join([*lines, ""]), file=console.file)


def _label(entry: HelpEntry) -> str:
    if entry.positional_label:
        return entry.positional_label
    value = (entry.metavar or "").replace("STR", "TEXT").replace("INT", "N").replace("FLOAT", "X")
    return " ".join([*entry.positive_shorts, *entry.positive_names[:1], value]).strip()


def _told(entry: HelpEntry) -> str:
    text: Any = getattr(entry.description, "primary_renderable", None) or entry.description or ""
    told = str(getattr(text, "plain", text))
    return f"{told} [{', '.join(entry.choices)}]" if entry.choices else told
