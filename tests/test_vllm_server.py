"""RLOO and GRPO with `--use_vllm --vllm_mode server`, against a stand-in of vLLM's HTTP server; there is no vLLM here.

TRL's own client speaks to the stand-in, which answers from a model of its own. What is not tried is vLLM itself, and the way
of the weights: TRL sends them by NCCL, from a CUDA device alone, and they come here as a file instead.
"""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.recipes import ENVIRONMENT, EXACT, ROOT, conversation, ready_to_end, results, words
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data_prep.common.files import write_json
from data_prep.tokens.chat_encoder import encode_prompts

# What TRL imports of vLLM: names, and a version that it supports.
STUB = {
    "vllm/__init__.py": "LLM = RequestOutput = SamplingParams = object",
    "vllm/sampling_params.py": "StructuredOutputsParams = object",
    "vllm/distributed/__init__.py": "",
    "vllm/distributed/weight_transfer/__init__.py": "",
    "vllm/distributed/weight_transfer/nccl_engine.py": "NCCLTrainerSendWeightsArgs = NCCLWeightTransferEngine = object",
    "vllm/utils/__init__.py": "",
    "vllm/utils/network_utils.py": "get_ip = None",
    "vllm-0.21.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.21.0\n",
    "vllm-0.21.0.dist-info/top_level.txt": "vllm\n",
}
# `python` with a recipe, after the two functions that need CUDA are replaced.
RUN = """
import runpy, sys
from safetensors.torch import save_file
from trl.generation.vllm_client import VLLMClient

path, *sys.argv = sys.argv[1:]

def update(self, metadata, named):
    save_file({name: weights.detach().clone() for name, weights in named}, path)
    self._post(f"{self.base_url}/update_weights", json={"names": [name for name, _, _ in metadata]})

VLLMClient.init_communicator = lambda self, device: None
VLLMClient.update_named_params = update
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Server(ThreadingHTTPServer):
    """Answers completions by a model, whose weights it takes from `path` when told to; keeps what it was asked."""

    def __init__(self, model: Path, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.path = AutoModelForCausalLM.from_pretrained(model), path
        self.asked: list[dict] = []
        self.loaded: list[dict] = []  # the weights of each update
        self.draws = torch.Generator().manual_seed(0)

    def load(self, names: list[str]) -> dict:
        weights = load_file(self.path)
        found = self.model.load_state_dict(weights, strict=False)
        assert sorted(names) == sorted(weights) and not found.unexpected_keys
        assert found.missing_keys in ([], ["lm_head.weight"])  # tied
        self.loaded.append(weights)
        return {}

    @torch.no_grad()
    def complete(self, asked: dict) -> dict:
        self.asked.append(asked)
        choices = []
        for prompt in asked["prompt"]:
            for _ in range(asked["n"]):
                ids, logs = [], []
                while len(ids) < asked["max_tokens"] and ids[-1:] != [self.model.generation_config.eos_token_id]:
                    given = torch.tensor([prompt + ids])
                    chances = (self.model(given).logits[0, -1] / asked["temperature"]).log_softmax(-1)
                    ids.append(int(torch.multinomial(chances.exp(), 1, generator=self.draws)))
                    logs.append(float(chances[ids[-1]]))
                told = [f"token_id:{each}" for each in ids]
                logprobs = {"tokens": told, "token_logprobs": logs, "top_logprobs": [{}] * len(ids)}
                choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs})
        return {"choices": choices}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"/health": {}, "/v1/models": {"data": [{"id": "policy"}]}}[self.path])

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        if self.path == "/v1/completions":
            self.answer(self.server.complete(given))
        elif self.path == "/update_weights":
            self.answer(self.server.load(given["names"]))
        else:
            assert self.path.split("?")[0] in ("/reset_prefix_cache", "/start_weight_update", "/finish_weight_update")
            self.answer({})

    def log_message(self, *_) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_answers_and_weights_go_through_the_server(method, tiny_chat_tokenizer, long_is_good_dir, tmp_path):
    for name, content in STUB.items():
        (tmp_path / "stub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stub" / name).write_text(content)
    letters = "abcdefghijkl"
    questions = [letter * (1 + place) for place, letter in enumerate(letters)]  # of every length: rows are padded
    write_json(tmp_path / "prompts.json", [conversation(question, question, "-") for question in questions])
    model = ready_to_end(tiny_chat_tokenizer, tmp_path / "ready")
    server = Server(model, tmp_path / "weights.safetensors")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given = {
        "model_name_or_path": model,
        "reward_model_path": long_is_good_dir,
        "prompts": tmp_path / "prompts.json",
        **{"num_generations": 4, "per_device_train_batch_size": 16, "max_completion_length": 8, "max_steps": 3},
        **{"learning_rate": 0.003, "beta": 0.01, "disable_dropout": True, "logging_steps": 1, "save_steps": 1},
        **{"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": f"http://127.0.0.1:{server.server_port}"},
        **{**EXACT, "output_dir": tmp_path / "out"},
    }
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path / 'stub'}:{ROOT}"}
    line = [sys.executable, "-c", RUN, str(server.path), *words(method, given)]
    try:
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # three draws of four prompts × 4, each by the weights of its time
    prompts = encode_prompts(tiny_chat_tokenizer, [[{"role": "user", "content": each}] for each in questions])
    assert [(len(asked["prompt"]), asked["n"], asked["max_tokens"]) for asked in server.asked] == [(4, 4, 8)] * 3
    assert [asked["stop_token_ids"] for asked in server.asked] == [[tiny_chat_tokenizer.eos_token_id]] * 3
    assert sorted(ids for asked in server.asked for ids in asked["prompt"]) == sorted(prompts)  # one pass
    for update, folder in zip(server.loaded, ("ready", "out/checkpoint-1", "out/checkpoint-2"), strict=True):
        saved = load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(update[name], saved[name]) for name in update), folder
    log = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    if method == "grpo":  # the trainer gives the answers, padded, the probabilities that the server drew them with
        differences = [row["sampling/sampling_logp_difference/max"] for row in log if "reward" in row]
        assert len(differences) == 3 and max(differences) < 1e-4
    lengths = dict(results(tmp_path / "out", method)["curves"]["length"])
    assert lengths.keys() == {1, 2, 3} and all(1 <= length <= 8 for length in lengths.values())
