"""A training's curves: out of the trainer's log, into a picture with its numbers beside it."""

from pathlib import Path

from data_prep.common.files import write_json


def save_curves(path: str | Path, curves: dict[str, list[tuple[float, float]]], xlabel: str = "step") -> None:
    """Draw each of `curves` ({label: [(x, y), …]}) in a panel of its own, as PNG, and keep the numbers beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {label: points for label, points in curves.items() if points}
    figure, panels = pyplot.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2), squeeze=False)
    for panel, (label, points) in zip(panels[0], curves.items(), strict=True):
        panel.plot(*zip(*points, strict=True), color="#1f5fa8", marker="o" if len(points) < 12 else None, markersize=3)
        panel.set(xlabel=xlabel, title=label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    write_json(Path(path).with_suffix(".json"), curves)


def logged(log_history: list[dict], key: str) -> list[tuple[int, float]]:
    """[(step, value)] of a key in a trainer's log."""
    return [(row["step"], row[key]) for row in log_history if key in row]
