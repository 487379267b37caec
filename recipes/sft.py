"""Fine-tune a base model on conversations.

    accelerate launch recipes/sft.py --config recipes/configs/quickstart/sft.yaml
    accelerate launch recipes/sft.py --config recipes/configs/quickstart/sft.yaml --use_peft --lora_target_modules all-linear

Takes conversations of any usual format as they are (data_prep/readers/conversation_formats.py). The loss is on the assistant's
turns only (their end-of-turn token included), short conversations are packed into rows of `max_length` tokens without
seeing each other. With `--use_peft` only LoRA adapters are trained, and merged before saving unless `--merge_adapter
false`. Before training, one example is shown with its loss mask; at the end the model is checked to stop by itself.
"""

import time
from dataclasses import dataclass, field
from itertools import groupby

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results
from data_prep.models.generation import generate_answers
from data_prep.models.loading import check_context, checkpoint_or_hub_id
from data_prep.readers.prompts import split_last_answer
from data_prep.tokens.sft_dataset import load_tokenized
from recipes.trainers.arguments import check_output_dir, last_checkpoint, parse_arguments
from recipes.trainers.curves import logged, save_curves
from recipes.trainers.muon import MuonWithAdamW


@dataclass
class ScriptArguments:
    conversations: list[str] = field(metadata={"help": "Files, folders or hf://owner/name[:config:split]."})
    heldout: str | None = field(
        default=None, metadata={"help": "Conversations for the evaluation loss and last check."}
    )
    columns: str | None = field(default=None, metadata={"help": "field=column,... instead of finding the format."})
    on_bad: str = field(
        default="error", metadata={"help": "error, repair or quarantine (see data_prep/rows/read.py)."}
    )
    long: str = field(default="truncate", metadata={"help": "Beyond max_length: drop, truncate or split at turns."})
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    muon_lr: float | None = field(
        default=None, metadata={"help": "Muon's learning rate; None, or with LoRA: the optimizer `optim` names."}
    )
    merge_adapter: bool = field(default=True, metadata={"help": "Save LoRA merged into the model, not beside it."})
    max_new_tokens: int = field(default=64, metadata={"help": "Within which the model should stop by itself."})


def show_mask(tokenizer, row: dict) -> None:
    """Print a conversation, the tokens that enter the loss in green and between brackets."""
    # Decoded in runs, not token by token: a Chinese character may be several tokens.
    runs = groupby(zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != -100)
    texts = [(counts, tokenizer.decode([token for token, _ in run])) for counts, run in runs]
    shown = "".join(f"\033[32m[{text}]\033[0m" if counts else text for counts, text in texts)
    print(f"an example; [what is between brackets] enters the loss:\n  {shown}")


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, SFTConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Tokenizer
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/pretrain.py")
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.eos_token = args.eos_token or tokenizer.eos_token
    if args.chat_template_path:
        if not args.chat_template_path.endswith((".jinja", ".j2")):  # TRL would take a model's, with new tokens
            raise InputError(f"chat_template_path is {args.chat_template_path!r}; expected a .jinja or .j2 file")
        tokenizer.chat_template = existing(args.chat_template_path).read_text(encoding="utf-8")
    config = AutoConfig.from_pretrained(name)
    check_context(tokenizer, config, args.max_length)
    if script.max_new_tokens >= config.max_position_embeddings:
        raise InputError(
            f"max_new_tokens is {script.max_new_tokens}, but the model has {config.max_position_embeddings} positions"
        )

    # Dataset, with tokens and labels, so that TRL has nothing left to encode or to cut
    dataset, heldout = (
        load_tokenized(
            paths, tokenizer, args.max_length, script.on_bad, script.long, script.columns,
            quarantine=f"{args.output_dir}/{file}.jsonl", assistant_only=args.assistant_only_loss,
        ).select_columns(["messages", "input_ids", "labels"])
        if paths else None
        for file, paths in (("quarantine", script.conversations), ("quarantine_heldout", script.heldout))
    )  # fmt: skip
    show_mask(tokenizer, dataset[0])

    # Model
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=model_args.dtype or "float32",
        attn_implementation=model_args.attn_implementation,
        use_safetensors=True,
    )

    # Trainer
    optimizer = (
        MuonWithAdamW(model, script.muon_lr, args.learning_rate, args.weight_decay)
        if script.muon_lr and not model_args.use_peft
        else None
    )
    trainer = SFTTrainer(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        optimizers=(optimizer, None),
    )

    # Train
    start = time.perf_counter()
    resume = last_checkpoint(args.output_dir) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    # Evaluate
    metrics = trainer.evaluate() if heldout else {}
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    checked = (heldout or dataset).shuffle(seed=args.seed).select(range(min(64, len(heldout or dataset))))
    prompts = [split_last_answer(row["messages"])[0] for row in checked]
    answers = generate_answers(model, tokenizer, prompts, script.max_new_tokens, desc="does it stop?")
    stops = sum(answer["stopped"] for (answer,) in answers) / len(answers)
    print(f"stops by itself in {stops:.0%} of {len(answers)} answers within {script.max_new_tokens} tokens")

    # Save
    if model_args.use_peft and script.merge_adapter:
        model = model.merge_and_unload()
        trainer.model = model
    model.config.use_cache = model.generation_config.use_cache = True
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        curves = {
            "loss": logged(history, "loss"),
            "accuracy of the next token": logged(history, "mean_token_accuracy"),
        }
        save_curves(f"{args.output_dir}/curve.png", curves)
        figures = {"loss_first": curves["loss"][0][1], "loss_last": curves["loss"][-1][1], "stops_by_itself": stops}
        figures |= {key: value for key, value in metrics.items() if key in ("eval_loss", "eval_mean_token_accuracy")}
        results = {"seconds": seconds, "conversations": len(dataset), "metrics": figures, "curves": curves}
        write_results(script.results_dir or args.output_dir, "sft", results)
    print(f"fine-tuned on {len(dataset):,} conversations in {seconds:.0f} s; the model is in {args.output_dir}")


if __name__ == "__main__":
    run_main(main)
