"""A saved folder, and whether it answers wherever it is served as it was trained: through the command, faults planted."""

import importlib.util
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.models import save, tiny_config
from helpers.recipes import EXACT, LORA, again, conversation, succeeded
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, pipeline

from data_prep.common.files import write_json
from data_prep.models.generation import generate_answers
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer
from eval import serving
from eval.serving_checks.modelfile import modelfile, turns_of
from recipes.trainers.saving import serve_as_measured

ASSISTANT = "{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] -}}"
DEFAULT_SYSTEM = "{%- if messages[0]['role'] != 'system' -%}{{- '<|system|>Be nice.<|end|>' -}}{%- endif -%}"
QUESTIONS = ["a", "bc", "d"]  # <|user|>, the letters, <|end|>, <|assistant|>: 4, 5 and 4 tokens


def saved(source: Path, folder: Path) -> Path:
    """A copy of a model as the recipes save it, which says that it was trained from `source`."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    serve_as_measured(model, tokenizer)
    save(model, tokenizer, folder)
    write_json(folder / "settings.json", {"recipe": "sft.py", "settings": {"model_name_or_path": str(source)}})
    return folder


@pytest.fixture
def folder(yes, tmp_path) -> Path:
    return saved(yes, tmp_path / "assistant")


@pytest.fixture
def conversations(tmp_path) -> Path:
    write_json(tmp_path / "questions.json", [conversation(letter, letter, "yes") for letter in QUESTIONS])
    return tmp_path / "questions.json"


@pytest.fixture
def server():
    """server(answer) is the address of a server with OpenAI's interface; answer(question) is (HTTP status, text)."""
    started = []

    def start(
        answer=lambda question: (200, "yes"), extra_tokens: int = 0, logprob: float | None = None, key: str = "none"
    ) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"object": "list", "data": [{"id": "served", "object": "model"}]})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Authorization"] == f"Bearer {key}"
                assert asked["model"] == "served" and set(asked) <= {"model", "messages", "logprobs"}
                if "logprobs" in asked and logprob is None:
                    return self.reply(422, {"error": "logprobs are not supported"})
                (message,) = asked["messages"]
                status, text = answer(message["content"])
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                if logprob is not None:
                    tokens = [{"token": "?", "logprob": logprob, "top_logprobs": []}] * (len(text) + 1)
                    choice["logprobs"] = {"content": tokens, "refusal": None}
                prompt = len(message["content"]) + 3 + extra_tokens
                usage = {"prompt_tokens": prompt, "completion_tokens": 4, "total_tokens": prompt + 4}
                about = {"id": "1", "object": "chat.completion", "created": 0, "model": "served"}
                refused = status != 200 and {"error": {"message": text}}
                return self.reply(status, refused or {**about, "choices": [choice], "usage": usage})

            def reply(self, status, value):
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}/v1"

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


@pytest.fixture
def check(command, conversations, server, tmp_path):
    """check(folder, …) is the command, with a good server unless told: (exit code, {check: its line and figures})."""
    pytest.importorskip("openai", reason="the extra serving is not installed")

    def call(folder: Path, *options, url: str | None = None) -> tuple[int, dict]:
        given = ["--model", folder, "--conversations", conversations, "--max_new_tokens", 8]
        given += ["--results_dir", tmp_path / "results", "--url", url or server(), *options]
        code, out, err = command(serving, *given)
        assert "error:" not in err, err
        found = json.loads((tmp_path / "results" / f"serving_{folder.name}.json").read_text())
        for name, row in found["checks"].items():
            assert f"{name} " in out and row["status"] in out and row["detail"] in out
        assert found["same"] is (code == 0) and found["prompts"] == len(QUESTIONS)
        return code, found["checks"]

    return call


def statuses(checks: dict) -> dict[str, str]:
    return {name: row["status"] for name, row in checks.items()}


