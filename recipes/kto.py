r"""Improve an assistant by KTO on answers labelled good or bad, without pairs and without a reward model.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/kto.py \
        --config recipes/configs/quickstart/kto.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/kto.py \
        --config recipes/configs/quickstart/kto.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/kto --results_dir runs/lora

Kahneman-Tversky optimization (Ethayarajh 2024, arXiv:2402.01306) by TRL's own trainer, from the SFT checkpoint that
recipes/ppo.py starts from. One label a prompt is enough: thumbs up or down. Rankings and pairs are taken apart, the best
answer good and the last one bad. The reward is implicit, beta · log(policy / reference) of an answer; good answers are
pushed above, bad ones below a zero point, the KL of the policy to its reference, which TRL estimates on the prompts of a
batch with each other's answers. So a batch needs two rows or more, and the rows keep one order, shuffled once by the
seed. With `--use_peft` LoRA adapters are trained, beside quantized weights with `--load_in_4bit`; the reference is the
policy with its adapter switched off. They are merged before saving unless `--merge_adapter false`.
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
from data_prep.readers.labels import load_labels
from data_prep.readers.preferences import prompt_key
from data_prep.tokens.chat_encoder import encode_conversations, special_token_text
from data_prep.tokens.generation_prompt import check_begins
from data_prep.tokens.template_problems import refused_by
from recipes.trainers.adapter import lora_config
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.curves import logged, rows_seen, save_curves
from recipes.trainers.resuming import open_run, train
from recipes.trainers.saving import finish, merge_and_save, stop_at_end_of_turn

WITHOUT_KL = "apo_zero_unpaired"  # the loss_type that estimates none
BATCHES = (
    "the KL is estimated within batches of per_device_train_batch_size that are put together once, by one process"
)
REFUSED = {"auto_find_batch_size": BATCHES, "dataset_num_proc": BATCHES}


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


def check_batches(args: "trl.KTOConfig") -> None:
    """Raise InputError for batches in which the KL cannot be estimated."""
    if args.loss_type == WITHOUT_KL:
        return
    if args.per_device_train_batch_size < 2:
        raise InputError(
            f"per_device_train_batch_size: found {args.per_device_train_batch_size}; expected 2 or more: KTO estimates the "
            "KL on the prompts of a batch with each other's answers. gradient_accumulation_steps does not count"
        )
    if args.train_sampling_strategy != "sequential":
        raise InputError(
            f"train_sampling_strategy: found {args.train_sampling_strategy!r}; expected 'sequential': the KL is estimated "
            "within batches that are put together once"
        )


def as_labelled(answers: Dataset, tokenizer, max_length: float, args: "trl.KTOConfig") -> Dataset:
    """The rows in TRL's conversational format, {"prompt", "completion": messages, "label"}, shuffled once by the seed.

    Answers beyond `max_length` tokens with their prompt are left out, with a count on the screen: TRL would truncate them,
    end of turn and all, or drop them, without a word. A row that would be a batch of its own, without another's answer to
    estimate the KL on, is left out too. Raises InputError if the good or the bad answers are none,
    and for a template whose prompts end otherwise than answers begin (`check_begins`).
    """
    rows, special = [], special_token_text(tokenizer)
    prompts, texts = list(answers["prompt"]), list(answers["completion"])
    every = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, texts, strict=True)]
    encoded = encode_conversations(tokenizer, every)
    check_begins(tokenizer, prompts, [[text] for text in texts], [[ids] for ids in encoded])
    for row, ids in zip(answers, encoded, strict=True):
        # TRL encodes by this: "<|endoftext|>" that somebody typed stays text.
        texts = [message["content"] for message in row["prompt"]] + [row["completion"]]
        options = {"sanitize_control_tokens": any(special.search(text) for text in texts)}
        if len(ids) <= max_length:
            turns = [{"role": "assistant", "content": row["completion"]}]
            rows.append({**row, "completion": turns, "chat_template_kwargs": options})
    labelled = Dataset.from_list(rows).shuffle(seed=args.seed if args.data_seed is None else args.data_seed)
    left_out = f"; {len(answers) - len(rows):,} beyond {max_length} tokens (max_length) are left out"
    left_out = left_out if len(rows) < len(answers) else ""
    if args.loss_type != WITHOUT_KL and len(rows) % args.per_device_train_batch_size == 1:
        labelled = labelled.select(range(len(rows) - 1))
        left_out += "; 1 is left out that would be a batch by itself"
    good = sum(labelled["label"]) if rows else 0
    counts = f"{good:,} answers labelled good and {len(labelled) - good:,} labelled bad"
    if not 0 < good < len(labelled):
        raise InputError(f"KTO needs answers of both labels: found {counts}{left_out}")
    print(f"{counts}{left_out}")
    return labelled


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, trl.KTOConfig, trl.ModelConfig, refused=REFUSED)
    run = open_run(script, args, model_args)
    check_batches(args)

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/sft.py", revision)
    tokenizer = load_tokenizer(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    check_context(tokenizer, config, args.max_length)

    # Dataset
    load = partial(load_labels, on_bad=script.on_bad, columns=script.columns, refused=refused_by(tokenizer))
    dataset = load(script.rankings, quarantine=f"{args.output_dir}/quarantine.jsonl")
    heldout = (
        load(script.heldout, quarantine=f"{args.output_dir}/quarantine_heldout.jsonl") if script.heldout else None
    )
    if heldout:
        prompts = dict.fromkeys(map(prompt_key, heldout["prompt"]))  # each may have several answers
        check_disjoint(map(prompt_key, dataset["prompt"]), prompts, script.heldout)
    # Set for TRL too: a prompt with another's answer may be longer than any row, and is truncated for the KL alone.
    args.max_length = args.max_length or context_of(config)
    max_length = args.max_length or math.inf
    dataset = as_labelled(dataset, tokenizer, max_length, args)
    heldout = as_labelled(heldout, tokenizer, max_length, args) if heldout else None

    # Model
    # By name: TRL loads the policy and its reference alike.
    args.model_init_kwargs = {**model_kwargs(model_args), "revision": revision}
    set_seed(args.seed)  # LoRA's matrices are initialised at random

    # Trainer
    trainer = trl.KTOTrainer(
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
        good, bad = (evaluated[f"eval_rewards/{side}"] for side in ("chosen", "rejected"))
        print(f"gives held-out answers labelled good a reward of {good:+.3f}, those labelled bad {bad:+.3f}")

    # Save
    merge_and_save(trainer, tokenizer, merge=script.merge_adapter)
    if trainer.is_world_process_zero():
        history, steps = trainer.state.log_history, trainer.state.global_step
        shown = {"margin": "rewards/margins", "chosen": "rewards/chosen", "rejected": "rewards/rejected", "kl": "kl"}
        curves = {"loss": logged(history, "loss")} | {key: logged(history, theirs) for key, theirs in shown.items()}
        curves = {key: curve for key, curve in curves.items() if curve}  # a short run may see one label alone
        save_curves(f"{args.output_dir}/curve.png", curves)
        metrics = {"loss_first": curves["loss"][0][1], "loss_last": curves["loss"][-1][1]}
        metrics |= {f"{key}_last": curves[key][-1][1] for key in shown if key in curves} | {"steps": steps}
        kept = {f"eval_{key}": f"eval_{theirs}" for key, theirs in {"loss": "loss", **shown}.items()}
        metrics |= {key: evaluated[theirs] for key, theirs in kept.items() if theirs in evaluated}
        results = {"seconds": seconds, "answers": rows_seen(trainer), "metrics": metrics, "curves": curves}
        write_results(script.results_dir or args.output_dir, "kto", results)
        print(
            f"KTO in {steps:,} steps on {rows_seen(trainer):,} of {len(dataset):,} labelled answers in {seconds:.0f} s; "
            f"the model is in {args.output_dir}"
        )
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
