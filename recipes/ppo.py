"""Improve an assistant by PPO against a reward model.

    accelerate launch recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml
    accelerate launch recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml --use_peft --lora_target_modules all-linear

Policy and reference start from the SFT checkpoint, reward and value from the reward model; functions may reward beside a
reward model or instead of it (`--reward_funcs`). Of the conversations the questions are read; their last answers go to
functions alone, as `reference`. Alarms say what goes wrong. With `--use_peft` policy and value model are trained by LoRA,
against the policy with its adapter switched off, and both are merged before saving.
"""

import time
from dataclasses import dataclass, field

from datasets import Dataset
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import ModelConfig, get_peft_config

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results
from data_prep.models.loading import check_context
from data_prep.models.reward_functions import load_function
from data_prep.readers.conversations import load_conversations
from data_prep.readers.prompts import split_last_answer
from recipes.trainers.arguments import check_output_dir, last_checkpoint, parse_arguments
from recipes.trainers.callbacks import StopAfter
from recipes.trainers.curves import logged, save_curves
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.ppo.alarms import PPOAlarms
from recipes.trainers.ppo.config import PPOConfig
from recipes.trainers.ppo.policy_and_value import PolicyAndValue
from recipes.trainers.ppo.trainer import PPOTrainer


@dataclass
class ScriptArguments:
    prompts: list[str] = field(metadata={"help": "Conversations whose questions are the prompts."})
    heldout: str | None = field(default=None, metadata={"help": "Conversations to evaluate on."})
    on_bad: str = field(default="error", metadata={"help": "error, repair, or quarantine: bad rows into output_dir."})
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    muon_lr: float | None = field(default=None, metadata={"help": "Muon's rate; None, or with LoRA: that of `optim`."})
    max_prompts: int | None = field(default=None, metadata={"help": "Prompts kept of --heldout; None: all."})
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "functions f(prompts, completions, **columns) -> list[float], as path/to/file.py:name or "
            "package.module.name, beside a reward model or instead of it; default: the reward model only"
        },
    )
    eval_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "functions of the same form, measured on held-out answers, never trained on; default: none"},
    )
    value_model_path: str | None = field(
        default=None,
        metadata={"help": "checkpoint that the value model starts from; default: the reward model, else the policy"},
    )
    stop_on: list[str] | None = field(
        default=None,
        metadata={"help": "alarms that stop the run, see recipes/trainers/ppo/alarms.py; default: none"},
    )
    max_seconds: float | None = field(
        default=None, metadata={"help": "stop training after so many seconds of wall time; default: run to the end"}
    )


