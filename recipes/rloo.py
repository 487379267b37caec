"""Improve an assistant by RLOO against a reward model, functions, or both.

    accelerate launch recipes/rloo.py --config recipes/configs/quickstart/rloo.yaml
    accelerate launch recipes/rloo.py --config recipes/configs/quickstart/rloo.yaml --use_peft --lora_target_modules all-linear

REINFORCE leave-one-out (Ahmadian 2024, arXiv:2402.14740) by TRL's own trainer: of several answers to a prompt each is
held against the mean of the others, in the place of PPO's value model. Checkpoint, prompts and rewards are those of
recipes/ppo.py; the KL to the reference, beta times its k1 estimate over an answer, is taken off the reward. With
`--use_peft` only LoRA adapters are trained, against themselves switched off, and merged before saving.
"""

import time
from dataclasses import dataclass, field

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import ModelConfig, RLOOConfig, RLOOTrainer, get_peft_config

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results
from data_prep.models.loading import check_context
from data_prep.models.reward_functions import load_function
from data_prep.readers.conversations import load_conversations
from data_prep.readers.prompts import split_last_answer
from recipes.trainers.arguments import check_output_dir, last_checkpoint, parse_arguments
from recipes.trainers.callbacks import StopAfter
from recipes.trainers.curves import logged, save_curves
from recipes.trainers.rloo_grpo import count_positions_from_first_token, reward_at_last_token, reward_of_text


@dataclass
class ScriptArguments:
    prompts: list[str] = field(metadata={"help": "Conversations whose questions are the prompts."})
    on_bad: str = field(default="error", metadata={"help": "error, repair, or quarantine: bad rows into output_dir."})
    reward_model_path: str | None = field(default=None, metadata={"help": "A sequence classifier with one label."})
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "path/to/file.py:name or package.module.name; see data_prep/rewards.py."}
    )
    missing_eos_penalty: float = field(default=0.0, metadata={"help": "Taken off the reward of a cut answer."})
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    max_seconds: float | None = field(
        default=None, metadata={"help": "Stop training after so many seconds of wall time; None: run to the end."}
    )


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, RLOOConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Dataset
    dataset = load_conversations(script.prompts, script.on_bad, f"{args.output_dir}/quarantine.jsonl").map(
        lambda row: dict(zip(("prompt", "reference"), split_last_answer(row["messages"]), strict=True)),
        remove_columns=["id", "source", "row", "messages"],
    )
    if len(dataset) < (prompts := args.generation_batch_size // args.num_generations):
        raise InputError(f"{len(dataset)} prompts do not fill one batch of {prompts} × {args.num_generations} answers")

    # Tokenizer and model
    name = str(existing(model_args.model_name_or_path or "model_name_or_path", "recipes/sft.py"))
    tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    check_context(tokenizer, config, None)
    # TRL encodes prompts by these: "<|endoftext|>" that somebody typed stays text.
    chat = args.chat_template_kwargs = {**(args.chat_template_kwargs or {}), "sanitize_control_tokens": True}
    asked = tokenizer.apply_chat_template(list(dataset["prompt"]), add_generation_prompt=True, **chat)["input_ids"]
    check_context(tokenizer, config, longest := max(map(len, asked)) + args.max_completion_length)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise InputError(f"{name}: pads with what ends an answer: answers could not be told from padding")
    # A pad that was drawn would read as padding.
    args.generation_kwargs = {"suppress_tokens": [tokenizer.pad_token_id], **(args.generation_kwargs or {})}
    # By name: TRL loads the policy and its reference alike.
    load = {"dtype": model_args.dtype or "float32", "use_safetensors": True}
    args.model_init_kwargs = {**load, "attn_implementation": model_args.attn_implementation}
    set_seed(args.seed)  # LoRA's matrices are drawn at random
    rewards = [load_function(function) for function in script.reward_funcs or ()]
    if script.reward_model_path:
        kind = AutoConfig.from_pretrained(existing(script.reward_model_path, "recipes/reward.py"))
        if kind.num_labels != 1 or "ForSequenceClassification" not in " ".join(kind.architectures or []):
            raise InputError(f"{script.reward_model_path}: no reward model; it is made by: recipes/reward.py")
        reward_model = AutoModelForSequenceClassification.from_pretrained(script.reward_model_path, **load)
        reward_tokenizer = AutoTokenizer.from_pretrained(script.reward_model_path)
        if reward_tokenizer.get_vocab() == tokenizer.get_vocab():
            check_context(tokenizer, kind, longest)
            rewards.insert(0, reward_at_last_token(reward_model.to(args.device), tokenizer, args.bf16))
        else:
            print(f"{script.reward_model_path} has another tokenizer: answers are encoded again, as text, for it")
            rewards.insert(0, reward_of_text(reward_model.to(args.device), reward_tokenizer))
    weights = args.reward_weights or [1.0] * len(rewards)
    if not rewards or len(weights) != len(rewards):
        raise InputError(f"found {len(rewards)} rewards (reward_model_path, reward_funcs) and {len(weights)} "
                         "reward_weights; expected at least one, and a weight for each")  # fmt: skip
    if script.missing_eos_penalty < 0:
        raise InputError(f"missing_eos_penalty: expected at least 0, found {script.missing_eos_penalty}")

    def missing_eos(completion_ids: list[list[int]], **columns) -> list[float]:
        """-1 for an answer that was cut at max_completion_length."""
        return [-float(ids[-1] != tokenizer.eos_token_id) for ids in completion_ids]

    args.reward_weights = [*weights, script.missing_eos_penalty]

    # Trainer
    trainer = RLOOTrainer(
        name,
        [*rewards, missing_eos],
        args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[StopAfter(script.max_seconds)] if script.max_seconds is not None else [],
    )
    for model in filter(None, (trainer.model, trainer.ref_model)):
        count_positions_from_first_token(trainer.accelerator.unwrap_model(model))

    # Train
    start = time.perf_counter()
    resume = last_checkpoint(args.output_dir) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    # Save
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if model_args.use_peft:
        trainer.model = model = model.merge_and_unload()
    model.config.use_cache = model.generation_config.use_cache = True
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        penalty = script.missing_eos_penalty
        cut, length = (dict(logged(history, f"completions/{key}")) for key in ("clipped_ratio", "mean_length"))
        # As in recipes/ppo.py: the score without the penalty; KL and entropy per answer, mean of a token × mean length.
        curves = {
            "score": [(step, value + penalty * cut[step]) for step, value in logged(history, "reward")],
            "kl": [(step, value * length[step]) for step, value in logged(history, "kl")],
            "length": list(length.items()),
            "eos_rate": [(step, 1 - value) for step, value in cut.items()],
            "entropy": [(step, value * length[step]) for step, value in logged(history, "entropy")],
        }
        save_curves(f"{args.output_dir}/curve.png", curves, xlabel="update")
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        episodes = trainer.state.global_step * batch // args.num_iterations
        figures = {"episodes": episodes, "episodes_per_second": episodes / seconds}
        figures |= {f"{name}_last": points[-1][1] for name, points in curves.items() if points}
        results = {"seconds": seconds, "prompts": len(dataset), "metrics": figures, "curves": curves}
        write_results(script.results_dir or args.output_dir, "rloo", results)
        print(f"RLOO on {episodes:,} episodes in {seconds:.0f} s; the model is in {args.output_dir}")


if __name__ == "__main__":
    run_main(main)
