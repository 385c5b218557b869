"""`backbones`: what each of a choice of backbones costs here, as a table and as a page."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from search.console import make_console, print_plain
from search.progress import show_progress
from trainer.backbones import CURATED, REFERENCE, Cost, measure_backbones
from trainer.config import TrainConfig
from trainer.device import choose_device, count_threads, describe_device
from trainer.durable import replacing, require_writable

TITLES = ("backbone", "tier", "parameters", "training", "evaluation", "memory")
FRAMES = 251
"""Of a window of 4 s at the default hop."""


def show_backbones(names: Sequence[str], batch_size: int, out: Path | None, device: str) -> None:
    """Measure backbones (the curated ones, if none is named), print them, and write a page.

    Raises:
        ModelError: timm lacks one, or it can't be trained.
        DataError: `out` can't be written.
    """
    if out is not None:
        require_writable(out)
    chosen = choose_device(device)
    config = TrainConfig(batch_size=batch_size)
    names = list(dict.fromkeys([*(names or CURATED), REFERENCE]))
    shape = (1, config.n_mels, FRAMES)
    with show_progress("measure") as progress:
        costs = measure_backbones(names, config, shape, chosen, progress)
    rows = _rows(costs)
    if out is None:
        table = Table(*TITLES, box=None, header_style="dim")
        for row in rows:
            table.add_row(*row)
        make_console().print(table)
        return
    threads = count_threads()
    cores = f"{threads} thread{'s' * (threads > 1)}"
    where = f"{describe_device(chosen)} ({cores}, {platform.machine()})"
    with replacing(out) as fresh:
        fresh.write_text(_page(rows, where, config), encoding="utf-8")
    print_plain(make_console(), f"{len(rows)} backbones in {out}")


def _rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """Return a row for each, the tiers in their order, and within them the fastest first."""
    reference = next(cost for cost in costs if cost.name == REFERENCE)
    tiers = list(dict.fromkeys([*CURATED.values(), ""]))
    ordered = sorted(
        costs, key=lambda x: (tiers.index(CURATED.get(x.name, "")), -x.train_per_second)
    )
    return [
        (
            cost.name,
            CURATED.get(cost.name, ""),
            f"{cost.num_parameters / 1e6:.1f} M",
            _speed(cost.train_per_second, reference.train_per_second),
            _speed(cost.eval_per_second, reference.eval_per_second),
            f"{cost.memory_bytes / 2**20:,.0f} MiB",
        )
        for cost in ordered
    ]


def _speed(per_second: float, reference: float) -> str:
    return f"{per_second:,.0f}/s, {per_second / reference:.2f}"


def _page(rows: Sequence[Sequence[str]], where: str, config: TrainConfig) -> str:
    lines = [
        "# Backbones",
        "",
        "A choice of timm's models for spectrograms. Any other name works as well: this is where to"
        " begin. `screen` is for many short trials, `main` for the search itself, `final` for the"
        " last training of the best recipes.",
        "",
        f"Measured by `melsearch backbones --out docs/backbones.md` on {where}, torch"
        f" {version('torch')}, timm {version('timm')}: batches of {config.batch_size} images of"
        f" {config.n_mels} x {FRAMES}, from random weights. Speeds are images a second, then as a"
        f" multiple of {REFERENCE}'s; memory is what a training step adds to the process (on a GPU:"
        " holds of it). Machines differ and are shared, so the multiples say more than the speeds.",
        "",
        f"| {' | '.join(TITLES)} |",
        "|---|---|---|---|---|---|",
        *[f"| `{name}` | {' | '.join(cells)} |" for name, *cells in rows],
        "",
    ]
    return "\n".join(lines)