def test_what_the_recipes_save_serves_as_it_was_trained(check, folder, yes, server):
    code, checks = check(folder, url=server(logprob=-1e-4))
    assert code == 0
    assert statuses(checks) == {
        "prompt tokens": "same",
        "end of turn": "same",
        "generation_config": "same",
        "pipeline": "same",
        "server": "same",
        "vLLM": "not installed",
        "llama.cpp (GGUF)": "not installed",
    }
    assert checks["prompt tokens"]["detail"] == f"3 of 3; training: {yes}, by settings.json"
    assert checks["end of turn"]["detail"] == "'<|end|>' in the template and as eos_token_id"
    assert checks["generation_config"]["detail"] == "greedy, at most 64 tokens"
    assert checks["pipeline"]["same"] == checks["server"]["same"] == 3
    assert checks["pipeline"]["logprob_difference"] < 1e-6
    assert checks["server"]["logprob_difference"] == pytest.approx(1e-4, rel=0.01)  # the model is certain: 0 nats


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "row", "message"),
    [
        ("chat_template.jinja", "'<|' + message['role'] + '|>'", "'<|system|>'", "prompt tokens",
         "3 of 3: prompt 1 differs at token 0: wrong template: '<|system|>a<|end|><|assistant|>' for "
         "'<|user|>a<|end|><|assistant|>' of training"),
        ("chat_template.jinja", "{%- if tools -%}", "{{- '<|endoftext|><|endoftext|>' -}}{%- if tools -%}", "prompt tokens",
         "differs at token 0: BOS twice ('<|endoftext|>')"),
        ("chat_template.jinja", "{%- if tools -%}", DEFAULT_SYSTEM + "{%- if tools -%}", "prompt tokens",
         "a default system turn that training had not, '<|system|>Be nice.<|end|>'"),
        ("chat_template.jinja", "{{- '<|end|>' -}}{%- endgeneration -%}", "{%- endgeneration -%}", "end of turn",
         "missing end of turn: the template closes an answer with None, in training it was '<|end|>'"),
        ("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 0', "end of turn",
         "missing end of turn: generation_config.json stops at '<|endoftext|>', and an answer ends with '<|end|>'"),
        ("generation_config.json", '"do_sample": false', '"do_sample": true', "generation_config",
         "do_sample: it samples; greedy is measured"),
        ("generation_config.json", '"max_length": 64', '"max_new_tokens": 64', "generation_config",
         "its limit of 65 tokens runs past the context of 64"),
    ],
    ids=["template", "bos twice", "default system", "no end of turn", "stops elsewhere", "samples", "too long"],
)  # fmt: skip
def test_a_fault_in_the_folder_is_found_and_named(check, folder, file, old, new, row, message):
    replace(folder / file, old, new)
    code, checks = check(folder)
    assert code == 1 and checks[row]["status"] == "differs" and message in checks[row]["detail"]
    others = {name for name, each in checks.items() if each["status"] == "differs"} - {row, "pipeline"}
    assert not others, checks


def test_a_model_that_does_not_stop_at_its_end_of_turn_goes_on_in_pipeline(check, folder):
    replace(folder / "generation_config.json", '"eos_token_id": 2', '"eos_token_id": 0')
    _, checks = check(folder)
    assert checks["pipeline"]["status"] == "differs" and checks["pipeline"]["token"] == 4  # y e s <|end|> and more


def test_what_a_server_does_otherwise_is_told(check, folder, server):
    def one_in_three(question):
        return (200, "yet") if question == "bc" else (200, "yes")

    code, checks = check(folder, url=server(one_in_three))
    assert code == 1 and checks["server"]["status"] == "differs" and checks["server"]["token"] == 2
    assert checks["server"]["detail"].startswith("2 of 3 answers; prompt 2 differs at token 2: 'yet' for 'yes'")
    code, checks = check(folder, url=server(lambda question: (500 if question == "d" else 200, "yes")))
    assert code == 1 and checks["server"]["status"] == "fails" and checks["server"]["failed"] == 1
    assert "2 of 3 answers; prompt 3: 'Error code: 500" in checks["server"]["detail"]
    code, checks = check(folder, url=server(extra_tokens=1))
    assert code == 1 and "its prompt 1 has 5 tokens, 4 are expected" in checks["server"]["detail"]
    code, checks = check(folder, url=server(logprob=-0.01))
    assert code == 1 and checks["server"]["status"] == "differs"


