"""What evaluations leave, and the pictures that a report draws of it."""

from pathlib import Path

from data_prep.common.files import write_results


def interval(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "n": 9}


def assert_small_picture(path: Path) -> None:
    """A PNG 1,000 pixels wide, below 150 KB."""
    picture = path.read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) < 150_000
    assert int.from_bytes(picture[16:20]) == 1000


def evaluated_run(tmp_path: Path, models: dict[str, Path], write_conversations) -> Path:
    """The folder of a run: base, sft and ppo, results of all stages but the reward model."""
    run = tmp_path / "run"
    run.mkdir()
    for name, folder in models.items():
        (run / name).symlink_to(folder)
    evil = "<script>alert('x')</script>"
    rows = [("1", f"Is {evil} bad?", "yes"), ("2", "2?", "yes")]
    write_conversations(rows).rename(tmp_path / "asked.json")
    (run / "data").mkdir()
    (tmp_path / "asked.json").rename(run / "data" / "conversations_heldout.json")
    folder = run / "results"
    bits = {"loss": [[10, 5.0], [20, 4.0]], "held-out bits per byte": [[0, 8.03], [20, 2.5]]}
    values = {"seconds": 12.4, "parameters": 4273664, "tokens": 40960}
    write_results(folder, "pretrain", {**values, "metrics": {"bits_per_byte": 2.5}, "curves": bits})
    sft = {"eos_rate": 0.98, "loss_first": 4.0, "loss_last": 0.5}
    write_results(folder, "sft", {"seconds": 3.0, "conversations": 12, "metrics": sft, "curves": {"loss": [[1, 4.0]]}})
    ppo = {"episodes": 3072, "eval_score_first": 0.25, "eval_score_last": 1.5, "eval_exact_match_last": 0.625}
    write_results(folder, "ppo", {"seconds": 4.0, "prompts": 7, "metrics": ppo, "curves": {"score": [[1, 0.25]]}})
    exact = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 4}
    for model in ("sft", "ppo"):
        answered = {"model": f"runs/x/{model}", "data": [f"{evil}.json"], "metrics": {"exact_match": exact}}
        write_results(folder, f"answers_{model}", answered)
    return run
