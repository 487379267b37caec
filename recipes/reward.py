"""Train a reward model from ranked answers, starting from the SFT checkpoint.

    accelerate launch recipes/reward.py --config recipes/configs/quickstart/reward.yaml
    accelerate launch recipes/reward.py --config recipes/configs/quickstart/reward.yaml --use_peft --lora_target_modules all-linear

Takes rankings, pairs, scored lists or labelled answers (data_prep/readers/preference_formats.py). Every pair of unequal ranks is
a comparison, and each prompt weighs the same however many pairs it gives. At the end: accuracy on held-out rankings
with its 95 % interval, the margin, the correlation of reward with length, and a check that the saved model reloads to
the same scores. With `--use_peft` LoRA adapters and the score head are trained, and merged before saving.
"""

import time
from dataclasses import dataclass, field

from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import ModelConfig, RewardConfig, get_peft_config

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import show_interval
from data_prep.models.loading import check_context, checkpoint_or_hub_id
from data_prep.models.scoring import ranking_agreement, score_answers
from data_prep.readers.preferences import load_rankings
from recipes.trainers.arguments import check_output_dir, last_checkpoint, parse_arguments
from recipes.trainers.curves import logged, save_curves
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.reward_trainer import RankingRewardTrainer


@dataclass
class ScriptArguments:
    rankings: list[str] = field(metadata={"help": "Files of rankings, pairs, scored lists or labelled answers."})
    heldout: list[str] | None = field(
        default=None, metadata={"help": "Rankings of prompts that training does not see."}
    )
    on_bad: str = field(default="error", metadata={"help": "error, repair, or quarantine: bad rows into output_dir."})
    columns: str | None = field(default=None, metadata={"help": "Their columns: prompt=q,chosen=good,rejected=bad."})
    margin_scale: float | None = field(
        default=None, metadata={"help": "Rewards to differ by this times the scores; None: no margins."}
    )
    shared_prompt: bool = field(
        default=False, metadata={"help": "Compute a prompt once for all its answers; needs sdpa or eager attention."}
    )
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    muon_lr: float | None = field(default=None, metadata={"help": "Muon's rate; None, or with LoRA: that of `optim`."})


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, RewardConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Dataset
    dataset = load_rankings(script.rankings, script.on_bad, f"{args.output_dir}/quarantine.jsonl", script.columns)
    aside = f"{args.output_dir}/quarantine_heldout.jsonl"
    heldout = load_rankings(script.heldout, script.on_bad, aside, script.columns) if script.heldout else None
    asked = {str(prompt) for prompt in dataset["prompt"]}
    if heldout and (shared := sum(str(prompt) in asked for prompt in heldout["prompt"])):
        raise InputError(
            f"{script.heldout}: {shared} of its prompts stand in the training rankings too; split by prompt"
        )

    # Tokenizer and model
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/sft.py")
    tokenizer = AutoTokenizer.from_pretrained(name)
    set_seed(args.seed)  # the score head is drawn at random
    model = AutoModelForSequenceClassification.from_pretrained(
        name, num_labels=1, dtype=model_args.dtype or "float32", attn_implementation=model_args.attn_implementation,
        pad_token_id=tokenizer.pad_token_id, use_safetensors=True,
    )  # fmt: skip
    check_context(tokenizer, model.config, args.max_length)
    # Std 1/sqrt(width + 1): rewards start with a variance near 1 whatever the width (Stiennon 2020, as in
    # lm-human-preferences; Huang 2024, arXiv:2403.17031, detail 11).
    model.score.weight.data.normal_(std=(model.config.hidden_size + 1) ** -0.5)

    # Trainer
    if model_args.use_peft:  # without these two the score head stays random and is not saved
        model_args.lora_task_type, model_args.lora_modules_to_save = "SEQ_CLS", ["score"]
    trainer = RankingRewardTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        margin_scale=script.margin_scale,
        shared_prompt=script.shared_prompt,
        optimizers=(
            MuonWithAdamW(model, script.muon_lr, args.learning_rate, args.weight_decay)
            if script.muon_lr and not model_args.use_peft
            else None,
            None,
        ),
    )

    # Train
    start = time.perf_counter()
    resume = last_checkpoint(args.output_dir) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    # Evaluate
    # Without accelerate's autocast, which would score in bf16 what the saved model scores in fp32.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model = model.merge_and_unload() if model_args.use_peft else model
    agreement = ranking_agreement(model, tokenizer, (heldout or dataset).to_list(), args.max_length)
    correlation = agreement["length_correlation"]
    print(
        f"accuracy on {'held-out' if heldout else 'its own training'} rankings {show_interval(agreement['accuracy'])}, "
        f"margin {agreement['margin']:.2f}, correlation of reward with length "
        + ("undefined" if correlation is None else f"{correlation:+.2f}")
    )

    # Save
    trainer.model = model
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        sample = trainer.train_dataset.select(range(min(8, len(trainer.train_dataset))))  # those that fit max_length
        answers = [completions[0] for completions in sample["completions"]]
        before = score_answers(model, tokenizer, sample["prompt"], answers)
        reloaded = AutoModelForSequenceClassification.from_pretrained(args.output_dir, dtype=model.dtype).to(
            model.device
        )
        after = score_answers(reloaded, AutoTokenizer.from_pretrained(args.output_dir), sample["prompt"], answers)
        difference = max(abs(a - b) for a, b in zip(before, after, strict=True))
        if difference > 1e-3:
            raise RuntimeError(f"the saved reward model scores differently by {difference:.4f}: do not use it")
        history = trainer.state.log_history
        curves = {key: logged(history, key) for key in ("loss", "accuracy", "margin")}
        save_curves(f"{args.output_dir}/curve.png", curves)
        figures = {
            "loss_first": curves["loss"][0][1],
            "loss_last": curves["loss"][-1][1],
            "reload_difference": difference,
        }
        figures |= {"training_accuracy_last": curves["accuracy"][-1][1], **agreement}
        results = {"seconds": seconds, "rankings": len(trainer.train_dataset), "metrics": figures, "curves": curves}
        write_results(script.results_dir or args.output_dir, "reward", results)
    print(
        f"trained a reward model on {len(trainer.train_dataset):,} rankings in {seconds:.0f} s; it is in {args.output_dir}"
    )


if __name__ == "__main__":
    run_main(main)
