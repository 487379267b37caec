r"""Improve an assistant by GRPO against a reward model, functions, or both.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/grpo.py \
        --config recipes/configs/quickstart/grpo.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/grpo.py \
        --config recipes/configs/quickstart/grpo.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/grpo --results_dir runs/lora

Group relative policy optimization (Shao 2024, arXiv:2402.03300) by TRL's own trainer: each of several answers to a
prompt is compared with their mean, in units of their spread, where PPO has a value model. Checkpoint, prompts and rewards
are those of recipes/ppo.py; the KL to the reference, beta times its k3 estimate, is added to the loss. With
`--use_peft` LoRA adapters are trained, beside quantized weights with `--load_in_4bit`, against the model with its adapter
switched off. They are merged before saving unless `--merge_adapter false`.

Answers can be drawn by a vLLM server on GPUs of its own: `--use_vllm --vllm_mode server --vllm_server_base_url URL`,
and there `VLLM_SERVER_DEV_MODE=1 vllm serve CHECKPOINT --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode
processed_logprobs --max-logprobs -1`. TRL sends the weights by NCCL, so training needs CUDA too. Here this is tested
against a stand-in of the server alone (tests/test_vllm_server.py).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import trl
from accelerate.utils import set_seed
from transformers import AutoConfig

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.models.loading import check_context, checkpoint_or_hub_id, load_reward_model, load_tokenizer
from data_prep.models.reward_functions import load_function
from data_prep.readers.preferences import prompt_key
from data_prep.readers.prompts import load_prompts
from data_prep.tokens.prompts import fit_prompts, longest_prompt
from data_prep.tokens.template_problems import refused_by
from recipes.trainers.adapter import lora_config
from recipes.trainers.alarms import RewardAlarms, show_alarms
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.curves import save_curves, show_change
from recipes.trainers.resuming import open_run, train
from recipes.trainers.reward_gate import gate_reward
from recipes.trainers.rloo_grpo import (
    WatchRewards,
    answer_ends,
    count_positions_from_first_token,
    heldout_metrics,
    missing_eos_reward,
    reward_at_last_token,
    reward_of_text,
    reward_weights,
    sample_by_arguments_alone,
    set_sampling,
    show_control_characters,
    training_curves,
)
from recipes.trainers.saving import finish, merge_and_save

REFUSED = {
    "chat_template_kwargs": "prompts are encoded by the chat template as it is",
    "vllm_importance_sampling_cap": "TRL no longer reads it",
}


@dataclass
class ScriptArguments:
    prompts: list[str] = field(
        metadata={"help": "Conversations or preferences to take prompts from: files, folders or hf://owner/name."}
    )
    heldout: list[str] | None = field(
        default=None,
        metadata={"help": "Data to evaluate on, which training does not see; default: none (pretraining needs some)."},
    )
    on_bad: str = field(
        default="error", metadata={"help": "What to do with bad rows: error, repair, or quarantine (into output_dir)."}
    )
    columns: str | None = field(
        default=None, metadata={"help": "The file's own column names: field=column,...; default: find the format."}
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt, in tokens; default: what the context leaves beside the longest answer."},
    )
    long_prompts: str = field(
        default="error", metadata={"help": "Prompts that are longer: error, drop, or truncate (oldest turns first)."}
    )
    max_prompts: int | None = field(
        default=None, metadata={"help": "Number of held-out prompts, sampled; default: all."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a reward model; default: none, see reward_funcs."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Functions f(prompts, completions, **columns) -> list[float], as path/to/file.py:name or "
            "package.module.name, beside a reward model or instead of it; a completion is a list of one message, its text "
            "completion[-1]['content']; default: none."
        },
    )
    eval_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Functions of the same form, measured on held-out answers, never trained on; default: none."
        },
    )
    reward_gate: Literal["stop", "warn", "off"] = field(
        default="warn",
        metadata={
            "help": "Check the reward model on held-out answers of the policy before training: stop, warn or off. stop ends "
            "a run whose reward is not shown to be fit; warn says so."
        },
    )
    missing_eos_penalty: float = field(
        default=0.0, metadata={"help": "Penalty subtracted from the reward of a truncated answer, at least 0."}
    )
    stop_on: list[str] | None = field(
        default=None,
        metadata={"help": "Alarms that stop the run, see recipes/trainers/alarms.py; default: none."},
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "Stop training after so many seconds; default: run to the end."}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of an update over all processes: sets gradient_accumulation_steps; default: what "
            "per_device_train_batch_size, gradient_accumulation_steps and the number of processes give."
        },
    )
    results_dir: str | None = field(default=None, metadata={"help": "Folder for the metrics; default: output_dir."})
    merge_adapter: bool = field(
        default=True, metadata={"help": "Save LoRA merged into the model; false: the adapter alone."}
    )


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, trl.GRPOConfig, trl.ModelConfig, refused=REFUSED)
    run = open_run(script, args, model_args)
    number = bool(script.reward_model_path) + len(script.reward_funcs or ())
    weights = reward_weights(args.reward_weights, number, script.missing_eos_penalty)
    alarms = RewardAlarms(script.stop_on or [])

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/sft.py", revision)
    tokenizer = load_tokenizer(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    check_context(tokenizer, config, None)
    ends = answer_ends(name, revision, config, tokenizer)

    # Dataset
    load = partial(load_prompts, on_bad=script.on_bad, columns=script.columns, refused=refused_by(tokenizer))
    dataset = load(script.prompts, quarantine=f"{args.output_dir}/quarantine.jsonl")
    heldout = script.heldout and load(script.heldout, quarantine=f"{args.output_dir}/quarantine_heldout.jsonl")
    others = [script.reward_model_path]
    limit = longest_prompt(tokenizer, name, revision, others, args.max_completion_length, script.max_prompt_length)
    dataset, heldout = fit_prompts(dataset, heldout, tokenizer, limit, script.long_prompts)
    if heldout:
        heldout = heldout.shuffle(seed=args.seed).take(min(script.max_prompts or len(heldout), len(heldout)))
        check_disjoint(map(prompt_key, dataset["prompt"]), map(prompt_key, heldout["prompt"]), script.heldout)
    needed = args.generation_batch_size // args.num_generations
    if len(dataset) < needed:
        raise InputError(f"{len(dataset)} prompts do not fill one batch of {needed} × {args.num_generations} answers")

    # Model
    args.model_init_kwargs = {**model_kwargs(model_args), "revision": revision}  # TRL loads policy and reference
    # TRL encodes prompts by this: "<|endoftext|>" that somebody typed stays text.
    args.chat_template_kwargs = {"sanitize_control_tokens": True}
    set_sampling(args, tokenizer, ends)
    set_seed(args.seed)  # LoRA's matrices are initialised at random
    rewards = [load_function(function) for function in script.reward_funcs or ()]
    eval_funcs = [load_function(function) for function in script.eval_funcs or ()]
    reward_model = reward_tokenizer = None
    if script.reward_model_path:
        frozen = model_kwargs(model_args, quantized=False)
        reward_model, reward_tokenizer = load_reward_model(script.reward_model_path, **frozen)
        if reward_tokenizer.get_vocab() == tokenizer.get_vocab():
            rewards.insert(0, reward_at_last_token(reward_model.to(args.device), tokenizer, args.bf16))
        else:
            print(f"{script.reward_model_path} has another tokenizer: answers are encoded again, as text, for it")
            rewards.insert(0, reward_of_text(reward_model.to(args.device), reward_tokenizer, ends))
    args.reward_weights, reward_funcs = weights, rewards
    if script.missing_eos_penalty:
        args.reward_weights = [*weights, script.missing_eos_penalty]
        reward_funcs = [*rewards, missing_eos_reward(ends)]

    # Trainer
    trainer = trl.GRPOTrainer(
        name,
        reward_funcs,
        args,
        train_dataset=dataset,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=lora_config(model_args, config),
        callbacks=[alarms],
    )
    WatchRewards(trainer, alarms)
    for model in filter(None, (trainer.model, trainer.ref_model)):
        count_positions_from_first_token(trainer.accelerator.unwrap_model(model))
    sample_by_arguments_alone(trainer, ends)
    show_control_characters(trainer)

    # Train
    gate = gate_reward(script, trainer, run, reward_model, reward_tokenizer, heldout, args.max_completion_length)
    measure = partial(
        heldout_metrics, tokenizer=tokenizer, rewards=rewards, weights=weights, args=args, eval_funcs=eval_funcs
    )
    before = measure(trainer.accelerator.unwrap_model(trainer.model), dataset=heldout) if heldout else {}
    seconds = train(trainer, run, script.max_seconds)

    # Evaluate
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    after = measure(model, dataset=heldout) if heldout else {}

    # Save
    merge_and_save(trainer, tokenizer, merge=script.merge_adapter)
    if trainer.is_world_process_zero():
        show_change(before, after)
        curves = training_curves(trainer.state.log_history, script.missing_eos_penalty)
        save_curves(f"{args.output_dir}/curve.png", curves, xlabel="update")
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        episodes = trainer.state.global_step * batch // args.num_iterations
        metrics = {"episodes": episodes, "episodes_per_second": episodes / seconds}
        metrics |= {f"{key}_last": points[-1][1] for key, points in curves.items() if points}
        metrics |= {f"{key}_first": value for key, value in before.items()}
        metrics |= {f"{key}_last": value for key, value in after.items()}
        results = {"seconds": seconds, "prompts": len(dataset), "metrics": metrics, "curves": curves}
        results |= {"reward_gate": gate, "alarms": show_alarms(trainer.state.log_history)}
        write_results(script.results_dir or args.output_dir, "grpo", results)
        print(f"GRPO on {episodes:,} episodes in {seconds:.0f} s; the model is in {args.output_dir}")
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
