"""Templates that end a prompt otherwise than they begin an answer, or write something of their own at an answer's head."""

import copy
import io
import sys
import threading

import pytest
from helpers.models import counting_model, save, tiny_config
from helpers.recipes import EXACT, again, conversation, ranking, refused, succeeded
from transformers import AutoTokenizer, GPT2LMHeadModel
from trl.chat_template_utils import get_training_chat_template, qwen3_chat_template

from data_prep import sample_completions
from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_json, write_jsonl
from data_prep.models.generation import generate_answers
from data_prep.models.scoring import encode_answers
from data_prep.tokens.chat_encoder import encode_prompts
from data_prep.tokens.generation_prompt import check_begins
from data_prep.train_tokenizer import train_tokenizer
from eval import chat
from eval.pages.talkers import Checkpoint, Options

LONGEST = 256  # tokens, of which a letter is one
# As DeepSeek-R1-Distill's: a prompt ends with <think>, and an answer that is trained on does not begin with it.
THINKS = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' }}{% generation %}{{ message.content + '<|end|>' }}"
    "{% endgeneration %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"
)
# As Qwen3's: a plain answer gets an empty block, which generation has to write.
EMPTY_BLOCK = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' }}{% if message.role == 'assistant' %}{% generation %}"
    "{{ ('' if '<think>' in message.content else '<think></think>') + message.content + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Writes x at the head of every answer, as gpt-oss writes its channel.
HEAD = EMPTY_BLOCK.replace("'' if '<think>' in message.content else '<think></think>'", "'x'")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, dict]:
    """A step of each recipe on the same answers."""
    folder = tmp_path_factory.mktemp("data")
    answers = [ranking(letter, {"Paris": 0, "no": 1}) for letter in "abcd"]
    write_jsonl(folder / "ranked.jsonl", answers)
    write_json(folder / "chats.json", [conversation(letter, letter, "Paris") for letter in "abcd"])
    steps = {**EXACT, "save_strategy": "no", "logging_steps": 1, "max_steps": 1, "max_length": LONGEST}
    ranked = {**steps, "rankings": folder / "ranked.jsonl", "per_device_train_batch_size": 4}
    sft = {**steps, "conversations": folder / "chats.json", "max_new_tokens": 4, "assistant_only_loss": True}
    return {"dpo": ranked, "kto": ranked, "reward": ranked, "sft": sft}


@pytest.fixture(scope="module")
def model_with(tiny_chat_tokenizer, tmp_path_factory):
    """model_with(template): the folder of a small random model with this chat template."""

    def build(template: str):
        folder = tmp_path_factory.mktemp("models")
        save(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer, n_positions=LONGEST)), tiny_chat_tokenizer, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.mark.parametrize("recipe", ["dpo", "kto", "reward", "sft"])
def test_a_prompt_that_answers_do_not_begin_with_is_refused(recipe, model_with, settings, tmp_path):
    done = again(recipe, model_name_or_path=model_with(THINKS), output_dir=tmp_path, **settings[recipe])
    ends, sees = "ends a prompt with '<think>'", "with the answer 'Paris' it writes 'Paris<|end|>' there"
    refused(done, ends, sees, "recipes/sft.py (chat_template_path)")


@pytest.mark.parametrize("recipe", ["dpo", "kto", "reward", "sft"])
def test_a_block_behind_the_prompt_is_trained_on(recipe, model_with, settings, tmp_path):
    succeeded(again(recipe, model_name_or_path=model_with(EMPTY_BLOCK), output_dir=tmp_path, **settings[recipe]))


def test_a_line_break_that_an_answer_begins_with_is_no_fault_of_the_template():
    tokenizer = train_tokenizer(["\n\nthe cat\n\n"] * 5, 263)  # one merge
    tokenizer.chat_template = THINKS.replace("'|>'", "'|>\\n'").replace("<|assistant|><think>", "<|assistant|>\\n")
    prompts, answers = [[{"role": "user", "content": "a"}]], [["\nyes"]]
    (start,), ((whole,),) = encode_prompts(tokenizer, prompts), encode_answers(tokenizer, prompts, answers)
    assert (tokenizer.decode(start[-1]), tokenizer.decode(whole[len(start) - 1])) == ("\n", "\n\n")
    check_begins(tokenizer, prompts, answers, [[whole]])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>\\n", "<|assistant|>\\n<think>")
    with pytest.raises(InputError, match=r"the chat template ends a prompt with '\\n<think>'"):
        check_begins(tokenizer, prompts, answers, [[whole]])


