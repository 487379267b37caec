r"""Improve an assistant by DPO on ranked answers, without a reward model.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/dpo.py \
        --config recipes/configs/quickstart/dpo.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/dpo.py \
        --config recipes/configs/quickstart/dpo.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/dpo --results_dir runs/lora

Direct preference optimization (Rafailov 2023, arXiv:2305.18290) by TRL's own trainer, from the SFT checkpoint that
recipes/ppo.py starts from and the rankings that recipes/reward.py takes: every pair of unequal ranks is a chosen and a
rejected answer. The reward is implicit, beta · log(policy / reference) of an answer; the share of pairs it gets right and
its margin are logged and plotted. With `--use_peft` LoRA adapters are trained, beside quantized weights with
`--load_in_4bit`; the reference is the policy with its adapter switched off. They are merged before saving unless
`--merge_adapter false`.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import trl
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import AutoConfig

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.models.loading import check_context, checkpoint_or_hub_id, context_of, load_tokenizer
from data_prep.readers.preferences import load_rankings, prompt_key
from data_prep.readers.ranks import pairs
from data_prep.tokens.chat_encoder import encode_conversations, special_token_text
from data_prep.tokens.generation_prompt import check_begins
from data_prep.tokens.template_problems import refused_by
from recipes.trainers.adapter import lora_config
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.curves import logged, rows_seen, save_curves
from recipes.trainers.resuming import open_run, train
from recipes.trainers.saving import finish, merge_and_save, stop_at_end_of_turn

REFUSED = {"truncation_mode": "pairs with an answer beyond max_length are left out, with a count"}


@dataclass
class ScriptArguments:
    rankings: list[str] = field(
        metadata={"help": "Rankings, pairs, scored lists or labelled answers: files, folders or hf://owner/name."}
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


def as_pairs(rankings: Dataset, tokenizer, max_length: float) -> Dataset:
    """Every pair of unequal ranks in TRL's conversational format, {"prompt", "chosen", "rejected"} as messages.

    Pairs with an answer beyond `max_length` tokens are left out, with a count on the screen: TRL would truncate the
    answer, end of turn and all, without a word. Raises InputError for a template whose prompts end otherwise than answers
    begin: TRL takes as the answer what is behind as many tokens as the prompt has.
    """
    rows, number, special = [], 0, special_token_text(tokenizer)
    prompts, completions = list(rankings["prompt"]), list(rankings["completions"])
    turns_of = [[[{"role": "assistant", "content": text}] for text in own] for own in completions]
    every = [prompt + turn for prompt, turns in zip(prompts, turns_of, strict=True) for turn in turns]
    ids = iter(encode_conversations(tokenizer, every))
    encoded = [[next(ids) for _ in turns] for turns in turns_of]
    check_begins(tokenizer, prompts, completions, encoded)
    for row, turns, own in zip(rankings, turns_of, encoded, strict=True):
        lengths = list(map(len, own))
        # TRL encodes by this: "<|endoftext|>" that somebody typed stays text.
        texts = [message["content"] for message in row["prompt"]] + row["completions"]
        options = {"sanitize_control_tokens": any(special.search(text) for text in texts)}
        for better, worse in pairs(row["ranks"]):
            number += 1
            if max(lengths[better], lengths[worse]) <= max_length:
                pair = {"prompt": row["prompt"], "chosen": turns[better], "rejected": turns[worse]}
                rows.append({**pair, "chat_template_kwargs": options})
    left_out = f"; {number - len(rows):,} with an answer beyond {max_length} tokens (max_length) are left out"
    print(f"{len(rows):,} pairs of a chosen and a rejected answer{left_out if len(rows) < number else ''}")
    if not rows:
        raise InputError(f"no pair fits in max_length {max_length}: raise it")
    return Dataset.from_list(rows)


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, trl.DPOConfig, trl.ModelConfig, refused=REFUSED)
    run = open_run(script, args, model_args)

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/sft.py", revision)
    tokenizer = load_tokenizer(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    check_context(tokenizer, config, args.max_length)

    # Dataset
    load = partial(load_rankings, on_bad=script.on_bad, columns=script.columns, refused=refused_by(tokenizer))
    dataset = load(script.rankings, quarantine=f"{args.output_dir}/quarantine.jsonl")
    heldout = (
        load(script.heldout, quarantine=f"{args.output_dir}/quarantine_heldout.jsonl") if script.heldout else None
    )
    if heldout:
        check_disjoint(map(prompt_key, dataset["prompt"]), map(prompt_key, heldout["prompt"]), script.heldout)
    max_length = args.max_length or context_of(config) or math.inf
    dataset = as_pairs(dataset, tokenizer, max_length)
    heldout = as_pairs(heldout, tokenizer, max_length) if heldout else None

    # Model
    # By name: TRL loads the policy and its reference alike.
    args.model_init_kwargs = {**model_kwargs(model_args), "revision": revision}
    set_seed(args.seed)  # LoRA's matrices are initialised at random

    # Trainer
    trainer = trl.DPOTrainer(
        name,
        args=args,
        train_dataset=dataset,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=lora_config(model_args, config),
    )
    stop_at_end_of_turn(trainer, tokenizer)

    # Train
    seconds = train(trainer, run, script.max_seconds)

    # Evaluate
    evaluated = trainer.evaluate() if heldout else {}
    if heldout:
        print(f"gets {evaluated['eval_rewards/accuracies']:.1%} of {len(heldout):,} held-out pairs right")

    # Save
    merge_and_save(trainer, tokenizer, merge=script.merge_adapter)
    if trainer.is_world_process_zero():
        history, steps = trainer.state.log_history, trainer.state.global_step
        shown = {"accuracy": "accuracies", "margin": "margins", "chosen": "chosen", "rejected": "rejected"}
        curves = {"loss": logged(history, "loss")}
        curves |= {key: logged(history, f"rewards/{theirs}") for key, theirs in shown.items()}
        save_curves(f"{args.output_dir}/curve.png", curves)
        metrics = {"loss_first": curves["loss"][0][1], "loss_last": curves["loss"][-1][1]}
        metrics |= {f"{key}_last": curves[key][-1][1] for key in shown} | {"steps": steps}
        kept = {"eval_loss": "eval_loss"} | {f"eval_{key}": f"eval_rewards/{theirs}" for key, theirs in shown.items()}
        metrics |= {key: evaluated[theirs] for key, theirs in kept.items() if theirs in evaluated}
        results = {"seconds": seconds, "pairs": rows_seen(trainer), "metrics": metrics, "curves": curves}
        write_results(script.results_dir or args.output_dir, "dpo", results)
        print(
            f"DPO in {steps:,} steps on {rows_seen(trainer):,} of {len(dataset):,} pairs in {seconds:.0f} s; "
            f"the model is in {args.output_dir}"
        )
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