KEY = "sk-secret-0123456789abcdef"


def test_a_key_that_a_server_repeats_is_neither_shown_nor_kept(
    command, conversations, folder, server, tmp_path, monkeypatch
):
    pytest.importorskip("openai", reason="the extra serving is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")  # as `$(cat file)` may leave it
    # In the first reply the key stands where the message is cut off, after 160 characters with what is around it.
    replies = {"a": (401, f"{115 * 'x'} {KEY} is wrong"), "bc": (200, f"not {KEY}"), "d": (200, "yes")}
    given = ["--model", folder, "--conversations", conversations, "--max_new_tokens", 8, "--results_dir", tmp_path]
    code, out, err = command(serving, *given, "--url", server(replies.get, key=KEY))
    detail = json.loads((tmp_path / f"serving_{folder.name}.json").read_text())["checks"]["server"]["detail"]
    assert code == 1 and detail in out
    assert detail == (
        f"1 of 3 answers; prompt 1: 'Error code: 401 - {115 * 'x'} [key] is wrong'; "
        "prompt 2 differs at token 0: 'not [key]' for 'yes'; it gives no log-probabilities"
    )
    shown = out + err + (tmp_path / f"serving_{folder.name}.json").read_text()
    assert "sk-s" not in shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://me:hidden77@127.0.0.1:9/v1",
         "--url: found a password in it; expected the key in an environment variable (OPENAI_API_KEY)"),
        ("http://me:hidden77@127.0.0.1:9/v1?a=b",
         "--url: found a password in it; expected the key in an environment variable (OPENAI_API_KEY)"),
        ("http://me:hidden77@127.0.0.1:nine/v1", "--url: expected an address such as http://127.0.0.1:8000/v1"),
        ("me:hidden77@127.0.0.1", "--url: expected an address such as http://127.0.0.1:8000/v1"),
        ("ftp://x", "--url 'ftp://x': expected an address such as http://127.0.0.1:8000/v1"),
    ],
)  # fmt: skip
def test_an_address_with_a_password_or_none_is_refused_before_any_work(command, tmp_path, url, says):
    given = ("--model", tmp_path / "none", "--conversations", tmp_path / "none")
    assert command(serving, *given, "--url", url) == (1, "", f"error: {says}\n")


