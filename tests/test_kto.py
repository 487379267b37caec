"""KTO through its command: what it learns from labels, what it leaves out, what it refuses; and rows with a label elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from helpers.models import POSITIONS
from helpers.recipes import EXACT, again, conversation, is_png, loaded, ranking, refused, results, succeeded
from transformers import AutoModelForCausalLM
from trl import KTOConfig, KTOTrainer

from data_prep.common.errors import InputError
from data_prep.common.files import write_jsonl
from data_prep.models.scoring import encode_answers
from data_prep.readers.conversations import read_conversations
from data_prep.readers.labels import load_labels
from data_prep.readers.preferences import read_rankings
from recipes.kto import as_labelled

QUESTIONS, HELDOUT = "abcdefgh", "opq"


def labelled(question: str, answer: str, label: bool) -> dict:
    return {"prompt": question, "completion": answer, "label": label}


def judged(question: str, answer: str, label) -> dict:
    """LLaMA-Factory's format."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "label": label}


@pytest.fixture(scope="module")
def settings(tiny_model_dir, tmp_path_factory) -> dict:
    """Half the questions are answered yes, which is good, and half no, which is bad: a label a prompt."""
    folder = tmp_path_factory.mktemp("labels")
    answers = [("yes", True), ("no", False)]
    write_jsonl(
        folder / "train.jsonl", [judged(letter, *answers[i % 2]) for i, letter in enumerate(QUESTIONS * 2 + "i")]
    )
    write_jsonl(folder / "heldout.jsonl", [labelled(letter, *answer) for letter in HELDOUT for answer in answers])
    files = {"model_name_or_path": tiny_model_dir, "rankings": folder / "train.jsonl", "max_length": POSITIONS}
    steps = {"per_device_train_batch_size": 8, "max_steps": 20, "logging_steps": 5, "learning_rate": 0.003}
    return {**files, "heldout": folder / "heldout.jsonl", **steps, "beta": 0.2, "save_strategy": "no", **EXACT}


def gains(folder: Path, reference: Path) -> dict[str, list[float]]:
    """{answer: by how much it is likelier than before after each held-out question, in nats}."""
    (model, tokenizer), before = loaded(folder), AutoModelForCausalLM.from_pretrained(reference)

    def log_probability(model, ids: list[int], start: int) -> float:
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logs[place - 1, ids[place]].item() for place in range(start, len(ids)))

    found: dict[str, list[float]] = {"yes": [], "no": []}
    for question in HELDOUT:
        (encoded,) = encode_answers(tokenizer, [[{"role": "user", "content": question}]], [list(found)])
        for answer, ids in zip(found, encoded, strict=True):
            start = len(ids) - len(answer) - 1  # a letter is a token
            found[answer].append(log_probability(model, ids, start) - log_probability(before, ids, start))
    return found


def test_kto_learns_what_is_labelled_good_and_its_figures_are_those_of_the_saved_model(settings, tmp_path):
    done = succeeded(again("kto", **settings, output_dir=tmp_path / "kto"))
    gained = gains(tmp_path / "kto", settings["model_name_or_path"])
    assert min(gained["yes"]) > 1 > -1 > max(gained["no"])
    found = results(tmp_path / "kto", "kto")
    figures, curves = found["metrics"], found["curves"]
    # The implicit reward is beta times what an answer gained; here beta is 0.2.
    for name, answer in (("chosen", "yes"), ("rejected", "no")):
        assert figures[f"eval_{name}"] == pytest.approx(0.2 * sum(gained[answer]) / 3, abs=1e-3)
    assert figures["eval_margin"] == pytest.approx(figures["eval_chosen"] - figures["eval_rejected"], abs=1e-5)
    said = f"labelled good a reward of {figures['eval_chosen']:+.3f}, those labelled bad {figures['eval_rejected']:+.3f}\n"
    assert said in done.out
    # Before its first step the policy is its reference: no reward, no KL, and every loss is 1 − σ(0).
    assert curves["loss"][0] == [1, pytest.approx(0.5, abs=1e-6)] and curves["kl"][0] == [1, 0]
    assert figures["loss_last"] < 0.45 and figures["steps"] == 20
    # 17 rows with the i, of which the 17th would be alone in its batch of 8.
    assert "train.jsonl: 17 labelled answers, 9 good and 8 bad\n" in done.out and found["answers"] == 16
    assert "; 1 is left out that would be a batch by itself\n" in done.out
    assert "KTO in 20 steps on 16 of 16 labelled answers in " in done.out and is_png(tmp_path / "kto" / "curve.png")


