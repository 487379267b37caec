"""Is it my SFT, my reward model or PPO? Planted failures, named through the command."""

import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.models import save, tiny_config
from helpers.recipes import EXACT, Done, again, conversation, ranking, refused, succeeded
from torch.nn.functional import cross_entropy
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from data_prep.common.files import read_json, write_json, write_jsonl
from data_prep.common.intervals import show_interval
from data_prep.tokens.chat_encoder import encode_prompts
from eval import diagnose
from eval.diagnosis import perfect
from eval.diagnosis.verdict import points

# A run in small. A question is two capitals and a or b; the answer to a is y, to b it is n. The SFT model answers y or n
# to either, as it likes; the judge wants the right one.
NAMES = [first + second for first in "ABCDEFGHIJKLMNOPQR" for second in "ABCDEFGHIJKLMNOPQR"]
random.Random(0).shuffle(NAMES)
TRAINING, HELDOUT = ([name + kind for name in names for kind in "ab"] for names in (NAMES[:60], NAMES[60:90]))
RIGHT = {"a": "y", "b": "n"}
PPO = {
    "response_length": 4,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "num_mini_batches": 1,
    "num_ppo_epochs": 4,
}
PPO |= {
    "per_device_train_batch_size": 60,
    "total_episodes": 60 * 12,
    "learning_rate": 0.003,
    "kl_coef": 0.05,
    "lam": 1.0,
}
PPO |= {"cliprange_value": 10.0, "logging_steps": 1, "save_strategy": "no", "num_sample_generations": 0}
PPO |= {"eval_funcs": "data_prep.rewards.exact_match", "kl_budget": 4.0, "gradient_checkpointing": False, **EXACT}


def trained(model, tokenizer, loss_of, steps: int, enough: float = 0.0):
    """The model after some steps on 60 questions with answers, each y or n at random; after fewer if its loss is `enough`.

    Args:
        loss_of: f(model, ids (60, L), start of the answer, whether the answers are right).
    """
    starts = torch.tensor(encode_prompts(tokenizer, [[{"role": "user", "content": text}] for text in TRAINING]))
    kinds = torch.tensor(["ab".index(text[-1]) for text in TRAINING])
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(["y", "n"]))
    ends = torch.full((60, 1), tokenizer.eos_token_id)
    optimizer, generator = torch.optim.AdamW(model.parameters(), 0.003), torch.Generator().manual_seed(0)
    for _ in range(steps):
        asked, answers = (torch.randint(most, (60,), generator=generator) for most in (len(starts), 2))
        ids = torch.cat([starts[asked], letters[answers][:, None], ends], 1)
        loss = loss_of(model, ids, starts.shape[1], answers == kinds[asked])
        if loss < enough:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def language_loss(model, ids, start, right):
    return cross_entropy(model(ids).logits[:, start - 1 : -1].transpose(1, 2), ids[:, start:])


def loss_of_right_answers(model, ids, start, right):
    return language_loss(model, ids[right], start, right)


def reward_loss(model, ids, start, right):
    return (model(ids).logits.squeeze(-1) - (2.0 * right - 1.0)).square().mean()


@pytest.fixture(scope="module")
def parts(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """A folder with sft/, reward/ (1 for right, −1 for wrong), random/ (a reward model with a head of random weights) and data."""
    folder, tokenizer = tmp_path_factory.mktemp("parts"), tiny_chat_tokenizer
    for name, questions in (("prompts", TRAINING), ("heldout", HELDOUT)):
        write_json(folder / f"{name}.json", [conversation(each, each, RIGHT[each[-1]]) for each in questions])
    rankings = [ranking(each, {"y": int(each[-1] == "b"), "n": int(each[-1] == "a")}) for each in TRAINING]
    write_jsonl(folder / "rankings.jsonl", rankings)
    torch.manual_seed(0)
    # It knew what is right before the demonstrations taught it either answer, so that PPO has something to find.
    base = trained(GPT2LMHeadModel(tiny_config(tokenizer)), tokenizer, loss_of_right_answers, 150)
    save(trained(base, tokenizer, language_loss, 60), tokenizer, folder / "sft")
    torch.manual_seed(3)
    reward = GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1, n_layer=1))
    save(trained(reward, tokenizer, reward_loss, 2000, enough=0.01), tokenizer, folder / "reward")
    head = GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1, initializer_range=0.3))
    save(head, tokenizer, folder / "random")
    files = {name: [str(folder / f"{name}.json")] for name in ("prompts", "heldout")}
    settings = {"sft": {"conversations": files["prompts"], "heldout": files["heldout"]}}
    settings |= dict.fromkeys(("reward", "random"), {"rankings": [str(folder / "rankings.jsonl")]})
    for name, its in settings.items():
        write_json(
            folder / name / "settings.json",
            {"recipe": f"{name}.py", "settings": {**its, "on_bad": "error", "columns": None}},
        )
    return folder


