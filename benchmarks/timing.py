"""Shared by the benchmarks: one thread, CPU time, two works in turns, and a section of results.md for each script."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

torch.set_num_threads(1)
RESULTS = Path(__file__).parent / "results.md"
HEAD = """# Benchmarks

Made by `make bench`, a section a script. CPU seconds are those of one thread; each ratio is the median of pairs of runs
that took turns, with the smallest and the largest of them. Wall seconds depend on what else the machine does.
"""


class Ratio(NamedTuple):
    """How many times more CPU seconds the other way takes: median, smallest and largest of the pairs; and the
    median seconds of both."""

    ratio: float
    low: float
    high: float
    ours: float
    other: float

    def text(self, scale: float = 1.0) -> str:
        """As results.md shows it; `scale` when the other way was measured in part, such as one epoch of 30."""
        return f"{scale * self.ratio:.3g} ({scale * self.low:.3g} to {scale * self.high:.3g})"


def interleaved(ours: Callable[[], object], other: Callable[[], object], repeats: int = 5, warm: bool = True) -> Ratio:
    """Run both in turns `repeats` times, after one call each to warm up."""
    for work in (ours, other) if warm else ():
        work()
    pairs = [(_seconds(ours), _seconds(other)) for _ in range(repeats)]
    ratios = [b / a for a, b in pairs]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), *map(statistics.median, zip(*pairs, strict=True)))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def write_section(title: str, lines: Sequence[str]) -> None:
    """Print the lines, and make them the section of that title in results.md, in place of an older one."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE))
    sections[title] = "\n" + "\n".join([*lines, "", f"({machine()})"]) + "\n\n"
    body = "".join(f"## {name}\n{sections[name]}" for name in sorted(sections)).rstrip("\n")
    RESULTS.write_text(f"{HEAD}\n{body}\n", encoding="utf-8")
    print(f"## {title}", *lines, sep="\n", flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def machine() -> str:
    """The machine in words, and how busy it is."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    load = f", load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor()}, torch {torch.__version__}{load}"