def test_labels_the_other_way_round_teach_the_opposite_and_two_runs_leave_the_same_bytes(settings, tmp_path):
    rows = [json.loads(line) for line in settings["rankings"].read_text().splitlines()]
    write_jsonl(tmp_path / "swapped.jsonl", [{**row, "label": not row["label"]} for row in rows])
    given = {**settings, "rankings": tmp_path / "swapped.jsonl"}
    for name in ("one", "two"):
        succeeded(again("kto", **given, output_dir=tmp_path / name))
    gained = gains(tmp_path / "one", settings["model_name_or_path"])
    assert min(gained["no"]) > 1 > -1 > max(gained["yes"])
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_pairs_and_rankings_are_taken_apart_and_counted(settings, tmp_path):
    rows = [{"prompt": letter, "chosen": "yes", "rejected": "no"} for letter in "abc"]
    rows += [ranking("d", {"maybe": 1, "yes": 0, "no": 2, "yes!": 0}), ranking("e", {"yes": 1, "no": 1})]
    rows += [labelled("f", "both", True), labelled("f", "both", False), labelled("f", "z" * 59, False)]
    rows += [labelled("f", "z" * 60, False)]
    write_jsonl(tmp_path / "mixed.jsonl", rows)
    given = {**settings, "rankings": tmp_path / "mixed.jsonl", "max_steps": 1}
    done = succeeded(again("kto", **given, output_dir=tmp_path / "kto"))
    # Three pairs and the ranking of d, of which two are best, one last and one between; two labels and a text with both.
    assert "mixed.jsonl: 11 labelled answers, 5 good and 6 bad, from 4 rankings taken apart" in done.out
    assert "; left out: 1 answers ranked neither best nor last, 1 with all completions tied, " in done.out
    assert "2 labelled answers whose text has both labels\n" in done.out
    # Three marks, the question's letter and the end of turn stand beside an answer: 59 letters make 64 tokens.
    assert "5 answers labelled good and 5 labelled bad; 1 beyond 64 tokens (max_length) are left out\n" in done.out
    assert results(tmp_path / "kto", "kto")["answers"] == 8  # one batch of the 10


def test_rows_as_trl_encodes_them_end_on_the_end_of_turn_and_lend_each_other_their_answers(tiny_model_dir, tmp_path):
    _, tokenizer = loaded(tiny_model_dir)
    rows = [
        labelled(*each)
        for each in (("a", "yes", True), ("<|end|>", "no", False), ("b", "<|pad|>", True), ("c", "n", False))
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    args = KTOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_length=POSITIONS)
    args.per_device_train_batch_size = 2
    answers = as_labelled(load_labels(tmp_path / "rows.jsonl"), tokenizer, POSITIONS, args)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    found = KTOTrainer(model, args=args, train_dataset=answers, processing_class=tokenizer).train_dataset
    assert sorted(row["completion"][0]["content"] for row in found) == ["<|pad|>", "n", "no", "yes"]
    for row in found:
        ((expected,),) = encode_answers(tokenizer, [row["prompt"]], [[row["completion"][0]["content"]]])
        assert row["prompt_ids"] + row["completion_ids"] == expected
    lent = [row["KL_completion_ids"] for row in found]
    assert lent == [found[index]["completion_ids"] for index in (1, 0, 3, 2)]


