r"""Fine-tune a base model on conversations.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/sft.py \
        --config recipes/configs/quickstart/sft.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/sft.py \
        --config recipes/configs/quickstart/sft.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/sft --results_dir runs/lora

Takes conversations of any usual format as they are (data_prep/readers/conversation_formats.py). The loss is on the
assistant's turns only (their end-of-turn token included), and short conversations are packed into rows of `max_length`
tokens without seeing each other. With `--use_peft` LoRA adapters are trained, beside quantized weights with
`--load_in_4bit`, and merged before saving unless `--merge_adapter false`; `--lora_modules_to_save` names what is trained in
full, such as the embeddings, with the head where both are one matrix. Before training, one example is shown with its loss
mask; at the end the EOS rate of sampled answers is measured. Tools and calls in the data go to the chat template, the loss is
on the calls; `--reasoning` says what becomes of <think> blocks.
"""

import math
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import trl
from accelerate.utils import set_seed
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.common.intervals import bootstrap_interval, show_interval
from data_prep.common.text import printable
from data_prep.models.generation import generate_answers, stop_token_ids
from data_prep.models.loading import check_context, checkpoint_or_hub_id, context_of, load_tokenizer
from data_prep.readers.preferences import prompt_key
from data_prep.readers.prompts import last_question, split_last_answer
from data_prep.tokens.chat_encoder import end_of_turn, training_template
from data_prep.tokens.generation_prompt import check_begins
from data_prep.tokens.sft_dataset import load_tokenized, messages_of
from recipes.trainers import quiet
from recipes.trainers.adapter import keep_tied, lora_config
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.chat_vector import add_chat_vector
from recipes.trainers.curves import logged, rows_seen, save_curves
from recipes.trainers.folders import check_eos_token, read_template
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.padding import take_pad_token
from recipes.trainers.resuming import open_run, train
from recipes.trainers.saving import finish, merge_and_save

TOKENIZED = "conversations are encoded by data_prep/tokens/sft_dataset.py"
REFUSED = {
    "dataset_text_field": TOKENIZED,
    "dataset_kwargs": TOKENIZED,
    "truncation_mode": "see long",
    "completion_only_loss": "see assistant_only_loss",
}
WITHOUT_TEMPLATE = (
    "Give chat_template_path (--chat_template_path FILE): data_prep/chat_template.jinja for a tokenizer that has <|end|>, "
    "recipes/configs/qwen2.5_7b_lora/chat_template.jinja for one that has <|im_end|>, for others a template that ends an "
    "answer on their eos_token"
)


