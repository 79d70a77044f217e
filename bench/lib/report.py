"""Tables of medians and ratios."""

import re
import statistics
import sys
import time

BEGAN = time.monotonic()


def progress(text: str) -> None:
    """Says on standard error what goes on; the tables on standard output stay clean."""
    print(f"[{time.monotonic() - BEGAN:5.0f}s] {text}", file=sys.stderr, flush=True)


def median(values) -> float:
    """The middle of the rounds."""
    return statistics.median(values)


def table(title: str, head: list[str], rows: list[list[str]], notes: list[str] = ()) -> str:
    """A Markdown table, aligned so that it reads on a terminal too."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells):
        padded = [cells[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (width + 1) + ":" for width in widths[1:]]) + "|"
    return "\n".join([f"## {title}", "", line(head), rule, *map(line, rows), "", *[f"{note}\n" for note in notes]])


def quartiles(values) -> str:
    """Where the middle half of many values lies."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 4]:.0f} to {ordered[len(ordered) * 3 // 4]:.0f}"


def spread(values) -> str:
    """The lowest and highest round, as a share of the median."""
    middle = median(values)
    if not middle:
        return "-"
    return f"-{100 * (1 - min(values) / middle):.0f}/+{100 * (max(values) / middle - 1):.0f} %"


def merged(results: str, sections: list[str]) -> str:
    """Earlier results with these sections in place of those with the same titles, or at their end; each says when it was measured. A scenario that
    failed replaces nothing."""
    parts = re.split(r"^(?=## )", results, flags=re.M)
    measured = sections[0].splitlines()[0]
    for section in re.split(r"^(?=## )", "\n".join(sections[1:]), flags=re.M):
        title = section.partition("\n")[0]
        if not title.startswith("## ") or section.rstrip().endswith("This scenario failed."):
            continue
        # The last one ends with no empty line of its own.
        parts[-1] = parts[-1].rstrip() + "\n\n"
        at = next((number for number, part in enumerate(parts) if part.partition("\n")[0] == title), None)
        section = f"{section.rstrip()}\n\n{measured}\n\n"
        parts[at if at is not None else len(parts):at + 1 if at is not None else len(parts)] = [section]
    return "".join(parts).rstrip() + "\n"
