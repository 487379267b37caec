"""Measurements that are repeated: medians with their spread, and how busy other processes kept the machine meanwhile."""

import statistics
import time
from collections.abc import Callable

from data_prep.common.machine import seconds_of_others
from data_prep.common.provenance import commit, machine


class Repeats:
    """What was measured: `runs` is {name: a value for each run}, `others` {part: cores that others kept busy in each}."""

    def __init__(self) -> None:
        self.runs: dict[str, list[float]] = {}
        self.others: dict[str, list[float]] = {}

    def add(self, part: str, measure: Callable[[], dict[str, float]]) -> None:
        """Measure once more, print what was found and keep it."""
        start, before = time.perf_counter(), seconds_of_others()
        found = measure()
        cores = max(0.0, seconds_of_others() - before) / (time.perf_counter() - start)
        self.others.setdefault(part, []).append(cores)
        number = len(self.others[part])
        for name, value in found.items():
            self.runs.setdefault(name, []).append(value)
            print(f"{part}, run {number}: {name} {value:.4g}; other processes kept {cores:.1f} cores busy")

    def results(self, units: dict[str, str]) -> dict:
        """Print medians, least and most; return them with the runs, the machine and the commit."""
        medians = {name: statistics.median(values) for name, values in self.runs.items()}
        print(f"\n{'':42} {'median':>10} least to most")
        for name, values in self.runs.items():
            spread = f"{min(values):.4g} to {max(values):.4g} of {len(values)}"
            print(f"{name:42} {medians[name]:10.4g} {units[name]:7} {spread}")
        most = max(cores for each in self.others.values() for cores in each)
        print(f"other processes kept up to {most:.1f} cores busy: times beside them do not compare")
        found = {"metrics": medians, "units": {name: units[name] for name in medians}, "runs": self.runs}
        found["cores_of_others"] = self.others
        return {**found, "machine": machine(), "commit": commit()}
