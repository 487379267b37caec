"""Fine-tune a base model on conversations.

    accelerate launch recipes/sft.py --config recipes/configs/quickstart/sft.yaml
    accelerate launch recipes/sft.py --config recipes/configs/quickstart/sft.yaml --use_peft --lora_target_modules all-linear

Takes conversations in the Baichuan format as they are. The loss is on the assistant's turns only (their end-of-turn
token included), short conversations are packed into rows of `max_length` tokens without seeing each other. With
`--use_peft` only LoRA adapters are trained; they are merged before saving unless `--merge_adapter false`.
Before training, one example is shown with its loss mask; at the end the model is checked to stop by itself.
"""

import time
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from data_prep.conversations import check_context, load_conversations, report_over_long
from data_prep.files import InputError, existing, run_main, write_results
from data_prep.generation import generate_answers, split_last_answer
from recipes.trainers.arguments import check_output_dir, checkpoint_or_hub_id, last_checkpoint, parse_arguments
from recipes.trainers.callbacks import logged, save_curves
from recipes.trainers.muon import MuonWithAdamW


@dataclass
class ScriptArguments:
    conversations: list[str] = field(metadata={"help": "Files in the Baichuan format."})
    heldout: str | None = field(
        default=None, metadata={"help": "Conversations for the evaluation loss and last check."}
    )
    on_bad: str = field(default="error", metadata={"help": "error, or repair: merge two turns of one speaker."})
    results_dir: str | None = field(default=None, metadata={"help": "Where the figures go; None: the output folder."})
    muon_lr: float | None = field(
        default=None, metadata={"help": "Muon's learning rate; None, or with LoRA: the optimizer `optim` names."}
    )
    merge_adapter: bool = field(default=True, metadata={"help": "Save LoRA merged into the model, not beside it."})
    max_new_tokens: int = field(default=64, metadata={"help": "Within which the model should stop by itself."})


def show_mask(tokenizer, messages: list[dict]) -> None:
    """Print a conversation, the tokens that enter the loss in green and between brackets."""
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    # Decoded in runs, not token by token: a Chinese character may be several tokens.
    runs = groupby(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True), key=itemgetter(1))
    texts = [(counts, tokenizer.decode([token for token, _ in run])) for counts, run in runs]
    shown = "".join(f"\033[32m[{text}]\033[0m" if counts else text for counts, text in texts)
    print(f"an example; [what is between brackets] enters the loss:\n  {shown}")


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, SFTConfig, ModelConfig)
    check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))

    # Dataset
    dataset = load_conversations(script.conversations, script.on_bad)
    heldout = load_conversations(script.heldout, script.on_bad) if script.heldout else None

    # Tokenizer and model
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/pretrain.py")
    tokenizer = AutoTokenizer.from_pretrained(name)
    if args.chat_template_path and args.chat_template_path.endswith((".jinja", ".j2")):  # shown and counted by it too
        tokenizer.chat_template = existing(args.chat_template_path).read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=model_args.dtype or "float32",
        attn_implementation=model_args.attn_implementation,
        use_safetensors=True,
    )
    check_context(tokenizer, model.config, args.max_length)
    if script.max_new_tokens >= model.config.max_position_embeddings:
        raise InputError(
            f"max_new_tokens is {script.max_new_tokens}, but the model has {model.config.max_position_embeddings} positions"
        )
    report_over_long(dataset, tokenizer, args.max_length)
    show_mask(tokenizer, dataset[0]["messages"])

    # Trainer
    optimizer = (
        MuonWithAdamW(model, script.muon_lr, args.learning_rate, args.weight_decay)
        if script.muon_lr and not model_args.use_peft
        else None
    )
    trainer = SFTTrainer(
        model,
        args,
        train_dataset=dataset.select_columns("messages"),
        eval_dataset=heldout.select_columns("messages") if heldout else None,
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
