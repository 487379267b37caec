r"""Train a reward model from ranked answers, starting from the SFT checkpoint.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/reward.py \
        --config recipes/configs/quickstart/reward.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/reward.py \
        --config recipes/configs/quickstart/reward.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/reward --results_dir runs/lora

Takes rankings, pairs, scored lists or labelled answers (data_prep/readers/preference_formats.py). Every pair of unequal
ranks is a comparison, and each prompt weighs the same however many pairs it gives. At the end: accuracy on held-out
rankings with its 95 % interval, the margin, the correlation of reward with length, and a check that the saved model
reloads to the same scores. With `--use_peft` LoRA adapters and the score head are trained, beside quantized weights with
`--load_in_4bit`, and merged before saving; if merging changes what they score, they are saved by themselves, with a line.
"""

from dataclasses import dataclass, field
from functools import partial

import trl
from accelerate.utils import set_seed
from transformers import AutoConfig, AutoModelForSequenceClassification

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import show_interval
from data_prep.models.loading import check_context, checkpoint_or_hub_id, load_tokenizer
from data_prep.models.scoring import ranking_agreement, score_answers
from data_prep.readers.preferences import load_rankings, prompt_key
from data_prep.tokens.chat_encoder import answer_end
from data_prep.tokens.template_problems import refused_by
from recipes.trainers import quiet
from recipes.trainers.adapter import check_score_head, lora_config
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.curves import logged, rows_seen, save_curves
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.padding import take_pad_token
from recipes.trainers.resuming import open_run, train
from recipes.trainers.saving import finish, merge_unless_it_answers_otherwise, reload_classifier, save_model

TOKENIZED = "rankings are encoded and padded by recipes/trainers/reward_trainer.py, with the model's own tokenizer"
REFUSED = {
    "chat_template_path": TOKENIZED,
    "dataset_num_proc": TOKENIZED,
    "pad_to_multiple_of": TOKENIZED,
    "lora_task_type": "the adapter of a reward model is one for sequence classification",
}


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
    margin_scale: float | None = field(
        default=None,
        metadata={
            "help": "Margin of a pair: this times the difference of its scores (Llama 2, eq. 2); default: no margins."
        },
    )
    shared_prompt: bool = field(
        default=False, metadata={"help": "Compute a prompt once for all its answers; needs sdpa or eager attention."}
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


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, trl.RewardConfig, trl.ModelConfig, refused=REFUSED)
    run = open_run(script, args, model_args)

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/sft.py", revision)
    tokenizer = load_tokenizer(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    check_context(tokenizer, config, args.max_length)
    check_score_head(config, name)
    take_pad_token(tokenizer, args.pad_token, [answer_end(tokenizer)[0]], needed=True)

    # Dataset
    load = partial(load_rankings, on_bad=script.on_bad, columns=script.columns, refused=refused_by(tokenizer))
    dataset = load(script.rankings, quarantine=f"{args.output_dir}/quarantine.jsonl")
    heldout = (
        load(script.heldout, quarantine=f"{args.output_dir}/quarantine_heldout.jsonl") if script.heldout else None
    )
    if heldout:
        check_disjoint(map(prompt_key, dataset["prompt"]), map(prompt_key, heldout["prompt"]), script.heldout)

    # Model
    quiet.new_head()
    set_seed(args.seed)  # the score head and LoRA's matrices are initialised at random
    weights = {**model_kwargs(model_args), "revision": revision, "trust_remote_code": False}
    model = AutoModelForSequenceClassification.from_pretrained(
        name, num_labels=1, pad_token_id=tokenizer.pad_token_id, **weights
    )
    # Std 1/sqrt(width + 1): rewards start with a variance near 1 whatever the width (Stiennon 2020, as in
    # lm-human-preferences; Huang 2024, arXiv:2403.17031, detail 11).
    model.score.weight.data.normal_(std=(model.score.in_features + 1) ** -0.5)

    # Trainer
    from recipes.trainers.reward_trainer import RankingRewardTrainer  # slow to import

    trainer = RankingRewardTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=lora_config(model_args, config, "score"),
        margin_scale=script.margin_scale,
        shared_prompt=script.shared_prompt,
    )
    if script.muon_lr and not model_args.use_peft:  # set afterwards: the Trainer refuses it as an argument under FSDP
        trainer.optimizer = MuonWithAdamW(
            trainer.model, script.muon_lr, args.learning_rate, args.weight_decay, script.muon_momentum
        )

    # Train
    seconds = train(trainer, run)

    # Evaluate
    # Without accelerate's autocast, which would score in bf16 what the saved model scores in fp32.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if model_args.use_peft:  # merged first: what is measured is what is saved
        model = merge_unless_it_answers_otherwise(trainer, model, "of the reward model").to(model.device)
        trainer.model = model
    agreement = ranking_agreement(model, tokenizer, (heldout or dataset).to_list(), args.max_length)
    correlation = agreement["length_correlation"]
    print(
        f"accuracy on {'held-out' if heldout else 'its own training'} rankings {show_interval(agreement['accuracy'])}, "
        f"margin {agreement['margin']:.2f}, correlation of reward with length "
        + ("undefined" if correlation is None else f"{correlation:+.2f}")
    )

    # Save
    save_model(trainer, {"": model})
    if trainer.is_world_process_zero():
        sample = trainer.train_dataset.select(range(min(8, len(trainer.train_dataset))))  # those that fit max_length
        prompts, answers = sample["prompt"], [completions[0] for completions in sample["completions"]]
        before = score_answers(model, tokenizer, prompts, answers)
        reloaded = reload_classifier(args.output_dir, model).to(model.device).eval()
        after = score_answers(reloaded, load_tokenizer(args.output_dir), prompts, answers)
        difference = max(abs(a - b) for a, b in zip(before, after, strict=True))
        if difference > 1e-3:
            raise RuntimeError(f"the saved reward model scores differently by {difference:.4f}: do not use it")
        history = trainer.state.log_history
        curves = {key: logged(history, key) for key in ("loss", "accuracy", "margin")}
        save_curves(f"{args.output_dir}/curve.png", curves)
        metrics = {"loss_first": curves["loss"][0][1], "loss_last": curves["loss"][-1][1]}
        metrics |= {"reload_difference": difference, "training_accuracy_last": curves["accuracy"][-1][1], **agreement}
        results = {"seconds": seconds, "rankings": rows_seen(trainer), "metrics": metrics, "curves": curves}
        write_results(script.results_dir or args.output_dir, "reward", results)
        print(
            f"trained a reward model on {rows_seen(trainer):,} of {len(trainer.train_dataset):,} rankings in {seconds:.0f} s; "
            f"it is in {args.output_dir}"
        )
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