@pytest.fixture(scope="module")
def run_of(parts, tmp_path_factory):
    """run_of("name", reward="random", kl_coef=…) is the folder of a run with models, PPO's among them, and results."""

    def build(name: str, reward: str = "reward", **changes) -> Path:
        run = tmp_path_factory.mktemp("runs") / name
        shutil.copytree(parts / "sft", run / "sft")
        shutil.copytree(parts / reward, run / "reward")
        files = {"prompts": parts / "prompts.json", "heldout": parts / "heldout.json", "results_dir": run / "results"}
        models = {"sft_model_path": run / "sft", "reward_model_path": run / "reward", "output_dir": run / "ppo"}
        succeeded(again("ppo", **{**PPO, **files, **models, "reward_gate": "off", **changes}))
        return run

    return build


@pytest.fixture
def command(command):
    """command("--option", value, …) is python -m eval.diagnose: (exit code, stdout, stderr)."""
    return lambda *arguments: Done(*command(diagnose, *arguments))


def diagnosis(run: Path) -> tuple[dict, dict[str, str]]:
    """diagnosis.json, and {stage and name of a check: its status}."""
    found = read_json(run / "results" / "diagnosis.json")
    return found, {f"{each['stage']} {each['name']}": each["status"] for each in found["checks"]}


SOUND = ["sft stops", "sft length", "sft empty answers", "sft repetition", "sft headroom", "reward gate"]
MOVED = ["ppo steps", "ppo kl_coef", "ppo reward", "ppo held-out reward", "ppo KL", "ppo judge", "ppo alarms"]


def test_a_healthy_run_has_no_weak_part_and_is_told_what_there_is_to_gain(run_of, command, monkeypatch):
    run = run_of("healthy")
    monkeypatch.setattr(perfect.subprocess, "run", started)
    done = succeeded(command("--run", run, "--with_judge_as_reward"))
    found, status = diagnosis(run)
    assert status == dict.fromkeys([*SOUND, *MOVED, "perfect judge"], "ok")
    gained, there = found["ppo"]["heldout"]["judge"], found["sft"]["best_of_n"][-1]["rater_gain"]
    assert gained["low"] > 0.3 and there["n"] == 60 and found["perfect"]["judge"]["low"] > 0.3
    assert (
        done.out.splitlines()[-1]
        == found["verdict"]["line"]
        == (
            f"no part is weak: PPO gains {points(gained)} by the judge, where best of 8 by the judge would gain {points(there)}; "
            "next: more episodes, and learning_rate and kl_coef on validation prompts"
        )
    )
    assert (
        f"\n  reward           ok:       {points(found['ppo']['train']['reward'])} over the SFT model on 120 training"
        in done.out
    )
    says = f"{points(found['perfect']['judge'])} by the judge, the run's own {points(gained)} ("
    assert f"PPO with the judge as reward\n  judge            ok:       {says}" in done.out
    # A right answer has the reward 1, a wrong one −1, and to the judge 1 and 0: twice the judge is the same spread.
    assert found["perfect"]["weight"] == pytest.approx(2.0, abs=0.2)
    assert found["judge"] == "data_prep.rewards.exact_match" and found["max_new_tokens"] == 4
    assert found["ppo"]["updates"] == 12 and found["sft"]["answers"] == 480


