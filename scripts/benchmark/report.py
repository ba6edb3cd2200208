"""What comes out: a table on the screen, JSON for scripts, a picture for the README."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmark.speed import Figures, Sizes, Workload

REFERENCE = "gocryptfs"

# Seen by listing its folder after fifty fsyncs: still empty.
NOTES = {"cryfs": "cryfs answers fsync without writing: its SQLite figures promise nothing"}

COLOURS = {"cryptfs": "#0b6e99", "bare": "#d8dade"}
OTHERS = "#8f959e"


def medians(figures: Figures) -> dict[str, dict[str, float]]:
    """For each workload and filesystem the middle of its rounds."""
    return {
        workload: {name: median(values) for name, values in row.items()}
        for workload, row in figures.values.items()
    }


def show(
    console: Console, figures: Figures, workloads: Sequence[Workload], names: Sequence[str]
) -> None:
    """Medians, and in the same cell how many times gocryptfs that is."""
    table = Table(title=f"medians, and times {REFERENCE}")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal", justify="right", no_wrap=True)
    middle = medians(figures)
    for workload in workloads:
        row = middle.get(workload.name, {})
        cells = [cell(row, name) for name in names]
        table.add_row(f"{workload.title}, {workload.unit}", *cells, goal(row, workload))
    console.print(table)
    for name in names:
        if name in NOTES:
            console.print(NOTES[name], style="dim", markup=False)
    for sentence in figures.failures:
        console.print(sentence, style="red", markup=False)


def cell(row: dict[str, float], name: str) -> str:
    if name not in row:
        return "-"
    times = f" {row[name] / row[REFERENCE]:5.2f}x" if REFERENCE in row else ""
    return f"{row[name]:,.0f}{times}"


def goal(row: dict[str, float], workload: Workload) -> str:
    if REFERENCE not in row or "cryptfs" not in row:
        return f"{workload.goal:.1f}x"
    met = row["cryptfs"] >= workload.goal * row[REFERENCE]
    return f"{workload.goal:.1f}x {'[green]met' if met else '[red]missed'}"


def as_json(
    figures: Figures, workloads: Sequence[Workload], sizes: Sizes, rounds: int
) -> dict[str, Any]:
    """Stable: machine, sizes, rounds, workloads (unit, goal, values, median, ratio), failures."""
    middle = medians(figures)
    return {
        "machine": machine(),
        "rounds": rounds,
        "sizes": asdict(sizes),
        "workloads": {
            workload.name: {
                "title": workload.title,
                "unit": workload.unit,
                "goal_ratio": workload.goal,
                "values": figures.values.get(workload.name, {}),
                "median": middle.get(workload.name, {}),
                f"ratio_to_{REFERENCE}": ratios(middle.get(workload.name, {})),
            }
            for workload in workloads
        },
        "failures": figures.failures,
    }


def ratios(row: dict[str, float]) -> dict[str, float]:
    if REFERENCE not in row:
        return {}
    return {name: round(value / row[REFERENCE], 3) for name, value in row.items()}


def machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write_json(path: Path, answer: dict[str, Any]) -> None:
    path.write_text(json.dumps(answer, indent=1) + "\n")


def draw(path: Path, figures: Figures, workloads: Sequence[Workload], names: Sequence[str]) -> None:
    """One small bar chart for each workload, longer is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    middle = medians(figures)
    drawn = [workload for workload in workloads if middle.get(workload.name)]
    down = (len(drawn) + 2) // 3
    figure, fields = plt.subplots(
        max(down, 1), 3, figsize=(12, 0.6 + down * (0.7 + 0.28 * len(names))), squeeze=False
    )
    for place, axes in enumerate(fields.flat):
        if place >= len(drawn):
            axes.axis("off")
            continue
        workload = drawn[place]
        row = {name: middle[workload.name].get(name, 0.0) for name in reversed(names)}
        bars = axes.barh(
            list(row), list(row.values()), color=[COLOURS.get(name, OTHERS) for name in row]
        )
        axes.bar_label(bars, labels=[f" {value:,.0f}" for value in row.values()], fontsize=8)
        axes.set_title(f"{workload.title}, {workload.unit}", fontsize=9, loc="left")
        axes.set_xlim(0, max(row.values()) * 1.25)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
