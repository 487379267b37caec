"""The project's metrics as `evaluate` modules."""

from pathlib import Path


def load_metric(name: str):
    """The metric `eval/metrics/<name>.py`. Loaded by path: `evaluate.load(name)` would fetch a script from the Hub."""
    import evaluate  # slow to import

    return evaluate.load(str(Path(__file__).with_name(f"{name}.py")), keep_in_memory=True)