@pytest.mark.slow
def test_a_reward_model_that_judges_can_be_the_reward(parts, run_of, command, monkeypatch):
    """The run's own reward model by another name: its spread is the same, and so is what PPO gains by it."""
    run = run_of("by_itself")
    monkeypatch.setattr(perfect.subprocess, "run", started)
    succeeded(command("--run", run, "--judge", parts / "reward", "--with_judge_as_reward"))
    found, status = diagnosis(run)
    assert found["judge"] == str(parts / "reward") and status["perfect judge"] == "ok"
    assert found["perfect"]["weight"] == pytest.approx(1.0, abs=1e-6)
    assert found["perfect"]["judge"] == found["ppo"]["heldout"]["judge"]


def started(line: list[str], stdout, stderr) -> SimpleNamespace:
    """What `subprocess.run` does with the command of a recipe, in a process that holds the libraries already."""
    assert line[0] == sys.executable and Path(line[1]).parts[-2:] == ("recipes", "ppo.py") and line[2] == "--config"
    done = again("ppo", config=line[3])
    stderr.write(done.err)
    return SimpleNamespace(returncode=done.code)


def test_a_learning_rate_of_0_is_named(run_of, command):
    run = run_of("still", learning_rate=0.0, total_episodes=120)
    done = succeeded(command("--run", run))
    found, status = diagnosis(run)
    assert (
        done.out.splitlines()[-1]
        == found["verdict"]["line"]
        == (
            "the weakest part is PPO (steps): learning_rate is 0: its weights are those of the SFT model, bit by bit; next: raise "
            "learning_rate"
        )
    )
    assert all(status[name] == "ok" for name in [*SOUND, "ppo kl_coef", "ppo KL", "ppo alarms"])
    same = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 120}  # by the same random numbers the same answers
    assert found["ppo"]["train"]["reward"] == same and found["ppo"]["weights_moved"] == 0
    assert status["ppo reward"] == "wrong" and status["perfect judge"] == "skipped"
    assert (
        "skipped:  not asked for: --with_judge_as_reward trains one by the run's settings, and says what" in done.out
    )


def test_a_learning_rate_that_is_too_low_is_told_from_a_kl_coefficient_that_is_too_high(run_of, command):
    run = run_of("slow", learning_rate=1e-7, total_episodes=120)
    done = succeeded(command("--run", run))
    found, status = diagnosis(run)
    moved, leash = found["ppo"]["weights_moved"], found["ppo"]["leash"]
    assert (
        done.out.splitlines()[-1]
        == found["verdict"]["line"]
        == (
            f"the weakest part is PPO (steps): learning_rate 1e-07 in 2 updates is too little: weights moved by {moved:.2g} of "
            f"their norm, the policy by 0.00 [0.00, 0.00] nats per answer, where kl_coef 0.05 lets it gain {points(leash['gain'])} "
            f"at {leash['kl']:.2f}; next: raise learning_rate, or total_episodes"
        )
    )
    assert 0 < moved < 1e-4 and status["ppo kl_coef"] == "ok" and status["ppo reward"] == "wrong"


def test_a_kl_coefficient_that_is_too_high_is_named(run_of, command):
    run = run_of("held", kl_coef=50.0)
    done = succeeded(command("--run", run))
    found, status = diagnosis(run)
    leash, logged = found["ppo"]["leash"], found["ppo"]["logged_kl"]
    assert (
        done.out.splitlines()[-1]
        == found["verdict"]["line"]
        == (
            f"the weakest part is PPO (kl_coef): too high: kl_coef 50 lets the best policy gain {points(leash['gain'])} of reward, "
            f"0.02 of its spread within a prompt ({leash['spread']:.3g}); the penalty reached {50 * logged:.3g} at {logged:.3g} "
            "nats; next: lower kl_coef to about 1, that spread"
        )
    )
    assert all(status[name] == "ok" for name in [*SOUND, "ppo steps", "ppo KL", "ppo alarms"])
    assert leash["spread"] == pytest.approx(1.0, abs=0.15) and leash["gain"]["value"] == pytest.approx(0.02, abs=0.005)


