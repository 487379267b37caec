"""Improve an assistant by PPO against a reward model.

    accelerate launch recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml
    accelerate launch recipes/ppo.py --config recipes/configs/quickstart/ppo.yaml --use_peft --lora_target_modules all-linear

Policy and reference start from the SFT checkpoint, reward and value from the reward model. Only the questions of the
conversations are read: PPO needs prompts, not answers. Score, KL to the reference, length and the share of answers that
end by themselves are logged and drawn. With `--use_peft` policy and value model are trained by LoRA; the policy's
reference is itself with the adapter switched off, and it is merged before saving.
"""

import time
from dataclasses import dataclass, field

from datasets import Dataset
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import ModelConfig, get_peft_config
from trl.experimental.ppo import PPOConfig

from data_prep.conversations import check_context, load_conversations
from data_prep.files import InputError, existing, run_main, write_results
from data_prep.generation import split_last_answer
from recipes.trainers.arguments import check_output_dir, last_checkpoint, parse_arguments
from recipes.trainers.callbacks import logged, save_curves
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.ppo_trainer import PolicyAndValue, PPOTrainer


@dataclass
class ScriptArguments:
    prompts: list[str] = field(metadata={"help": "Conversations whose questions are the prompts."})
    heldout: str | None = field(default=None, metadata={"help": "Conversations to evaluate on, before and after."})
    on_bad: str = field(default="error", metadata={"help": "error, or repair: merge two turns of one speaker."})
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    muon_lr: float | None = field(
        default=None, metadata={"help": "Muon's learning rate; None, or with LoRA: the optimizer `optim` names."}
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Prompts kept of --heldout; None: all."})


def prompts_of(path: list[str] | str, on_bad: str) -> Dataset:
    """Each conversation up to its last answer."""
    return load_conversations(path, on_bad).map(
        lambda row: {"prompt": split_last_answer(row["messages"])[0]}, remove_columns=["id", "messages"]
    )


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, PPOConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Dataset
    dataset = prompts_of(script.prompts, script.on_bad)
    heldout = prompts_of(script.heldout, script.on_bad).shuffle(seed=args.seed) if script.heldout else None
    if heldout and script.max_prompts:
        heldout = heldout.select(range(min(script.max_prompts, len(heldout))))

    # Tokenizer and model
    tokenizer = AutoTokenizer.from_pretrained(existing(args.sft_model_path, "recipes/sft.py"))
    other = AutoTokenizer.from_pretrained(existing(args.reward_model_path, "recipes/reward.py"))
    if other.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"{args.reward_model_path} and {args.sft_model_path} have different tokenizers: rewards would be noise"
        )
    kind = AutoConfig.from_pretrained(args.reward_model_path)
    if kind.num_labels != 1 or "ForSequenceClassification" not in " ".join(kind.architectures or []):
        raise InputError(f"{args.reward_model_path}: no reward model; it is made by: recipes/reward.py")
    set_seed(args.seed)
    dtype = model_args.dtype or "float32"
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(args.sft_model_path, dtype=dtype, use_safetensors=True) for _ in range(2)
    )
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(args.reward_model_path, dtype=dtype, use_safetensors=True)
        for _ in range(2)
    )
    prompts = [*dataset["prompt"], *(heldout["prompt"] if heldout else [])]
    longest = max(len(tokenizer.apply_chat_template(prompt)["input_ids"]) for prompt in prompts) + 1
    check_context(tokenizer, policy.config, longest + args.response_length)
    if model_args.use_peft:
        policy, reference = get_peft_model(policy, get_peft_config(model_args)), None
        model_args.lora_task_type, model_args.lora_modules_to_save = "SEQ_CLS", ["score"]
        value_model = get_peft_model(value_model, get_peft_config(model_args))

    # Trainer
    optimizer = None
    if script.muon_lr and not model_args.use_peft:
        optimizer = MuonWithAdamW(
            PolicyAndValue(policy, value_model), script.muon_lr, args.learning_rate, args.weight_decay
        )
    trainer = PPOTrainer(
        args, tokenizer, policy, reference, reward_model, value_model, dataset, heldout, optimizers=(optimizer, None)
    )

    # Train
    before = trainer.evaluate() if heldout else {}
    start = time.perf_counter()
    resume = last_checkpoint(args.output_dir) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    # Evaluate
    after = trainer.evaluate() if heldout else {}
    for name in ("eval_score", "eval_kl", "eval_length", "eval_eos_rate") if heldout else ():
        print(f"{name[5:]:9} on held-out prompts: {before[name]:7.3f} → {after[name]:7.3f}")

    # Save
    policy = trainer.accelerator.unwrap_model(trainer.model).policy
    if model_args.use_peft:
        trainer.accelerator.unwrap_model(trainer.model).policy = policy = policy.merge_and_unload()
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        curves = {key: logged(history, f"objective/{key}") for key in ("score", "kl", "length", "eos_rate", "entropy")}
        save_curves(f"{args.output_dir}/curve.png", curves, xlabel="update")
        episodes = trainer.state.global_step * trainer.rollout_size * args.world_size
        figures = {"episodes": episodes, "episodes_per_second": episodes / seconds}
        figures |= {f"before_{key[5:]}": value for key, value in before.items()}
        figures |= {f"after_{key[5:]}": value for key, value in after.items()}
        results = {"seconds": seconds, "prompts": len(dataset), "metrics": figures, "curves": curves}
        write_results(script.results_dir or args.output_dir, "ppo", results)
        print(f"PPO on {episodes:,} episodes in {seconds:.0f} s; the model is in {args.output_dir}")


if __name__ == "__main__":
    run_main(main)
