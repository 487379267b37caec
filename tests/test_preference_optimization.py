"""DPO, KTO, RLOO and GRPO through their commands, on models so small that a run takes a second.

They compare with PPO only where they see the same thing: the same reward at the same token, the same probabilities.
"""

import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from helpers.models import POSITIONS, counting_model, save, tiny_config
from helpers.processes import free_port
from helpers.recipes import (
    EXACT,
    LONG,
    LORA,
    Done,
    again,
    command,
    conversation,
    differing,
    is_png,
    loaded,
    processes,
    ranking,
    ready_to_end,
    refused,
    results,
    served_as,
    succeeded,
)
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2ForSequenceClassification,
    TrainerControl,
    TrainerState,
)
from trl import GRPOTrainer, RLOOTrainer

from data_prep.common.files import UNFINISHED, write_json, write_jsonl
from data_prep.models.scoring import encode_answers, score_answers
from data_prep.train_tokenizer import train_tokenizer
from recipes.trainers.resuming import Clock
from recipes.trainers.rloo_grpo import count_positions_from_first_token, reward_at_last_token

METHODS = ("dpo", "kto", "rloo", "grpo")
RANKED = ("dpo", "kto")
DRAWING = ("rloo", "grpo")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?"


@pytest.fixture(scope="module")
def dpo_settings(tiny_model_dir, tmp_path_factory) -> dict:
    """To every question yes is the best answer; one question and one answer are too long for the context."""
    folder = tmp_path_factory.mktemp("ranked")
    rows = [ranking(letter, {"no": 1, "yes": 0, "maybe": 1}) for letter in "abcdefgh"]
    rows += [ranking(LONG, {"no": 1, "yes": 0})]
    rows += [ranking("i", {"no": 1, "yes": 0, "z" * length: 2}) for length in (59, 60)]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "heldout.jsonl", [ranking(letter, {"no": 1, "yes": 0}) for letter in "opq"])
    files = {"model_name_or_path": tiny_model_dir, "rankings": folder / "train.jsonl", "max_length": POSITIONS}
    steps = {"per_device_train_batch_size": 8, "max_steps": 20, "logging_steps": 5, "learning_rate": 0.003}
    return {**files, "heldout": folder / "heldout.jsonl", **steps, "beta": 0.2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def drawing_settings(tiny_chat_tokenizer, long_is_good_dir, tmp_path_factory) -> dict:
    """12 updates of 8 × 4 answers. The reward is the length, of which the assistant can have more by not ending."""
    folder = tmp_path_factory.mktemp("drawing")
    write_json(folder / "prompts.json", [conversation(letter, letter, "-") for letter in LETTERS])
    models = {
        "model_name_or_path": ready_to_end(tiny_chat_tokenizer, folder / "ready"),
        "reward_model_path": long_is_good_dir,
    }
    batch = {"num_generations": 4, "per_device_train_batch_size": 32, "max_completion_length": 8, "max_steps": 12}
    steps = {"learning_rate": 0.003, "logging_steps": 1, "save_strategy": "no", "disable_dropout": True}
    return {**models, "prompts": folder / "prompts.json", **batch, **steps, "beta": 0.01}


@pytest.fixture(scope="module")
def settings(dpo_settings, drawing_settings) -> dict[str, dict]:
    return {**dict.fromkeys(RANKED, dpo_settings), **dict.fromkeys(DRAWING, drawing_settings)}


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory) -> dict[str, tuple[Path, Done]]:
    """Each method once by full fine-tuning, DPO as a user starts it."""
    runs = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp("runs") / method
        run = command if method == "dpo" else again
        runs[method] = folder, succeeded(run(method, **settings[method], **EXACT, output_dir=folder))
    return runs


def log_probability(model, tokenizer, question: str, answer: str) -> float:
    """Of an answer with its end of turn, in nats."""
    ((ids,),) = encode_answers(tokenizer, [[{"role": "user", "content": question}]], [[answer]])
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(ids) - len(answer) - 1  # a letter is a token
    return sum(logs[place - 1, ids[place]].item() for place in range(start, len(ids)))


# DPO