def test_a_reward_model_that_guesses_is_named(run_of, command):
    run = run_of("guesses", reward="random")
    done = succeeded(command("--run", run))
    found, status = diagnosis(run)
    gate = found["reward"]["verdict"]
    assert (
        done.out.splitlines()[-1]
        == found["verdict"]["line"]
        == (
            f"the weakest part is the reward model (gate): right on {show_interval(found['reward']['metrics']['accuracy'])} of "
            f"pairs: {gate['reason']}; next: {gate['next']}"
        )
    )
    assert "knows no more than chance (" in gate["reason"] or "knows less than chance (" in gate["reason"]
    assert all(status[name] == "ok" for name in SOUND[:-1]) and found["verdict"]["part"] == "reward"


def test_an_sft_model_that_never_stops_is_named_and_what_is_missing_is_said(parts, tiny_model_dir, command, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "run" / "sft")
    done = succeeded(
        command("--run", tmp_path / "run", "--heldout", parts / "heldout.json", "--max_new_tokens", 8, "--limit", 24)
    )
    found, status = diagnosis(tmp_path / "run")
    assert found["sft"]["eos_rate"]["high"] < 0.2
    assert (
        done.out.splitlines()[-1]
        == found["verdict"]["line"]
        == (
            f"the weakest part is the SFT model (stops): {show_interval(found['sft']['eos_rate'])} of its answers end within 8 "
            "tokens; next: train it longer, on answers that end; stop_token_id, if set, has to be what ends a turn in its chat "
            "template"
        )
    )
    assert (
        "the reward model\n  gate             skipped:  there is none yet; recipes/reward.py trains one\n" in done.out
    )
    assert "PPO\n  reward           skipped:  there is none yet; recipes/ppo.py trains one\n" in done.out
    assert "24 of 60 prompts are used (--limit)" in done.out and status["reward gate"] == "skipped"
    assert found["judge"] == "agreement with the reference (exact match, then chrF)"


def test_without_ppo_the_next_step_is_named_and_trained_prompts_are_left_out(parts, command, tmp_path):
    for name in ("sft", "reward"):
        shutil.copytree(parts / name, tmp_path / name)
    rankings = [ranking(each, {"y": 0, "n": 1}) for each in HELDOUT[:10]]
    write_jsonl(tmp_path / "rankings.jsonl", rankings)
    settings = read_json(tmp_path / "reward" / "settings.json")
    settings["settings"]["rankings"] = [str(tmp_path / "rankings.jsonl")]
    write_json(tmp_path / "reward" / "settings.json", settings)
    given = ["--run", tmp_path, "--judge", "data_prep.rewards.exact_match", "--max_new_tokens", 4]
    done = succeeded(command(*given, "--num_return_sequences", 4, "--results_dir", tmp_path / "elsewhere"))
    assert "left out: 10 prompts that the reward model was trained on\n" in done.out
    found = read_json(tmp_path / "elsewhere" / "diagnosis.json")
    there = points(found["sft"]["best_of_n"][-1]["rater_gain"])
    line = f"no part is weak: best of 4 by the judge would gain {there}; next: train by PPO (recipes/ppo.py)"
    assert done.out.splitlines()[-1] == found["verdict"]["line"] == line and found["sft"]["prompts"] == 50


def test_a_reward_model_judges_too(parts, command, tmp_path):
    """It gives 1 for right and −1 for wrong where exact_match gives 1 and 0: of the same answers twice the gain."""
    shutil.copytree(parts / "sft", tmp_path / "sft")
    gains = {}
    for judge in ("data_prep.rewards.exact_match", str(parts / "reward")):
        given = ["--judge", judge, "--max_new_tokens", 4, "--num_return_sequences", 4]
        succeeded(command("--run", tmp_path, *given))
        found, _ = diagnosis(tmp_path)
        gains[found["judge"]] = found["sft"]["best_of_n"][-1]["rater_gain"]["value"]
    by_function, by_model = gains.values()
    assert [*gains] == ["data_prep.rewards.exact_match", str(parts / "reward")]
    assert by_function > 0.2 and by_model == pytest.approx(2 * by_function, abs=0.1)


