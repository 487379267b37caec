"""Improve an assistant by DPO on ranked answers, without a reward model.

    accelerate launch recipes/dpo.py --config recipes/configs/quickstart/dpo.yaml
    accelerate launch recipes/dpo.py --config recipes/configs/quickstart/dpo.yaml --use_peft --lora_target_modules all-linear

Direct preference optimization (Rafailov 2023, arXiv:2305.18290) by TRL's own trainer, from the SFT checkpoint that
recipes/ppo.py starts from and the rankings that recipes/reward.py takes: every pair of unequal ranks is a chosen and a
rejected answer. The reward is implicit, beta · log(policy / reference) of an answer; the share of pairs it gets right and
its margin are logged and drawn. With `--use_peft` only LoRA adapters are trained; the reference is the policy with the
adapter switched off, and it is merged before saving.
"""

import time
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results
from data_prep.models.loading import check_context
from data_prep.models.scoring import encode_answers
from data_prep.readers.preferences import load_rankings
from data_prep.readers.ranks import pairs
from data_prep.tokens.chat_encoder import special_token_text
from recipes.trainers.arguments import check_output_dir, last_checkpoint, parse_arguments
from recipes.trainers.callbacks import StopAfter
from recipes.trainers.curves import logged, save_curves


@dataclass
class ScriptArguments:
    rankings: list[str] = field(metadata={"help": "Files of rankings, pairs, scored lists or labelled answers."})
    heldout: list[str] | None = field(
        default=None, metadata={"help": "Rankings of prompts that training does not see."}
    )
    on_bad: str = field(default="error", metadata={"help": "error, repair, or quarantine: bad rows into output_dir."})
    columns: str | None = field(default=None, metadata={"help": "Their columns: prompt=q,chosen=good,rejected=bad."})
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    max_seconds: float | None = field(
        default=None, metadata={"help": "Stop training after so many seconds of wall time; None: run to the end."}
    )


def as_pairs(rankings: Dataset, tokenizer, max_length: int) -> Dataset:
    """Every pair of unequal ranks in TRL's conversational format, {"prompt", "chosen", "rejected"} as messages.

    Pairs with an answer beyond `max_length` tokens are left out, with a count on the screen: TRL would cut the answer,
    end of turn and all, without a word.
    """
    rows, number, special = [], 0, special_token_text(tokenizer)
    encoded = encode_answers(tokenizer, list(rankings["prompt"]), list(rankings["completions"]))
    for row, ids in zip(rankings, encoded, strict=True):
        turns = [[{"role": "assistant", "content": completion}] for completion in row["completions"]]
        lengths = list(map(len, ids))
        # TRL encodes by this: "<|endoftext|>" that somebody typed stays text.
        texts = [message["content"] for message in row["prompt"]] + row["completions"]
        spelled = any(special.search(text) for text in texts)
        for better, worse in pairs(row["ranks"]):
            number += 1
            if max(lengths[better], lengths[worse]) <= max_length:
                rows.append({"prompt": row["prompt"], "chosen": turns[better], "rejected": turns[worse],
                             "chat_template_kwargs": {"sanitize_control_tokens": spelled}})  # fmt: skip
    left_out = f"; {number - len(rows):,} with an answer beyond {max_length} tokens (max_length) are left out"
    print(f"{len(rows):,} pairs of a chosen and a rejected answer{left_out if len(rows) < number else ''}")
    if not rows:
        raise InputError(f"no pair fits in max_length {max_length}: raise it")
    return Dataset.from_list(rows)


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, DPOConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Dataset
    dataset = load_rankings(script.rankings, script.on_bad, f"{args.output_dir}/quarantine.jsonl", script.columns)
    heldout = None
    if script.heldout:
        aside = f"{args.output_dir}/quarantine_heldout.jsonl"
        heldout = load_rankings(script.heldout, script.on_bad, aside, script.columns)
    asked = {str(prompt) for prompt in dataset["prompt"]}
    if heldout and (shared := sum(str(prompt) in asked for prompt in heldout["prompt"])):
        raise InputError(
            f"{script.heldout}: {shared} of its prompts stand in the training rankings too; split by prompt"
        )

    # Tokenizer and model
    name = str(existing(model_args.model_name_or_path or "model_name_or_path", "recipes/sft.py"))
    tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    check_context(tokenizer, config, args.max_length)
    max_length = args.max_length or config.max_position_embeddings
    dataset = as_pairs(dataset, tokenizer, max_length)
    heldout = as_pairs(heldout, tokenizer, max_length) if heldout else None
    # By name: TRL loads the policy and its reference alike.
    load = {"dtype": model_args.dtype or "float32", "use_safetensors": True}
    args.model_init_kwargs = {**load, "attn_implementation": model_args.attn_implementation}
    set_seed(args.seed)  # LoRA's matrices are drawn at random

    # Trainer
    trainer = DPOTrainer(
        name,
        args=args,
        train_dataset=dataset,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[StopAfter(script.max_seconds)] if script.max_seconds is not None else [],
    )

    # Train
    start = time.perf_counter()
    resume = last_checkpoint(args.output_dir) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    # Evaluate
    metrics = trainer.evaluate() if heldout else {}
    if heldout:
        print(f"gets {metrics['eval_rewards/accuracies']:.1%} of {len(heldout):,} held-out pairs right")

    # Save
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if model_args.use_peft:
        trainer.model = model = model.merge_and_unload()
    model.config.use_cache = model.generation_config.use_cache = True
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        shown = {"accuracy": "accuracies", "margin": "margins", "chosen": "chosen", "rejected": "rejected"}
        curves = {"loss": logged(history, "loss")}
        curves |= {name: logged(history, f"rewards/{key}") for name, key in shown.items()}
        save_curves(f"{args.output_dir}/curve.png", curves)
        figures = {"loss_first": curves["loss"][0][1], "loss_last": curves["loss"][-1][1]}
        figures |= {f"{name}_last": curves[name][-1][1] for name in shown} | {"steps": trainer.state.global_step}
        kept = {"eval_loss": "eval_loss"} | {f"eval_{name}": f"eval_rewards/{key}" for name, key in shown.items()}
        figures |= {name: metrics[key] for name, key in kept.items() if key in metrics}
        results = {"seconds": seconds, "pairs": len(dataset), "metrics": figures, "curves": curves}
        write_results(script.results_dir or args.output_dir, "dpo", results)
        steps = trainer.state.global_step
        print(
            f"DPO in {steps:,} steps on {len(dataset):,} pairs in {seconds:.0f} s; the model is in {args.output_dir}"
        )


if __name__ == "__main__":
    run_main(main)