def test_dpo_prefers_what_is_ranked_higher_and_its_figures_are_those_of_the_saved_model(trained, dpo_settings):
    folder, done = trained["dpo"]
    model, tokenizer = loaded(folder)
    reference = AutoModelForCausalLM.from_pretrained(dpo_settings["model_name_or_path"])
    gained = {
        answer: [
            log_probability(model, tokenizer, question, answer)
            - log_probability(reference, tokenizer, question, answer)
            for question in "opq"
        ]
        for answer in ("yes", "no")
    }
    assert min(gained["yes"]) > 1 > -1 > max(gained["no"])
    found = results(folder, "dpo")
    figures, curves = found["metrics"], found["curves"]
    # The implicit reward is beta times what an answer gained; here beta is 0.2.
    for name, answer in (("chosen", "yes"), ("rejected", "no")):
        assert figures[f"eval_{name}"] == pytest.approx(0.2 * sum(gained[answer]) / 3, abs=1e-3)
    assert figures["eval_margin"] == pytest.approx(figures["eval_chosen"] - figures["eval_rejected"], abs=1e-5)
    assert figures["eval_accuracy"] == 1 and "gets 100.0% of 3 held-out pairs right\n" in done.out
    # Before its first step the policy is its reference: both rewards are 0 and the loss is −ln σ(0).
    assert curves["loss"][0] == [1, pytest.approx(math.log(2), abs=1e-6)] and curves["margin"][0] == [1, 0]
    assert figures["loss_last"] < 0.5 and [step for step, _ in curves["accuracy"]] == [1, 5, 10, 15, 20]
    assert is_png(folder / "curve.png")


def test_pairs_of_dpo_are_counted_and_so_are_those_that_do_not_fit(trained):
    folder, done = trained["dpo"]
    # 8 × (yes above no, yes above maybe), the long question, and 2 × (yes above no, yes and no above the long answer).
    assert "train.jsonl: 11 rankings, 23 pairs\n" in done.out
    # Beside an answer stand three marks, the question's letter and the end of turn: 59 letters make 64 tokens, 60 do not
    # fit. With the long question that is 3 pairs.
    left_out = "3 with an answer beyond 64 tokens (max_length) are left out"
    assert f"20 pairs of a chosen and a rejected answer; {left_out}\n" in done.out
    assert results(folder, "dpo")["pairs"] == 20 and "DPO in 20 steps on 20 of 20 pairs in " in done.out


# RLOO and GRPO


UPDATES = [*range(1, 13)]


@pytest.mark.parametrize("method", DRAWING)
def test_more_is_had_of_what_is_rewarded(method, trained, drawing_settings):
    folder, done = trained[method]
    model, tokenizer = loaded(folder)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == end
    assert model.config.use_cache and served_as(folder)
    found = results(folder, method)
    assert set(found["curves"]) == {"score", "kl", "length", "eos_rate", "entropy"}
    assert all([step for step, _ in points] == UPDATES for points in found["curves"].values())
    curves = {name: [value for _, value in points] for name, points in found["curves"].items()}
    # As in test_recipes.py: 3.17 tokens an answer, 6 % without an end, 4.52 nats a token. Each is drawn 32 times.
    assert curves["length"][0] == pytest.approx(3.17, abs=1.2)
    assert curves["eos_rate"][0] == pytest.approx(0.94, abs=0.15)
    assert curves["entropy"][0] / curves["length"][0] == pytest.approx(4.52, abs=0.7)
    assert abs(curves["kl"][0]) < 1e-5 < 0.1 < curves["kl"][-1]
    assert curves["length"][-1] > curves["length"][0] + 2 and curves["score"][-1] > curves["score"][0] + 0.1
    assert found["metrics"]["episodes"] == 12 * 32 and found["prompts"] == 64
    assert found["metrics"]["length_last"] == curves["length"][-1]
    assert f"{method.upper()} on 384 episodes in " in done.out and is_png(folder / "curve.png")


@pytest.fixture(scope="module")
def counting_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """An assistant that says x after the places 3 to 6 and ends after 7, whatever is asked."""
    model = counting_model(tiny_chat_tokenizer, 7)
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "counting")