def test_a_reward_by_functions_alone_is_named_as_what_it_is(parts, command, tmp_path):
    """The judge itself rewarded: nothing is left for a gate to find, and a reward model that lies beside it is not read."""
    (tmp_path / "functions.py").write_text(
        "def always(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n"
    )
    run = tmp_path / "run"
    shutil.copytree(parts / "reward", run / "reward")
    for name in ("sft", "ppo"):
        shutil.copytree(parts / "sft", run / name)
    settings = {"sft_model_path": str(run / "sft"), "reward_model_path": None, "kl_coef": 0.1, "response_length": 4}
    settings |= {
        "reward_funcs": ["data_prep.rewards.exact_match", f"{tmp_path}/functions.py:always"],
        "total_episodes": 96,
    }
    settings |= {
        "prompts": [str(parts / "prompts.json")],
        "heldout": [str(parts / "heldout.json")],
        "learning_rate": 1e-5,
    }
    settings |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_value_warmup_updates": 6}
    settings |= {"reward_weights": [2.0, 3.0]}
    write_json(run / "ppo" / "settings.json", {"recipe": "ppo.py", "settings": settings})
    done = succeeded(command("--run", run, "--limit", 24, "--num_return_sequences", 4))
    found, status = diagnosis(run)
    assert found["models"]["reward"] is None and status["reward gate"] == "ok" and status["ppo alarms"] == "skipped"
    assert found["reward_in_words"] == f"the reward (data_prep.rewards.exact_match + {tmp_path}/functions.py:always)"
    # 2 or 0, and 3 for each: the spread of exact_match, twice.
    assert found["ppo"]["leash"]["spread"] == pytest.approx(1.0, abs=0.1)
    assert found["ppo"]["updates"] == 6 and done.out.splitlines()[-1] == (
        "the weakest part is PPO (steps): all of its 6 updates are the value model's warm-up: its weights are those of the SFT "
        "model, bit by bit; next: lower num_value_warmup_updates, or raise total_episodes"
    )


def test_what_cannot_be_diagnosed_is_one_line(parts, command, tmp_path):
    refused(command("--run", tmp_path / "x"), "x: no such file or folder; it is made by: recipes/quickstart.sh")
    refused(command("--run", tmp_path), "found no model in sft/; expected what recipes/sft.py leaves, or --sft")
    run = ["--run", parts]
    refused(command(*run, "--limit", 0), "--limit 0: expected at least 1")
    refused(command(*run, "--ppo", parts / "sft"), "sft: found no settings.json of PPO; expected what recipes/ppo.py")
    refused(command(*run, "--judge", "nowhere.judge"), "nowhere.judge: no such function")
    (tmp_path / "judges.py").write_text(
        "def nan(prompts, completions, **columns):\n    return [float('nan')] * len(prompts)\n"
    )
    refused(
        command(*run, "--judge", f"{tmp_path}/judges.py:nan"), "nan: found nan for an answer; expected finite numbers"
    )
    only = "it only compares answers with each other; expected what gives each answer a number by itself: a function ("
    for name in ("sft", "rankings.jsonl"):
        refused(command(*run, "--judge", parts / name), f"--judge {parts / name}: {only}")
    refused(command(*run, "--with_judge_as_reward"), "--with_judge_as_reward: there is no PPO run whose settings")
    refused(command(*run, "--heldout", parts / "prompts.json"), "the reward model was trained on every prompt")
    write_json(tmp_path / "bad.json", [conversation("1", "a", " ")])
    told = refused(command(*run, "--heldout", tmp_path / "bad.json"), "1 row cannot be used: 1 × empty turn")
    # Without an option to choose by, none is named.
    assert told.endswith("\nFix them and run the same command again.") and "on_bad" not in told
    shutil.copytree(parts / "random", tmp_path / "sft")
    refused(command("--run", tmp_path), "found no held-out prompts in the settings of the models; expected --heldout")
    refused(
        command("--run", tmp_path, "--heldout", parts / "heldout.json"),
        "sft: expected a language model, found GPT2ForS",
    )