def test_labels_in_unequal_numbers_are_told_with_the_weights_that_even_them_out(settings, tmp_path):
    rows = [labelled(letter, "yes" if i % 4 else "no", bool(i % 4)) for i, letter in enumerate("abcdefgh")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    given = {**settings, "rankings": tmp_path / "rows.jsonl", "max_steps": 1, "heldout": None}
    del given["heldout"]
    done = succeeded(again("kto", **given, output_dir=tmp_path / "plain"))
    assert "6 answers labelled good and 2 labelled bad\n" in done.out
    # Eq. 8 of the paper: 6 × desirable_weight to 2 × undesirable_weight is to be from 1 to 1.33.
    assert "desirable_weight in [0.33, 0.44] or undesirable_weight in [2.26, 3.0]" in " ".join(done.err.split())
    done = succeeded(again("kto", **given, undesirable_weight=3.0, output_dir=tmp_path / "weighed"))
    assert "undesirable_weight in" not in done.err


def test_what_kto_cannot_train_on_is_one_clear_line(settings, tmp_path):
    given = {**settings, "output_dir": tmp_path / "out"}
    one = {**given, "per_device_train_batch_size": 1}
    refused(again("kto", **one), "per_device_train_batch_size: found 1; expected 2 or more: KTO estimates the KL")
    refused(again("kto", **given, train_sampling_strategy="random"), "train_sampling_strategy: found 'random'")
    refused(again("kto", **given, auto_find_batch_size=True), "auto_find_batch_size: this recipe would ignore it")
    rows = [labelled(letter, "yes", True) for letter in "abcd"]
    write_jsonl(tmp_path / "good.jsonl", rows)
    message = "KTO needs answers of both labels: found 4 answers labelled good and 0 labelled bad\n"
    refused(again("kto", **{**given, "rankings": tmp_path / "good.jsonl"}), message.strip())
    write_jsonl(tmp_path / "tied.jsonl", [ranking("a", {"yes": 1, "no": 1})])
    refused(
        again("kto", **{**given, "rankings": tmp_path / "tied.jsonl"}),
        "left out: 1 with all completions tied; expected",
    )
    # "no" makes 7 tokens, "yes" 8.
    for length, bad, beyond in ((7, 8, 9), (6, 0, 17)):
        message = f"found 0 answers labelled good and {bad} labelled bad; {beyond} beyond {length} tokens (max_length)"
        refused(again("kto", **{**given, "max_length": length}), message)
    refused(
        again("kto", **{**given, "heldout": given["rankings"]}),
        "9 of 9 held-out prompts are trained on too; split by prompt",
    )
    assert not (tmp_path / "out").exists()


def test_the_loss_without_a_kl_takes_batches_of_one_in_any_order(settings, tmp_path):
    given = {**settings, "per_device_train_batch_size": 1, "max_steps": 2, "loss_type": "apo_zero_unpaired"}
    given["train_sampling_strategy"] = "random"
    done = succeeded(again("kto", **given, output_dir=tmp_path / "kto"))
    assert "9 answers labelled good and 8 labelled bad\n" in done.out


# One label a prompt, elsewhere

LABELLED = {
    "LLaMA-Factory": judged("Q", "A", False),
    "ShareGPT, kto_tag": {"conversations": conversation("1", "Q", "A")["conversations"], "kto_tag": True},
    "Alpaca": {"instruction": "Q", "output": "A", "kto_tag": False},
    "response": {"prompt": "Q", "response": "A", "label": "True"},
    "CSV's 0": {"question": "Q", "answer": "A", "label": "0"},
    "TRL": labelled("Q", "A", True),
}


@pytest.mark.parametrize("row", LABELLED.values(), ids=LABELLED)
def test_a_labelled_answer_is_a_judgement_and_no_demonstration(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [row])
    with pytest.raises(InputError, match="1 row cannot be used: 1 × an answer labelled good or bad") as raised:
        read_conversations(path)
    field = "kto_tag" if "kto_tag" in row else "label"
    expected = (
        "a conversation to learn from; labelled answers are preferences: recipes/kto.py takes them. Name the columns"
    )
    assert f"found {row[field]!r} under '{field}'; expected {expected}" in str(raised.value)
    (read,) = load_labels(path)
    label = str(row[field]).lower() in ("true", "1")
    assert read == {"prompt": [{"role": "user", "content": "Q"}], "completion": "A", "label": label}
    with pytest.raises(InputError, match="found 1 labelled answers whose prompt has only one label; ") as raised:
        read_rankings(path)
    assert "one label a prompt makes no ranking: " in str(raised.value) and "recipes/kto.py" in str(raised.value)


def test_a_label_that_is_no_judgement_is_a_field_like_any_other(tmp_path):
    """Seen by its value, or by the columns that are named."""
    write_jsonl(tmp_path / "rows.jsonl", [judged("Q", "A", label) for label in ("math", 7, "", None)])
    rows, _ = read_conversations(tmp_path / "rows.jsonl")
    assert [len(row["messages"]) for row in rows] == [2] * 4
    write_jsonl(tmp_path / "rows.jsonl", [judged("Q", "A", 1)])
    rows, _ = read_conversations(tmp_path / "rows.jsonl", columns="messages=messages")
    assert [len(row["messages"]) for row in rows] == [2]


def test_what_a_label_is_of_is_the_last_answer_of_a_conversation(tmp_path):
    turns = conversation("1", "Q", "A", "and?", "B", "so?")["conversations"]
    write_jsonl(tmp_path / "open.jsonl", [{"conversations": turns, "label": True}])
    with pytest.raises(InputError, match="completion is not an answer"):  # what was judged is not there
        load_labels(tmp_path / "open.jsonl")
    write_jsonl(tmp_path / "whole.jsonl", [{"system": "S", "instruction": "Q", "output": "B", "label": True}])
    (read,) = load_labels(tmp_path / "whole.jsonl")
    assert [turn["content"] for turn in read["prompt"]] == ["S", "Q"] and read["completion"] == "B"
    write_jsonl(tmp_path / "turns.jsonl", [{"conversations": turns[:4], "label": True}])
    (read,) = load_labels(tmp_path / "turns.jsonl")
    assert [turn["content"] for turn in read["prompt"]] == ["Q", "A", "and?"] and read["completion"] == "B"


@pytest.mark.parametrize("recipe", ["reward", "dpo"])
def test_one_label_a_prompt_stops_the_recipes_of_rankings_before_any_work(recipe, settings, tmp_path):
    given = {key: value for key, value in settings.items() if key not in ("heldout", "beta", "rankings")}
    write_jsonl(tmp_path / "rows.jsonl", [judged(letter, "yes", True) for letter in QUESTIONS])
    done = again(recipe, **given, rankings=tmp_path / "rows.jsonl", output_dir=tmp_path / "out")
    text = refused(done, "no ranking is left: found 8 labelled answers whose prompt has only one label; ")
    assert text.endswith("or train on the labels themselves, by recipes/kto.py") and not (tmp_path / "out").exists()


def test_fine_tuning_does_not_take_what_is_labelled_bad_for_an_example(settings, tmp_path):
    given = {key: settings[key] for key in ("model_name_or_path", "max_length")}
    given |= {"max_new_tokens": 4, **EXACT}
    done = again("sft", **given, conversations=settings["rankings"], output_dir=tmp_path / "out")
    refused(done, f"{settings['rankings']}: 17 rows cannot be used: 17 × an answer labelled good or bad")
    assert not (tmp_path / "out").exists()
