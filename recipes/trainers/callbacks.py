"""What the libraries' trainers lack: bits per byte, tokens per second and samples along the way."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, TrainerCallback

from data_prep.common.errors import InputError
from data_prep.common.files import whole_lines, write_jsonl
from data_prep.common.text import counted, shorten
from data_prep.models.batched_generate import given_settings_alone
from data_prep.models.bits_per_byte import bits_per_byte
from data_prep.models.loading import context_of
from recipes.trainers.curves import logged
from recipes.trainers.sharding import in_parts


def flops_per_token(model, length: int) -> float:
    """FLOP of a forward and backward pass per token: 6N + 12·layers·width·length (PaLM, arXiv:2204.02311, app. B).

    N leaves out the position table, which is only looked up.
    """
    parameters = sum(weight.numel() for name, weight in model.named_parameters() if "wpe" not in name)
    config = model.config.get_text_config()
    return 6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * length


def check_prompts(prompts: list[str], tokenizer, positions: int) -> None:
    """Raise InputError for a prompt that a model of so many positions cannot go on from."""
    for prompt in prompts:
        tokens = len(tokenizer(prompt)["input_ids"])
        if not 0 < tokens < positions:
            raise InputError(
                f"sample_prompts: {shorten(prompt)}: found {counted(tokens, 'token')}, expected 1 to "
                f"{positions - 1:,}, which leave room within n_positions {positions:,}; change the prompt or leave "
                "it out"
            )


class PretrainingMonitor(TrainerCallback):
    """Bits per byte on held-out text, samples from fixed prompts and speed, at step 0 and every `eval_steps`.

    The first process measures; where the weights are in parts all do, as one alone would wait for the others.

    Args:
        heldout: batches for `bits_per_byte`.
        tokenizer, prompts: what the samples start from; they go to `samples.jsonl` in the output folder; there may be
            none.
        tokens: gives those trained on after a number of updates (`tokens_after`).
        rate: FLOP/s of the machine's matrix product (`matrix_rate`).
    """

    def __init__(
        self, heldout: list, tokenizer, prompts: list[str], tokens: Callable[[int], int], rate: float
    ) -> None:
        self.heldout, self.tokenizer, self.prompts = heldout, tokenizer, prompts
        self.tokens, self.rate = tokens, rate
        self.curve: list[tuple[int, float]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.started, self.first_step, self.paused = time.perf_counter(), state.global_step, 0.0
        self.curve = logged(state.log_history, "eval_bits_per_byte")  # of a resumed run: up to its checkpoint
        if state.is_world_process_zero:
            path = Path(args.output_dir) / "samples.jsonl"
            rows = []
            if state.global_step and path.exists():
                with path.open("r+b") as file:
                    rows = [json.loads(line) for line in whole_lines(file)]
            write_jsonl(path, [row for row in rows if row["step"] <= state.global_step])
        if not self.curve:
            self.measure(args, state, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % state.eval_steps == 0 or state.global_step == state.max_steps:
            self.measure(args, state, model)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if logs is not None and "loss" in logs and state.global_step > self.first_step:
            seconds = time.perf_counter() - self.started - self.paused
            speed = (self.tokens(state.global_step) - self.tokens(self.first_step)) / seconds
            logs["tokens_per_second"] = round(speed, 1)
            length = self.heldout[0]["input_ids"].shape[1]
            logs["fraction_of_matrix_rate"] = round(speed * flops_per_token(model, length) / self.rate, 3)
            state.log_history[-1].update(logs)

    def measure(self, args, state, model) -> None:
        first = state.is_world_process_zero
        if not first and not in_parts(model):
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # what is still computed is training
        start = time.perf_counter()
        value, _ = bits_per_byte(model, self.heldout, model.device)
        self.curve.append((state.global_step, value))
        state.log_history.append({"step": state.global_step, "eval_bits_per_byte": value})
        model.eval()
        samples = [continue_text(model, self.tokenizer, prompt) for prompt in self.prompts]
        model.train()
        if first:
            with (Path(args.output_dir) / "samples.jsonl").open("a", encoding="utf-8") as file:
                for prompt, sample in zip(self.prompts, samples, strict=True):
                    row = {"step": state.global_step, "prompt": prompt, "sample": sample}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            shown = f" | {self.prompts[-1]!r} → {' '.join(samples[-1].split())[:70]!r}" if self.prompts else ""
            print(f"step {state.global_step}: {value:.3f} bits per byte on held-out text{shown}")
        self.paused += time.perf_counter() - start


@torch.no_grad()
def continue_text(model, tokenizer, prompt: str, max_new_tokens: int = 48) -> str:
    """A continuation of `prompt`, sampled at temperature 0.8 with a fixed seed of its own."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    room = (context_of(model.config) or math.inf) - inputs["input_ids"].shape[1]
    settings = GenerationConfig(
        max_new_tokens=min(max_new_tokens, room),
        use_cache=True,  # the config of a model in training says no
        do_sample=True,
        temperature=0.8,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with (
        torch.random.fork_rng(),
        given_settings_alone(model),
    ):  # sampling must not change the random numbers that training draws
        torch.manual_seed(0)
        output = model.generate(**inputs, generation_config=settings)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