def test_fine_tuning_saves_the_template_that_it_encoded_earlier_turns_by(model_with, settings, tmp_path):
    model = model_with(qwen3_chat_template)
    chats = [conversation(letter, letter, "x", "b", "z") for letter in "abcd"]
    write_json(tmp_path / "chats.json", chats)
    (tmp_path / "own.jinja").write_text(qwen3_chat_template)
    given = {**settings["sft"], "conversations": tmp_path / "chats.json"}
    for name, more in (("own", {}), ("given", {"chat_template_path": tmp_path / "own.jinja"})):
        folder = tmp_path / name
        done = succeeded(again("sft", model_name_or_path=model, output_dir=folder, **given, **more))
        assert done.out.count("chat_template: TRL's copy for training") == 1
        saved = AutoTokenizer.from_pretrained(folder)
        own = AutoTokenizer.from_pretrained(model)
        assert saved.chat_template == get_training_chat_template(own) != own.chat_template
        turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "x"), ("user", "b"))]
        (ids,) = encode_prompts(saved, [turns])
        assert saved.decode(ids) == (
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nx<|im_end|>\n"
            "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
        )


@pytest.fixture(scope="module")
def counting(tiny_chat_tokenizer, tmp_path_factory):
    """counting(template): it answers xxxx after a letter, places 3 to 6, and ends its turn."""

    def build(template: str):
        tokenizer = copy.deepcopy(tiny_chat_tokenizer)
        tokenizer.chat_template = template
        return save(counting_model(tokenizer, 7), tokenizer, tmp_path_factory.mktemp("counting"))

    return build


def test_what_the_template_writes_at_the_head_is_no_part_of_the_answer(counting, command, settings, tmp_path):
    sampled = tmp_path / "sampled.jsonl"
    for template, text in ((HEAD.replace("'x'", "''"), "xxxx"), (HEAD, "xxx"), (HEAD.replace("'x'", "'xy'"), "xxxx")):
        model = counting(template)
        given = ("--model", model, "--conversations", settings["sft"]["conversations"], "--output", sampled)
        code, _, err = command(sample_completions, *given, "--num_return_sequences", 1, "--max_new_tokens", 8)
        assert code == 0, err
        assert [row["completions"] for row in read_jsonl(sampled)] == [[text]] * 4
        sampled.unlink()


def test_the_ids_of_an_answer_keep_the_head(counting):
    model, tokenizer = (kind.from_pretrained(counting(HEAD)) for kind in (GPT2LMHeadModel, AutoTokenizer))
    ((answer,),) = generate_answers(model, tokenizer, [[{"role": "user", "content": "a"}]], 8)
    assert (answer["text"], tokenizer.decode(answer["ids"]), answer["tokens"]) == ("xxx", "xxxx<|end|>", 5)
    ((short,),) = generate_answers(model, tokenizer, [[{"role": "user", "content": "a"}]], 1)
    assert (short["text"], tokenizer.decode(short["ids"]), short["stopped"]) == ("", "x", False)


def test_chatting_does_not_show_the_head(counting, command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n/reset\nb\n"))
    model = counting(HEAD)
    code, out, err = command(chat, "--model", model, "--max_new_tokens", 8)
    assert code == 0 and out.count("model> xxx\n") == 2, out + err
    told = []
    said = Checkpoint(str(model)).answer([], "a", Options(0.0, 8), threading.Event(), told.append)
    assert said.text == "xxx" and told == ["", "x", "xx", "xxx", "xxx"]


@pytest.mark.parametrize("recipe", ["rloo", "grpo", "ppo"])
def test_reward_functions_see_answers_without_the_head(recipe, counting, settings, tmp_path):
    (tmp_path / "reward.py").write_text(
        "def seen(prompts, completions, **columns):\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'a') as file:\n"
        "        file.writelines(answer[-1]['content'] + '\\n' for answer in completions)\n"
        "    return [float(place) for place in range(len(prompts))]\n"
    )
    steps = {**EXACT, "learning_rate": 1e-9, "save_strategy": "no", "reward_funcs": f"{tmp_path / 'reward.py'}:seen"}
    steps |= {"prompts": settings["sft"]["conversations"], "output_dir": tmp_path / "out"}
    if recipe == "ppo":
        steps |= {"sft_model_path": counting(HEAD), "per_device_train_batch_size": 4, "total_episodes": 4}
        steps |= {"response_length": 8, "num_mini_batches": 1, "num_ppo_epochs": 1, "gradient_accumulation_steps": 1}
    else:
        steps |= {"model_name_or_path": counting(HEAD), "per_device_train_batch_size": 8, "num_generations": 2}
        steps |= {"max_completion_length": 8, "max_steps": 1}
    succeeded(again(recipe, **steps))
    assert set((tmp_path / "seen").read_text().splitlines()) == {"xxx"}