def test_a_key_with_characters_that_no_key_has(command, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk geheim ä")
    given = ("--model", tmp_path / "none", "--conversations", tmp_path / "none", "--url", "http://127.0.0.1:9/v1")
    code, _, err = command(serving, *given)
    says = "OPENAI_API_KEY: the environment variable holds no key: it has characters that no key has"
    assert (code, err) == (1, f"error: {says}\n")


def test_without_a_server_or_the_extra_it_is_said(command, conversations, folder, monkeypatch):
    given = ["--model", folder, "--conversations", conversations, "--max_new_tokens", 8]
    find = importlib.util.find_spec
    gone = ("openai", "fastapi", "uvicorn", "vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else find(name, *more))
    code, out, _ = command(serving, *given)
    assert code == 0 and "not installed  openai, fastapi, uvicorn: pip install -e '.[serving]'" in out
    monkeypatch.undo()
    pytest.importorskip("openai", reason="the extra serving is not installed")
    monkeypatch.setattr("sys.argv", ["serving"])
    code, _, err = command(serving, *given, "--url", "http://127.0.0.1:9/v1")
    assert code == 1 and "error: --url http://127.0.0.1:9/v1: no server with OpenAI's interface answers there" in err


def test_vllm_is_asked_with_what_it_takes_from_the_folder(check, folder, tmp_path, monkeypatch):
    """No vLLM here: a module of its name that answers as its LLM class does, by a wrong token at the end."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "vllm.py").write_text(
        "from types import SimpleNamespace as Of\n"
        "class LLM:\n"
        "    def __init__(self, model, trust_remote_code):\n"
        "        assert not trust_remote_code\n"
        "    def get_default_sampling_params(self):\n"
        "        return Of(max_tokens=16, temperature=0)\n"
        "    def chat(self, prompts, parameters):\n"
        "        assert (parameters.max_tokens, parameters.temperature) == (8, 0)\n"
        "        ids = [94, 74, 88, 2]\n"
        "        steps = [{token: Of(logprob=0.0)} for token in ids]\n"
        "        return [Of(outputs=[Of(token_ids=tuple(ids), logprobs=steps)]) for _ in prompts]\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("yes<|end|>", add_special_tokens=False)["input_ids"]
    replace(tmp_path / "stub" / "vllm.py", "[94, 74, 88, 2]", str(ids))
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    code, checks = check(folder)
    assert code == 0 and checks["vLLM"]["status"] == "same" and checks["vLLM"]["same"] == 3


# An adapter, merged


@pytest.fixture
def adapter(yes, tmp_path) -> Path:
    """A LoRA adapter on the model that says yes, which moves its logits without moving its answers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(yes)
    settings = LoraConfig(
        r=2, target_modules=["c_fc"], init_lora_weights=False, task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(yes).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def merged_into(folder: Path, adapter: Path, scale: float = 1.0) -> None:
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).merge_and_unload()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(folder)


def test_an_adapter_and_the_model_it_was_merged_into_are_compared(check, folder, adapter):
    merged_into(folder, adapter)
    code, checks = check(folder, "--adapter", adapter)
    assert code == 0 and checks["adapter and merged"]["status"] == "same"
    assert checks["adapter and merged"]["logit_difference"] < 1e-3
    merged_into(folder, adapter, scale=1.5)
    code, checks = check(folder, "--adapter", adapter)
    row = checks["adapter and merged"]
    assert code == 1 and row["status"] == "refused"
    assert "3 of 3 answers" in row["detail"] and "of the logits' standard deviation (bound: 0.25)" in row["detail"]


def test_an_adapter_of_another_vocabulary_than_the_model_is_refused(check, folder, adapter):
    merged_into(folder, adapter)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(270)
    model.save_pretrained(folder)
    code, checks = check(folder, "--adapter", adapter)
    row = checks["adapter and merged"]
    assert code == 1 and row["status"] == "refused" and row["vocabulary"] == [262, 270]
    assert row["detail"] == "resized vocabulary: the adapter's base has 262 tokens, the merged model 270"


@pytest.mark.slow
def test_fine_tuning_by_lora_serves_as_it_was_trained_merged_and_beside_its_base(
    command, tiny_model_dir, conversations, tmp_path
):
    """Everything by the commands: the recipe, pipeline and a server of transformers, on the merged model and the adapter."""
    pytest.importorskip("fastapi", reason="the extra serving is not installed")
    base = saved(tiny_model_dir, tmp_path / "base")  # whose generation config pipeline takes for the adapter
    given = {"model_name_or_path": base, "conversations": conversations, "max_length": 64, "assistant_only_loss": True}
    given |= {**LORA, **EXACT, "max_steps": 12, "save_steps": 6, "learning_rate": 0.02, "max_new_tokens": 8}

    def asked(*options) -> tuple[int, dict, str]:
        given = ["--conversations", conversations, "--max_new_tokens", 8, "--results_dir", tmp_path, "--name", "it"]
        code, out, _ = command(serving, *given, *options)
        return code, json.loads((tmp_path / "serving_it.json").read_text())["checks"], out

    for name, merge in {"merged": True, "beside": False}.items():
        succeeded(again("sft", **given, merge_adapter=merge, output_dir=tmp_path / name))
        code, checks, out = asked("--model", tmp_path / name)
        assert code == 0, out
        for check in ("pipeline", "adapter and merged", *(["transformers serve"] if merge else [])):
            assert checks[check]["status"] == "same" and checks[check]["same"] == checks[check]["of"] == 3
        if not merge:  # it looks for a config.json in the folder
            row = checks["transformers serve"]
            assert row["status"] == "note" and row["detail"].startswith(
                "not asked: it serves no adapter by itself; merge"
            )
        assert checks["adapter and merged"]["logit_difference"] < 1e-3
    # of the checkpoint before the last the merged model is not made
    code, checks, _ = asked("--model", tmp_path / "merged", "--adapter", tmp_path / "merged" / "checkpoint-6")
    assert code == 1 and checks["adapter and merged"]["status"] in ("differs", "refused")
    code, _, err = command(serving, "--model", tmp_path / "beside", "--conversations", conversations, "--adapter", "x")
    assert code == 1 and err.startswith("error: ")


def test_fine_tuning_does_not_merge_an_adapter_that_would_answer_otherwise(tiny_model_dir, conversations, tmp_path):
    """Input and output embedding are one matrix: an adapter on the input, merged, moves the output too."""
    given = {"model_name_or_path": tiny_model_dir, "conversations": conversations, "max_length": 64, "max_steps": 20}
    given |= {**LORA, **EXACT, "lora_target_modules": ["wte", "c_attn"], "learning_rate": 0.1, "max_new_tokens": 4}
    done = succeeded(again("sft", **given, assistant_only_loss=True, output_dir=tmp_path / "sft"))
    assert "the adapter is saved by itself, not merged: merged, the largest logit moves by " in done.out
    assert "the adapter is on wte, and input and output embeddings are one matrix (tie_word_embeddings)" in done.out
    assert (tmp_path / "sft" / "adapter_model.safetensors").exists() and not (
        tmp_path / "sft" / "config.json"
    ).exists()
    assert json.loads((tmp_path / "sft" / "generation_config.json").read_text())["eos_token_id"] == 2


# What is saved


def test_an_answer_without_an_end_stops_within_the_context(tiny_model_dir, tmp_path):
    """`pipeline` writes 256 tokens unless told, `transformers serve` 1,024; the model has 64 positions."""
    folder = saved(tiny_model_dir, tmp_path / "endless")
    pipe = pipeline("text-generation", model=str(folder), device="cpu")
    question = [{"role": "user", "content": "a"}]
    assert len(pipe(question, return_tensors=True)[0]["generated_token_ids"]) == 4 + 50  # the last one is the end
    asked = pipe(question, max_new_tokens=1024, return_tensors=True)[0]["generated_token_ids"]
    assert len(asked) == 4 + 50 and asked[-1] == 2


def test_what_a_models_own_generation_config_says_does_not_change_what_is_measured(yes):
    """Qwen's says repetition_penalty 1.05; this one wants 6 tokens at least, and the answer has 4."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(yes), AutoTokenizer.from_pretrained(yes)
    model.generation_config.min_new_tokens = 6
    ((answer,),) = generate_answers(model, tokenizer, [[{"role": "user", "content": "a"}]], 8)
    assert answer["text"] == "yes" and answer["stopped"] and answer["tokens"] == 4


# llama.cpp and Ollama


def test_a_modelfile_writes_what_the_chat_template_writes(tiny_chat_tokenizer):
    turns = turns_of(tiny_chat_tokenizer)
    assert modelfile("a.gguf", turns, END_OF_TURN, "<|endoftext|>", 64) == (
        "FROM ./a.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|system|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "user" }}<|user|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>{{ end }}{{ end }}<|assistant|>"""\n'
        "PARAMETER temperature 0\n"
        "PARAMETER num_ctx 64\n"
        'PARAMETER stop "<|end|>"\n'
    )


def test_a_tokenizer_that_splits_as_gpt2_does(tmp_path, command):
    from data_prep import train_tokenizer as module

    (tmp_path / "corpus.txt").write_text("a 2024\n" * 40)
    given = ["--corpus", tmp_path / "corpus.txt", "--vocab_size", 266, "--output_dir"]
    for split in ("gpt2", "gpt4"):
        code, *_ = command(module, *given, tmp_path / split, "--pre_tokenizer", split)
        assert code == 0
        written = json.loads((tmp_path / split / "tokenizer.json").read_text())["pre_tokenizer"]
        assert (written["type"] == "ByteLevel" and written["use_regex"]) is (split == "gpt2")
    # " 2024" is one piece to GPT-2, and three in pairs of digits, without the blank.
    assert AutoTokenizer.from_pretrained(tmp_path / "gpt2").tokenize(" 2024") == ["Ġ2024"]
    assert AutoTokenizer.from_pretrained(tmp_path / "gpt4").tokenize(" 2024") == ["Ġ", "20", "24"]


def test_what_is_needed_for_a_gguf_file_is_said_before_any_work(command, conversations, folder, tmp_path):
    given = ["--model", folder, "--conversations", conversations]
    code, _, err = command(serving, *given, "--llama_cpp", tmp_path)
    assert code == 1 and err == f"error: --llama_cpp {tmp_path}: found no convert_hf_to_gguf.py in it\n"
    code, _, err = command(serving, *given, "--gguf_dir", tmp_path / "gguf")
    assert code == 1 and err.startswith("error: --gguf_dir: it needs --llama_cpp")
    code, _, err = command(serving, *given, "--adapter", tmp_path)
    assert code == 1 and err == f"error: --adapter {tmp_path}: found no adapter_config.json in it\n"


@pytest.mark.slow
def test_transformers_serve_started_by_the_command(command, conversations, folder):
    pytest.importorskip("fastapi", reason="the extra serving is not installed")
    code, out, _ = command(serving, "--model", folder, "--conversations", conversations, "--max_new_tokens", 8)
    assert code == 0 and "transformers serve  same           3 of 3 answers; it gives no log-probabilities" in out


@pytest.mark.slow
def test_llama_cpp_reads_a_tokenizer_that_splits_as_gpt2_does(command, conversations, talker, tmp_path):
    """Needs llama.cpp's sources in the folder that LLAMA_CPP names, and the extra gguf."""
    pytest.importorskip("xllamacpp", reason="the extra gguf is not installed")
    if "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_CPP does not name a folder with convert_hf_to_gguf.py")
    train_tokenizer(iter(["yes and no, a bc d"] * 9), 266, "gpt2").save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", eos_token=END_OF_TURN)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tokenizer, n_embd=64, n_head=2))
    folder = saved(save(model, tokenizer, tmp_path / "source"), tmp_path / "split")
    given = ["--model", folder, "--conversations", conversations, "--max_new_tokens", 8]
    given += ["--llama_cpp", os.environ["LLAMA_CPP"]]
    code, out, _ = command(serving, *given, "--gguf_dir", tmp_path / "gguf")
    line = next(line for line in out.splitlines() if line.startswith("llama.cpp"))
    assert code == 0 and "same           3 of 3 answers; Modelfile: 3 of 3 prompts written the same" in line
    assert {path.name for path in (tmp_path / "gguf").iterdir()} == {"split.gguf", "Modelfile"}
    shutil.copytree(talker("no"), tmp_path / "own")
    code, out, _ = command(serving, *given, "--model", tmp_path / "own")
    assert code == 1 and "no: llama.cpp does not split text as this tokenizer does before merging" in out
