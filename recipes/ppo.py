r"""Improve an assistant by PPO against a reward model.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/ppo.py \
        --config recipes/configs/quickstart/ppo.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/ppo.py \
        --config recipes/configs/quickstart/ppo.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/ppo --results_dir runs/lora

Policy and reference start from the SFT checkpoint, reward and value from the reward model; functions may reward beside a
reward model or instead of it (`--reward_funcs`). Prompts are those of conversations or preferences; the answers in the
data go to functions alone, as `reference`. Alarms say what goes wrong. With `--use_peft` policy and value model are
trained by LoRA, beside quantized weights with `--load_in_4bit`, against the policy with its adapter switched off, and both
are merged before saving.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import trl
from accelerate.utils import set_seed
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import run_main
from data_prep.common.files import write_results
from data_prep.models.loading import check_context, checkpoint_or_hub_id, load_reward_model, load_tokenizer
from data_prep.models.reward_functions import load_function
from data_prep.readers.preferences import prompt_key
from data_prep.readers.prompts import load_prompts
from data_prep.tokens.prompts import fit_prompts, longest_prompt
from data_prep.tokens.template_problems import refused_by
from recipes.trainers.adapter import check_score_head, lora_config
from recipes.trainers.alarms import show_alarms
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.curves import logged, save_curves, show_change
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.ppo.alarms import PPOAlarms
from recipes.trainers.ppo.config import PPOConfig
from recipes.trainers.resuming import open_run, train
from recipes.trainers.reward_gate import gate_reward
from recipes.trainers.saving import finish, merge_unless_it_answers_otherwise, ready_to_serve, save_model

REFUSED = {
    "model_name_or_path": "see sft_model_path",
    "lora_task_type": "the policy's adapter is one for language models, the value model's one for sequence classification",
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
    value_model_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint that the value model starts from; default: the reward model, else the policy."},
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
    muon_lr: float | None = field(
        default=None, metadata={"help": "Muon's learning rate; unset, or with LoRA: optim is used."}
    )
    muon_momentum: float = field(
        default=0.95, metadata={"help": "Muon's momentum: less for a run of few updates, of hundreds 0.9 or 0.85."}
    )


def heldout_curves(history: list[dict], before: dict, after: dict, steps: int) -> dict[str, list[tuple[int, float]]]:
    """Each metric on held-out prompts: before training, after `steps` updates, and in the evaluations between."""
    curves = {}
    for key in before:
        points = {0: before[key], steps: after[key], **dict(logged(history, key))}
        curves[f"held-out {'KL' if key == 'eval_kl' else key[5:]}"] = sorted(points.items())
    return curves


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, PPOConfig, trl.ModelConfig, refused=REFUSED)
    run = open_run(script, args, model_args)

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(args.sft_model_path, "recipes/sft.py", revision, "sft_model_path")
    tokenizer = load_tokenizer(name, revision)
    check_context(tokenizer, AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False), None)

    # Dataset
    load = partial(load_prompts, on_bad=script.on_bad, columns=script.columns, refused=refused_by(tokenizer))
    dataset = load(script.prompts, quarantine=f"{args.output_dir}/quarantine.jsonl")
    heldout = script.heldout and load(script.heldout, quarantine=f"{args.output_dir}/quarantine_heldout.jsonl")
    others = [args.reward_model_path, script.value_model_path]
    limit = longest_prompt(tokenizer, name, revision, others, args.response_length, script.max_prompt_length)
    dataset, heldout = fit_prompts(dataset, heldout, tokenizer, limit, script.long_prompts)
    if heldout:
        heldout = heldout.shuffle(seed=args.seed).take(min(script.max_prompts or len(heldout), len(heldout)))
        check_disjoint(map(prompt_key, dataset["prompt"]), map(prompt_key, heldout["prompt"]), script.heldout)

    # Model
    set_seed(args.seed)
    weights = {**model_kwargs(model_args), "revision": revision, "trust_remote_code": False}
    policy = AutoModelForCausalLM.from_pretrained(name, **weights)
    reference = None if model_args.use_peft else AutoModelForCausalLM.from_pretrained(name, **weights)
    reward_model = reward_tokenizer = None
    if args.reward_model_path:
        frozen = model_kwargs(model_args, quantized=False)
        reward_model, reward_tokenizer = load_reward_model(args.reward_model_path, **frozen)
        if reward_tokenizer.get_vocab() == tokenizer.get_vocab():
            reward_tokenizer = None  # ids serve both
        else:
            print(f"{args.reward_model_path} has another tokenizer: answers are encoded again, as text, for it")
    origin = script.value_model_path or (None if reward_tokenizer else args.reward_model_path) or name
    weights["revision"] = revision if origin == name else "main"
    origin = checkpoint_or_hub_id(origin, "recipes/reward.py", weights["revision"])
    check_score_head(AutoConfig.from_pretrained(origin, revision=weights["revision"], trust_remote_code=False), origin)
    value_model = AutoModelForSequenceClassification.from_pretrained(
        origin, num_labels=1, pad_token_id=tokenizer.pad_token_id, **weights
    )
    check_context(tokenizer, value_model.config, None)  # it reads the policy's ids
    if model_args.use_peft:
        from peft import get_peft_model  # slow to import

        policy = get_peft_model(policy, lora_config(model_args, policy.config))
        value_model = get_peft_model(value_model, lora_config(model_args, value_model.config, "score"))

    # Trainer
    from recipes.trainers.ppo.trainer import PPOTrainer  # slow to import

    eval_funcs = [load_function(function) for function in script.eval_funcs or ()]
    measure = f"eval_{eval_funcs[0].__name__}" if eval_funcs else None
    trainer = PPOTrainer(
        args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=dataset,
        eval_dataset=heldout,
        callbacks=[PPOAlarms(args.kl_budget, script.stop_on or [], measure, args.response_length)],
        reward_funcs=[load_function(function) for function in script.reward_funcs or ()],
        eval_funcs=eval_funcs,
        reward_processing_class=reward_tokenizer,
    )
    if script.muon_lr and not model_args.use_peft:  # set afterwards: the Trainer refuses it as an argument under FSDP
        trainer.optimizer = MuonWithAdamW(
            trainer.model, script.muon_lr, args.learning_rate, args.weight_decay, script.muon_momentum
        )

    # Train
    gate = gate_reward(script, trainer, run, reward_model, reward_tokenizer, heldout, args.response_length)
    before = trainer.evaluate() if heldout else {}
    seconds = train(trainer, run, script.max_seconds)

    # Evaluate
    history = [*trainer.state.log_history]
    after = trainer.evaluate() if heldout else {}

    # Save
    wrapper = trainer.accelerator.unwrap_model(trainer.model)
    wrapper.policy = ready_to_serve(trainer, wrapper.policy, tokenizer)
    if model_args.use_peft:
        wrapper.value_model = merge_unless_it_answers_otherwise(trainer, wrapper.value_model, "of the value model")
    save_model(trainer, {"": wrapper.policy, "value_model": wrapper.value_model})
    if trainer.is_world_process_zero():
        show_change(before, after)
        curves = {key: logged(history, f"objective/{key}") for key in ("score", "kl", "length", "eos_rate", "entropy")}
        save_curves(f"{args.output_dir}/curve.png", curves, xlabel="update")
        episodes = trainer.state.global_step * trainer.rollout_size * args.world_size
        metrics = {"episodes": episodes, "episodes_per_second": episodes / seconds}
        metrics |= {f"{key}_first": before[key] for key in before} | {f"{key}_last": after[key] for key in after}
        curves |= heldout_curves(history, before, after, trainer.state.global_step)
        results = {"seconds": seconds, "prompts": len(dataset), "metrics": metrics, "curves": curves}
        results |= {"reward_gate": gate, "alarms": show_alarms(history)}
        write_results(script.results_dir or args.output_dir, "ppo", results)
        print(f"PPO on {episodes:,} episodes in {seconds:.0f} s; the model is in {args.output_dir}")
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