@pytest.mark.parametrize("method", DRAWING)
def test_a_short_prompt_beside_a_long_one_is_trained_on_as_it_was_drawn(
    method, counting_dir, drawing_settings, tmp_path
):
    """The trainers pad it on the left and pass no positions."""
    rows = [conversation(text, text, "-") for text in ("a", "b", "c", "d", "aaa", "bbb", "ccc", "ddd")]
    write_json(tmp_path / "prompts.json", rows)
    given = {**drawing_settings, **EXACT, "model_name_or_path": counting_dir, "prompts": tmp_path / "prompts.json"}
    succeeded(again(method, **{**given, "max_steps": 1}, output_dir=tmp_path / method))
    found = results(tmp_path / method, method)["curves"]
    # Prompts of 4 and 6 tokens, x up to place 7 and the end at place 8: answers of 5 and 3 tokens.
    assert found["length"] == [[1, 4.0]] and found["eos_rate"] == [[1, 1.0]]
    # It is sure of every one. From place 8 on it would be sure of nothing, and two tokens of the short ones stood there.
    assert found["entropy"][0][1] == pytest.approx(0, abs=1e-3)
    # Of the reward model see test_recipes.py: it is read at place 8, the end of turn, in all of them.
    assert found["score"][0][1] == pytest.approx(4 * math.sin((8 / 63 - 0.5) * math.pi), abs=2e-3)


def test_log_probabilities_under_left_padding_are_those_of_the_row_alone(tiny_model_dir, tiny_chat_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = torch.tensor([tiny_chat_tokenizer("<|user|>a<|end|><|assistant|>yes<|end|>")["input_ids"]])
    padded = torch.nn.functional.pad(ids, (9, 0), value=tiny_chat_tokenizer.pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (9, 0))

    def differences() -> list[float]:
        trainer = SimpleNamespace(temperature=1.0, model_kwarg_keys=["logits_to_keep"])
        found = []
        for kind in (RLOOTrainer, GRPOTrainer):
            compute = kind._get_per_token_logps_and_entropies.__wrapped__  # past the profiler
            alone, beside = (
                compute(trainer, model, ids, torch.ones_like(ids), 4),
                compute(trainer, model, padded, mask, 4),
            )
            found.append((alone[0] - beside[0]).abs().max().item())
        return found

    assert min(differences()) > 0.01  # the fault is still there, in both
    count_positions_from_first_token(model)
    assert max(differences()) < 1e-5


def test_a_reward_model_scores_an_answer_as_its_training_did_whatever_stands_beside_it(
    tiny_reward_dir, tiny_chat_tokenizer
):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir)
    prompts = [[{"role": "user", "content": text}] for text in ("a", "a longer one")]
    ids = [tiny_chat_tokenizer(text)["input_ids"] for text in ("yes<|end|>", "maybe<|end|>")]
    scores = reward_at_last_token(model, tiny_chat_tokenizer, bf16=False)(prompts=prompts, completion_ids=ids)
    expected = score_answers(model, tiny_chat_tokenizer, prompts, ["yes", "maybe"])
    assert scores == pytest.approx(expected, abs=1e-5) and abs(scores[0] - scores[1]) > 1e-3


@pytest.mark.parametrize("method", DRAWING)
def test_a_reward_model_with_another_tokenizer_reads_the_answer_as_text(method, talker, drawing_settings, tmp_path):
    tokenizer = train_tokenizer(iter(["yes yes no no"]), 264)
    torch.manual_seed(0)
    reward_model = GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1))
    save(reward_model, tokenizer, tmp_path / "reward")
    given = {
        **drawing_settings,
        **EXACT,
        "model_name_or_path": talker("yes"),
        "reward_model_path": tmp_path / "reward",
    }
    given |= {"per_device_train_batch_size": 4 * len(LETTERS), "max_steps": 1}  # each question once
    done = succeeded(again(method, **given, output_dir=tmp_path / method))
    assert "has another tokenizer: answers are encoded again, as text, for it\n" in done.out
    prompts = [[{"role": "user", "content": letter}] for letter in LETTERS]
    scores = score_answers(reward_model, tokenizer, prompts, ["yes"] * len(prompts))
    score = results(tmp_path / method, method)["curves"]["score"][0][1]
    assert score == pytest.approx(sum(scores) / len(scores), abs=1e-4)


@pytest.mark.parametrize("method", DRAWING)
def test_a_cut_answer_is_scored_where_it_was_cut(method, talker, drawing_settings, tmp_path):
    given = {**drawing_settings, **EXACT, "model_name_or_path": talker("yes"), "max_steps": 1}
    given |= {"max_completion_length": 2, "missing_eos_penalty": 3.0}
    succeeded(again(method, **given, output_dir=tmp_path / method))
    found = results(tmp_path / method, method)["curves"]
    assert found["length"] == [[1, 2.0]] and found["eos_rate"] == [[1, 0.0]]
    # Four tokens of the question, y and e: place 5. The score does not hold the penalty.
    assert found["score"][0][1] == pytest.approx(4 * math.sin((5 / 63 - 0.5) * math.pi), abs=2e-3)