def prompts_of(path: list[str] | str, on_bad: str, quarantine: str) -> Dataset:
    """Each conversation up to its last answer, and that answer as `reference`."""
    return load_conversations(path, on_bad, quarantine).map(
        lambda row: dict(zip(("prompt", "reference"), split_last_answer(row["messages"]), strict=True)),
        remove_columns=["id", "source", "row", "messages"],
    )


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, PPOConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Dataset
    dataset = prompts_of(script.prompts, script.on_bad, f"{args.output_dir}/quarantine.jsonl")
    aside = f"{args.output_dir}/quarantine_heldout.jsonl"
    heldout = prompts_of(script.heldout, script.on_bad, aside).shuffle(seed=args.seed) if script.heldout else None
    if heldout and script.max_prompts:
        heldout = heldout.select(range(min(script.max_prompts, len(heldout))))
    asked = {str(prompt) for prompt in dataset["prompt"]}
    if heldout and (shared := sum(str(prompt) in asked for prompt in heldout["prompt"])):
        raise InputError(f"{script.heldout}: {shared} of its prompts are trained on too; split by prompt")

    # Tokenizer and model
    tokenizer = AutoTokenizer.from_pretrained(existing(args.sft_model_path, "recipes/sft.py"))
    set_seed(args.seed)
    load = {"dtype": model_args.dtype or "float32", "use_safetensors": True}
    policy, reference = (AutoModelForCausalLM.from_pretrained(args.sft_model_path, **load) for _ in range(2))
    reward_model = reward_tokenizer = None
    if args.reward_model_path:
        kind = AutoConfig.from_pretrained(existing(args.reward_model_path, "recipes/reward.py"))
        if kind.num_labels != 1 or "ForSequenceClassification" not in " ".join(kind.architectures or []):
            raise InputError(f"{args.reward_model_path}: no reward model; it is made by: recipes/reward.py")
        reward_model = AutoModelForSequenceClassification.from_pretrained(args.reward_model_path, **load)
        reward_tokenizer = AutoTokenizer.from_pretrained(args.reward_model_path)
        if reward_tokenizer.get_vocab() == tokenizer.get_vocab():
            reward_tokenizer = None  # ids serve both
        else:
            print(f"{args.reward_model_path} has another tokenizer: answers are encoded again, as text, for it")
    check_context(tokenizer, policy.config, None)
    start = script.value_model_path or (None if reward_tokenizer else args.reward_model_path) or args.sft_model_path
    value_model = AutoModelForSequenceClassification.from_pretrained(
        existing(start), num_labels=1, pad_token_id=tokenizer.pad_token_id, **load
    )
    if model_args.use_peft:
        policy, reference = get_peft_model(policy, get_peft_config(model_args)), None
        model_args.lora_task_type, model_args.lora_modules_to_save = "SEQ_CLS", ["score"]
        value_model = get_peft_model(value_model, get_peft_config(model_args))

    # Trainer
    optimizer = None
    if script.muon_lr and args.value_learning_rate is not None:
        raise InputError("muon_lr and value_learning_rate: give one; Muon trains policy and value model alike")
    if script.muon_lr and not model_args.use_peft:
        optimizer = MuonWithAdamW(
            PolicyAndValue(policy, value_model), script.muon_lr, args.learning_rate, args.weight_decay
        )
    reward_funcs = [load_function(name) for name in script.reward_funcs or ()]
    eval_funcs = [load_function(name) for name in script.eval_funcs or ()]
    measure = f"eval_{eval_funcs[0].__name__}" if eval_funcs else None
    callbacks = [PPOAlarms(args.kl_budget, script.stop_on or [], measure, args.response_length)]
    callbacks += [StopAfter(script.max_seconds)] if script.max_seconds is not None else []
    trainer = PPOTrainer(
        args, tokenizer, policy, reference, reward_model, value_model, dataset, heldout,
        callbacks=callbacks, optimizers=(optimizer, None), reward_funcs=reward_funcs, eval_funcs=eval_funcs,
        reward_processing_class=reward_tokenizer,
    )  # fmt: skip

    # Train
    before = trainer.evaluate() if heldout else {}
    start = time.perf_counter()
    resume = last_checkpoint(args.output_dir) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    # Evaluate
    history = [*trainer.state.log_history]
    after = trainer.evaluate() if heldout else {}
    for name in before if trainer.is_world_process_zero() else ():
        print(f"{name[5:]:12} on held-out prompts: {before[name]:7.3f} → {after[name]:7.3f}")

    # Save
    wrapper = trainer.accelerator.unwrap_model(trainer.model)
    if model_args.use_peft:
        wrapper.policy, wrapper.value_model = wrapper.policy.merge_and_unload(), wrapper.value_model.merge_and_unload()
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        curves = {key: logged(history, f"objective/{key}") for key in ("score", "kl", "length", "eos_rate", "entropy")}
        save_curves(f"{args.output_dir}/curve.png", curves, xlabel="update")
        for name in before:
            points = {0: before[name], trainer.state.global_step: after[name], **dict(logged(history, name))}
            curves[f"held-out {'KL' if name == 'eval_kl' else name[5:]}"] = sorted(points.items())
        episodes = trainer.state.global_step * trainer.rollout_size * args.world_size
        figures = {"episodes": episodes, "episodes_per_second": episodes / seconds}
        figures |= {f"{key}_first": value for key, value in before.items()}
        figures |= {f"{key}_last": value for key, value in after.items()}
        results = {"seconds": seconds, "prompts": len(dataset), "metrics": figures, "curves": curves}
        results["alarms"] = [row for row in history if "alarm" in row]
        write_results(script.results_dir or args.output_dir, "ppo", results)
        print(f"PPO on {episodes:,} episodes in {seconds:.0f} s; the model is in {args.output_dir}")


if __name__ == "__main__":
    run_main(main)
