"""The curves of a training, from the trainer's log into a picture, with the numbers beside it; and how much it has seen."""

from pathlib import Path

from data_prep.common.files import atomic_write, write_json
from data_prep.common.plots import BLUE, as_png, canvas


def save_curves(path: str | Path, curves: dict[str, list[tuple[float, float]]], xlabel: str = "step") -> None:
    """Draw each of `curves` ({label: [(x, y), …]}) in a panel of its own, as PNG; write the numbers beside it as JSON.

    A curve without points is left out of both.
    """
    curves = {label: points for label, points in curves.items() if points}
    figure, panels = canvas(4.2 * len(curves), 3.2, len(curves))
    for panel, (label, points) in zip(panels, curves.items(), strict=True):
        marker = "o" if len(points) < 12 else None
        panel.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.8, marker=marker, markersize=3)
        panel.set(xlabel=xlabel, title=label)
    figure.tight_layout()
    with atomic_write(path, "wb") as file:
        file.write(as_png(figure, dpi=110, transparent=False))
    write_json(Path(path).with_suffix(".json"), curves)


def logged(log_history: list[dict], key: str) -> list[tuple[int, float]]:
    """[(step, value)] of a key in a trainer's log."""
    return [(row["step"], row[key]) for row in log_history if key in row]


def rows_seen(trainer) -> int:
    """Rows of `trainer.train_dataset` that training has seen at least once: its first pass takes every row once."""
    args = trainer.args
    rows_of_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return min(len(trainer.train_dataset), trainer.state.global_step * rows_of_a_step)


def show_change(before: dict[str, float], after: dict[str, float]) -> None:
    """Print each metric on held-out prompts, before training and after."""
    for key in before:
        print(f"{key.removeprefix('eval_'):12} on held-out prompts: {before[key]:7.3f} → {after[key]:7.3f}")
