"""recipes/ppo.py by two processes does what it does by one, and resumes."""

import pytest
from helpers.ppo_runs import BY_LORA, LORA_BY_HAND, copy_up_to, log_of, same_weights
from helpers.processes import accelerate_launch, run, torchrun
from helpers.recipes import again, loaded, results, succeeded
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def shared_settings(run_settings, tiny_reward_dir) -> dict:
    """3 updates of 8 answers by plain gradient descent, in which rounding stays as small as it is."""
    method = {"optim": "sgd", "lr_scheduler_type": "constant", "total_episodes": 24, "missing_eos_penalty": 1.0}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2, "num_mini_batches": 1}
    weights = {"reward_model_path": tiny_reward_dir, "reward_weights": [1.0, 0.5], "target_kl": 0.001}
    return {**run_settings, **method, **steps, **weights, "whiten_rewards": True, "normalize_rewards": True}


KINDS = {
    "full": ({"learning_rate": 0.05}, torchrun),
    "lora": ({"learning_rate": 0.1, **BY_LORA}, accelerate_launch),
}


@pytest.fixture(scope="module")
def by_two(shared_settings, tmp_path_factory):
    """by_two("full"): (settings, folder of one process, folder of two with half of each batch)."""
    kept = {}

    def finished(kind: str):
        if kind not in kept:
            changes, launcher = KINDS[kind]
            settings, folder = {**shared_settings, **changes}, tmp_path_factory.mktemp("two_processes")
            succeeded(again("ppo", **settings, output_dir=folder / "one"))
            settings = {**settings, "per_device_train_batch_size": 4}
            run(launcher(), "ppo", **settings, output_dir=folder / "two")
            kept[kind] = settings, folder / "one", folder / "two"
        return kept[kind]

    return finished


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_two_processes_with_half_the_batch_each_do_what_one_does(by_two, kind):
    settings, one, two = by_two(kind)
    rows, expected = log_of(two / "checkpoint-3"), log_of(one / "checkpoint-3")
    assert [sorted(row) for row in rows] == [sorted(row) for row in expected]
    # 24 episodes four at a time are 6 updates; two processes take eight at a time.
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert results(two, "ppo")["metrics"]["episodes"] == 24
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4, rel=1e-4)
    for part in ("", "value_model"):
        weights, wanted = (load_file(path / part / "model.safetensors") for path in (two, one))
        start = load_file(
            (settings["reward_model_path"] if part else settings["sft_model_path"]) / "model.safetensors"
        )
        assert max((weights[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-5
        assert (
            max((wanted[name] - start[name]).abs().max().item() for name in start) > 1e-3
        )  # it has learned something
    loaded(two)


@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_evaluations_of_two_processes_are_those_of_one(by_two, kind):
    """Five questions, so that one process has more of them than the other."""
    _, one, two = by_two(kind)
    found, expected = results(two, "ppo"), results(one, "ppo")
    for metrics in (found["metrics"], expected["metrics"]):
        metrics.pop("episodes_per_second")
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    assert found["metrics"]["eval_length_first"] * 5 == pytest.approx(round(found["metrics"]["eval_length_first"] * 5))
    names = [name for name in expected["curves"] if name.startswith("held-out")]
    assert len(names) == 7
    for name in names:
        steps, values = zip(*found["curves"][name], strict=True)
        assert steps == (0, 1, 2, 3)
        assert values == pytest.approx([value for _, value in expected["curves"][name]], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_two_processes_resume_bit_for_bit(by_two, kind, tmp_path):
    settings, _, whole = by_two(kind)
    folder = copy_up_to(whole, tmp_path / "ppo", 1)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (folder / "checkpoint-1").iterdir()}
    run(KINDS[kind][1](), "ppo", **settings, output_dir=folder, resume_from_checkpoint="last")
    assert log_of(folder / "checkpoint-3") == log_of(whole / "checkpoint-3")
    same_weights(folder, whole)