@dataclass
class ScriptArguments:
    conversations: list[str] = field(
        metadata={"help": "Conversations in any usual format: files, folders or hf://owner/name[:config:split]."}
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
    long: str = field(
        default="truncate", metadata={"help": "Conversations beyond max_length: drop, truncate, or split at turns."}
    )
    reasoning: str = field(
        default="keep",
        metadata={
            "help": "<think> blocks and reasoning_content: keep, drop, or mask (in the tokens, not in the loss)."
        },
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
    merge_adapter: bool = field(
        default=True, metadata={"help": "Save LoRA merged into the model; false: the adapter alone."}
    )
    chat_vector: list[str] | None = field(
        default=None,
        metadata={
            "help": "An assistant and the base model it is from: their difference is added to the model before training."
        },
    )
    max_new_tokens: int = field(
        default=64, metadata={"help": "Longest answer, in tokens, when the EOS rate is measured."}
    )


def show_mask(tokenizer, row: dict) -> None:
    """Print a conversation, the tokens that enter the loss between brackets, and on a terminal in green.

    Raises InputError if its prompt, as generation sends it, is not what it begins with.
    """
    prompt, answer = split_last_answer(messages_of(row))
    check_begins(tokenizer, [prompt], [[answer]], [[row["input_ids"]]])
    green, plain = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("", "")
    # Decoded in runs, not token by token: a Chinese character may be several tokens.
    runs = groupby(zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != -100)
    texts = [(counts, printable(tokenizer.decode([token for token, _ in run]))) for counts, run in runs]
    shown = "".join(f"{green}[{text}]{plain}" if counts else text for counts, text in texts)
    print(f"an example; [what is between brackets] enters the loss:\n  {shown}")


def take_end_of_turn(tokenizer, args: "trl.SFTConfig") -> None:
    """Let an answer end where the chat template ends it, if `eos_token` does not say where: else no answer stops."""
    try:
        end = end_of_turn(tokenizer)
    except InputError:  # turns that cannot be found
        if args.assistant_only_loss:
            raise
        return
    if args.assistant_only_loss and not end:
        print("no special token closes an assistant's turn in the chat template: the model may not learn to stop")
    if not args.eos_token and end and end != tokenizer.eos_token:
        print(
            f"eos_token: {end}, which closes an assistant's turn in the chat template, in place of {tokenizer.eos_token}"
        )
        args.eos_token = tokenizer.eos_token = end


def take_training_template(tokenizer, args: "trl.SFTConfig") -> None:
    """Let generation write earlier turns as training does, by TRL's copy of the template, if its own writes them otherwise."""
    if args.assistant_only_loss and (template := training_template(tokenizer)):
        print(
            "chat_template: TRL's copy for training, saved with the model: the tokenizer's own drops <think> blocks of "
            "earlier turns, so that later answers would follow what training has not seen"
        )
        tokenizer.chat_template = template


def stop_at_eos_token(model, tokenizer) -> None:
    """Let answers end at the tokenizer's end of sequence, in place of a base model's: an assistant's list of ends is kept."""
    if not isinstance(model.generation_config.eos_token_id, list):
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def main() -> None:
    script, args, model_args = parse_arguments(ScriptArguments, trl.SFTConfig, trl.ModelConfig, refused=REFUSED)
    run = open_run(script, args, model_args)

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/pretrain.py", revision)
    tokenizer = load_tokenizer(name, revision)
    if args.eos_token:
        check_eos_token(args.eos_token, tokenizer, name)
    tokenizer.eos_token = args.eos_token or tokenizer.eos_token
    if args.chat_template_path:
        tokenizer.chat_template = read_template(args.chat_template_path)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    args.max_length = args.max_length or context_of(config)
    check_context(tokenizer, config, args.max_length, WITHOUT_TEMPLATE)
    take_end_of_turn(tokenizer, args)
    take_training_template(tokenizer, args)
    take_pad_token(tokenizer, args.pad_token, stop_token_ids(None, tokenizer)[:1], needed=False)
    if script.max_new_tokens >= (positions := context_of(config) or math.inf):
        raise InputError(f"max_new_tokens is {script.max_new_tokens}, but the model has {positions} positions")
    if args.packing and not args.max_length:
        raise InputError("max_length: the model's context has no limit; expected a number, the length of packed rows")

    # Dataset
    load = partial(
        load_tokenized,
        tokenizer=tokenizer,
        max_length=args.max_length,
        on_bad=script.on_bad,
        long=script.long,
        columns=script.columns,
        assistant_only=args.assistant_only_loss,
        reasoning=script.reasoning,
    )
    dataset = load(script.conversations, quarantine=f"{args.output_dir}/quarantine.jsonl")
    heldout = (
        load(script.heldout, quarantine=f"{args.output_dir}/quarantine_heldout.jsonl") if script.heldout else None
    )
    if heldout:
        keys = ((prompt_key(last_question(row)) for row in part["messages"]) for part in (dataset, heldout))
        check_disjoint(*keys, script.heldout)
    show_mask(tokenizer, dataset[0])

    # Model
    weights = {**model_kwargs(model_args), "revision": revision, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(name, **weights)
    stop_at_eos_token(model, tokenizer)
    if script.chat_vector:
        add_chat_vector(model, script.chat_vector, model_args)

    # Trainer
    from recipes.trainers.packed_rows import PackedSFTTrainer  # slow to import

    set_seed(args.seed)  # LoRA's matrices are initialised at random
    quiet.packed_apart(args.packing_strategy if args.packing else None, model.config._attn_implementation)
    columns = ["messages", "input_ids", "labels"]  # tokens and labels are there: TRL has nothing to encode or truncate
    trainer = PackedSFTTrainer(
        model,
        args,
        train_dataset=dataset.select_columns(columns),
        eval_dataset=heldout.select_columns(columns) if heldout else None,
        processing_class=tokenizer,
        peft_config=lora_config(model_args, config),
    )
    keep_tied(trainer.model, script.merge_adapter)
    if script.muon_lr and not model_args.use_peft:  # set afterwards: the Trainer refuses it as an argument under FSDP
        trainer.optimizer = MuonWithAdamW(
            trainer.model, script.muon_lr, args.learning_rate, args.weight_decay, script.muon_momentum
        )

    # Train
    seconds = train(trainer, run, rows=dataset)

    # Evaluate
    evaluated = trainer.evaluate() if heldout else {}
    checked = (heldout or dataset).shuffle(seed=args.seed).select(range(min(64, len(heldout or dataset))))
    prompts = [split_last_answer(messages_of(row))[0] for row in checked]
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    answers = generate_answers(model, tokenizer, prompts, script.max_new_tokens, desc="measuring the EOS rate")
    eos_rate = bootstrap_interval([answer["stopped"] for (answer,) in answers])
    print(f"EOS rate {show_interval(eos_rate)} of {len(answers)} answers within {script.max_new_tokens} tokens")

    # Save
    merge_and_save(trainer, tokenizer, merge=script.merge_adapter)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        curves = {"loss": logged(history, "loss")}
        curves["accuracy of the next token"] = logged(history, "mean_token_accuracy")
        save_curves(f"{args.output_dir}/curve.png", curves)
        metrics = {"loss_first": curves["loss"][0][1], "loss_last": curves["loss"][-1][1]}
        metrics["eos_rate"] = eos_rate["value"]
        metrics |= {key: value for key, value in evaluated.items() if key in ("eval_loss", "eval_mean_token_accuracy")}
        share = rows_seen(trainer) / len(trainer.train_dataset)  # of packed rows, where several are in one
        seen = f"{'about ' if args.packing and share < 1 else ''}{round(share * len(dataset)):,} of {len(dataset):,}"
        results = {"seconds": seconds, "conversations": round(share * len(dataset))}
        results |= {"metrics": metrics, "curves": curves}
        write_results(script.results_dir or args.output_dir, "sft", results)
        print(f"fine-tuned on {seen} conversations in {seconds:.0f} s; the model is in {args.output_dir}")
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