@pytest.mark.parametrize("method", DRAWING)
def test_padding_is_not_drawn_however_likely(method, drawing_settings, tiny_chat_tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(drawing_settings["model_name_or_path"])
    with torch.no_grad():
        model.transformer.wte.weight[tiny_chat_tokenizer.pad_token_id, 0] = 20.0
    folder = save(model, tiny_chat_tokenizer, tmp_path / "pads")
    given = {**drawing_settings, **EXACT, "model_name_or_path": folder, "max_steps": 1}
    succeeded(again(method, **given, output_dir=tmp_path / method))
    # Without the pad it is the assistant of the other tests; else it would pad to the 8th token.
    assert results(tmp_path / method, method)["curves"]["length"][0][1] == pytest.approx(3.17, abs=1.2)


REWARDS = """
def shortness(prompts, completions, reference, **columns):
    for prompt, completion, answer in zip(prompts, completions, reference, strict=True):
        assert [message["role"] for message in prompt] == ["user"] and answer == "-"
        assert [message["role"] for message in completion] == ["assistant"]
    return [-float(len(completion[0]["content"])) for completion in completions]


def nothing(prompts, completions, **columns):
    return [0.0] * len(completions)


number = 3
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.mark.parametrize("method", DRAWING)
def test_functions_reward_by_their_weights_without_a_reward_model(method, drawing_settings, functions, tmp_path):
    """Shortness weighed by a negative number is length."""
    given = {key: value for key, value in drawing_settings.items() if key != "reward_model_path"}
    given |= {"reward_funcs": [f"{functions}:shortness", f"{functions}:nothing"], "reward_weights": [-2.0, 1.0]}
    succeeded(again(method, **given, **EXACT, output_dir=tmp_path / method))
    found = results(tmp_path / method, method)["curves"]
    assert found["length"][-1][1] > found["length"][0][1] + 2
    # A token is a character but for the end of turn, and for broken characters, of which two bytes may make one.
    letters = found["length"][-1][1] - found["eos_rate"][-1][1]
    assert letters < found["score"][-1][1] <= 2 * letters


@pytest.mark.parametrize("method", DRAWING)
def test_to_be_cut_costs_the_penalty(method, drawing_settings, functions, tmp_path):
    given = {key: value for key, value in drawing_settings.items() if key != "reward_model_path"}
    given |= {"reward_funcs": f"{functions}:nothing", "missing_eos_penalty": 1.0, "max_completion_length": 2}
    given["learning_rate"] = 0.01
    succeeded(again(method, **given, **EXACT, output_dir=tmp_path / method))
    found = results(tmp_path / method, method)["curves"]
    rates = [rate for _, rate in found["eos_rate"]]
    # Of two tokens one is the end with probability 1 − 0.703² = 51 %; each rate is of 32 answers.
    assert rates[0] == pytest.approx(0.51, abs=0.25) and sum(rates[-4:]) / 4 > 0.75
    assert all(score == 0 for _, score in found["score"])


# All four


@pytest.mark.parametrize("method", METHODS)
def test_lora_is_merged_and_only_its_matrices_have_moved(method, settings, tmp_path):
    given = {**settings[method], **LORA, "learning_rate": 0.01, "use_cpu": True, "bf16": True}
    succeeded(again(method, **given, output_dir=tmp_path / method))
    model, tokenizer = loaded(tmp_path / method)
    assert tokenizer.eos_token_id == 2 and served_as(tmp_path / method)
    moved = differing(tmp_path / method, given["model_name_or_path"])
    assert moved and all(name.startswith("transformer.h.") and ".c_" in name for name in moved)
    curve = results(tmp_path / method, method)["curves"]["margin" if method in RANKED else "length"]
    assert curve[-1][1] > curve[0][1] + (0.2 if method in RANKED else 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_whose_time_is_over_stops_after_its_step_and_saves_the_model(method, settings, tmp_path):
    out = tmp_path / method
    succeeded(again(method, **settings[method], **EXACT, max_seconds=0.0, results_dir=tmp_path, output_dir=out))
    loaded(out)
    found = results(tmp_path, method)
    assert all([step for step, _ in points] == [1] for points in found["curves"].values())
    assert found["metrics"]["steps" if method in RANKED else "episodes"] == (1 if method in RANKED else 32)


# Answers for two updates at once, drawn twice in a pass: the fifth update is in the middle of a draw of the second pass.
DRAWN_AT_ONCE = {"per_device_train_batch_size": 64, "steps_per_generation": 2, "save_steps": 1, "max_steps": 8}


@pytest.mark.parametrize(
    ("method", "more", "ends"),
    [
        *((method, {"save_steps": 2, "max_steps": 4}, [2]) for method in RANKED),
        *((method, DRAWN_AT_ONCE, [5]) for method in DRAWING),
        *(
            pytest.param(
                method,
                {**DRAWN_AT_ONCE, "num_iterations": 2, "max_steps": 12},
                [1, 3, 4, 6, 8, 11],
                marks=pytest.mark.slow,
            )
            for method in DRAWING
        ),
    ],
)
def test_a_run_resumed_from_its_middle_ends_where_the_uninterrupted_one_does(method, more, ends, settings, tmp_path):
    given = {**settings[method], **EXACT, "logging_steps": 1, "save_strategy": "steps", **more}
    whole = tmp_path / "whole"
    succeeded(again(method, **given, output_dir=whole))
    for end in ends:
        cut = tmp_path / f"cut-{end}"
        shutil.copytree(whole, cut)
        for folder in cut.glob("checkpoint-*"):
            if int(folder.name[11:]) > end:
                shutil.rmtree(folder)
        for name in ("config.json", "model.safetensors", f"{method}.json"):
            (cut / name).unlink()
        done = succeeded(again(method, **given, output_dir=cut, resume_from_checkpoint="last"))
        assert f"resuming from {cut}/checkpoint-{end};" in done.out
        assert differing(whole, cut) == set(), end
        assert results(whole, method)["curves"] == results(cut, method)["curves"], end


# The reference moves at updates 2, 4 and 6, and what is learned depends on where it is.
MOVING = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5, "beta": 0.5}
MOVING |= {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "logging_steps": 1}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_trains_against_the_reference_that_had_moved(method, settings, tmp_path):
    given, whole = {**settings[method], **EXACT, **MOVING}, tmp_path / "whole"
    succeeded(again(method, **given, output_dir=whole))
    last = load_file(whole / "checkpoint-6" / "reference" / "model.safetensors")
    start = AutoModelForCausalLM.from_pretrained(given["model_name_or_path"])
    assert last.keys() == dict(start.named_parameters()).keys()
    assert not torch.equal(last["transformer.wpe.weight"], start.transformer.wpe.weight)
    for end in (3, 6):  # also after the last update, for the figures of held-out pairs
        cut = tmp_path / f"cut-{end}"
        shutil.copytree(whole, cut)
        if end == 3:
            shutil.rmtree(cut / "checkpoint-6")
        for name in ("config.json", "model.safetensors", f"{method}.json"):
            (cut / name).unlink()
        os.replace(cut / "settings.json", cut / UNFINISHED)
        assert f"resuming from {cut}/checkpoint-{end};" in succeeded(again(method, **given, output_dir=cut)).out
        assert differing(whole, cut) == set()
        assert results(whole, method)["curves"] == results(cut, method)["curves"]
        if method in RANKED:
            assert results(whole, method)["metrics"] == results(cut, method)["metrics"]
        moved = load_file(cut / "checkpoint-6" / "reference" / "model.safetensors")
        assert all(torch.equal(weight, last[name]) for name, weight in moved.items())


def test_a_checkpoint_without_the_reference_that_had_moved_is_refused(dpo_settings, tmp_path):
    given = {**dpo_settings, **EXACT, **MOVING, "max_steps": 3, "output_dir": tmp_path}
    succeeded(again("dpo", **given))
    checkpoint = tmp_path / "checkpoint-3"
    shutil.rmtree(checkpoint / "reference")
    (checkpoint / "checkpoint_files.json").unlink()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    for asked in ("last", checkpoint):
        done = again("dpo", **given, resume_from_checkpoint=asked)
        refused(
            done, f"error: sync_ref_model: {checkpoint} holds no reference: of an earlier version, of a run without"
        )


@pytest.mark.slow
def test_a_checkpoint_without_the_answers_still_to_be_trained_on_is_refused(settings, tmp_path):
    given = {**settings["rloo"], **EXACT, "save_strategy": "steps", **DRAWN_AT_ONCE, "max_steps": 2}
    succeeded(again("rloo", **given, output_dir=tmp_path))
    first = tmp_path / "checkpoint-1"
    for name in ("answers_0_of_1.pt", "checkpoint_files.json"):
        (first / name).unlink()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    done = again("rloo", **given, output_dir=tmp_path, resume_from_checkpoint=first)
    refused(done, f"{first}: holds no answers_0_of_1.pt: of an earlier version or of another number of processes")


def stop_together(rank: int, port: int, seconds: float, path: Path) -> None:
    """One of two processes at the end of a step, whose time is over after `seconds`; writes whether it stops."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    state, control = PartialState(cpu=True), TrainerControl()
    args, callback = SimpleNamespace(device=state.device), Clock(seconds)
    callback.on_train_begin(args, TrainerState(), control)
    callback.on_step_end(args, TrainerState(), control)
    path.write_text(json.dumps([state.num_processes, control.should_training_stop]))
    state.wait_for_everyone()
    state.destroy_process_group()


@pytest.mark.parametrize(("seconds", "stops"), [((0.0, 1e9), True), ((1e9, 0.0), False)])
def test_two_processes_stop_at_the_same_step_by_the_clock_of_the_first(seconds, stops, tmp_path):
    port, paths = free_port(), [tmp_path / "0.json", tmp_path / "1.json"]
    both = [
        processes().Process(target=stop_together, args=(rank, port, seconds[rank], paths[rank])) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert [json.loads(path.read_text()) for path in paths] == [[2, stops], [2, stops]]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_missing_or_finished_is_one_clear_line(method, settings, trained, tmp_path):
    given, missing = {**settings[method], **EXACT}, tmp_path / "not_there"
    done = again(method, **{**given, "model_name_or_path": missing}, output_dir=tmp_path / "out")
    refused(done, f"error: {missing}: no such file or folder; it is made by: recipes/sft.py")
    folder = trained[method][0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused(again(method, **given, output_dir=folder), f"{folder}: holds a finished model")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", DRAWING)
def test_what_cannot_be_drawn_or_rewarded_is_one_clear_line(
    method, drawing_settings, functions, tiny_model_dir, tmp_path
):
    without = {key: value for key, value in drawing_settings.items() if key != "reward_model_path"}
    cases = [
        (
            {"reward_model_path": tiny_model_dir},
            f"{tiny_model_dir}: expected a reward model (recipes/reward.py), found GPT2LMHeadModel",
        ),
        ({"reward_model_path": tmp_path / "not"}, f"{tmp_path / 'not'}: no such file or folder"),
        ({}, "found 0 rewards (reward_model_path, reward_funcs)"),
        ({"reward_funcs": f"{functions}:nothing", "reward_weights": [1.0, 2.0]}, "found 1 rewards"),
        ({"reward_funcs": f"{functions}:nobody"}, f"{functions}:nobody: no such function"),
        ({"reward_funcs": f"{functions}:nothing", "missing_eos_penalty": -1.0}, "expected at least 0, found -1.0"),
        ({"reward_funcs": f"{functions}:number"}, f"{functions}:number: found int; expected a function"),
        # Every question is one letter between two marks, and a mark opens the answer: 4 + 61 tokens.
        (
            {"reward_funcs": f"{functions}:nothing", "max_completion_length": 61},
            "64 of 64 training prompts are longer than 3 tokens, which leaves room for an answer:",
        ),
        (
            {"reward_funcs": f"{functions}:nothing", "per_device_train_batch_size": 260},
            "64 prompts do not fill one batch of 65 × 4 answers",
        ),
    ]
    for changes, message in cases:
        refused(again(method, **{**without, **EXACT, **changes}, output_dir=tmp_path / "out"), message)
        assert not (tmp_path / "out").exists()


def test_rankings_that_cannot_be_trained_on_are_one_clear_line(dpo_settings, tmp_path):
    given = {**dpo_settings, **EXACT, "output_dir": tmp_path / "out"}
    refused(again("dpo", **{**given, "max_length": 7}), "no pair fits in max_length 7")
    refused(again("dpo", **{**given, "max_length": 65}), "max_length is 65, but the model has 64 positions")
    refused(
        again("dpo", **{**given, "heldout": given["rankings"]}),
        "11 of 11 held-out prompts are trained on too; split by prompt",
    )
