r"""Continue the pretraining of any causal language model on the text of a domain, without losing what it knows.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/continue_pretraining.py \
        --config recipes/configs/adapt/continue_pretraining.yaml
    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/continue_pretraining.py \
        --config recipes/configs/adapt/continue_pretraining.yaml --use_peft --lora_target_modules all-linear \
        --output_dir runs/lora/base --results_dir runs/lora

Needs a model, a mixture of the domain's text and replay text, text like that of its earlier training, made by
data_prep/mix_corpus.py with the model's own tokenizer, and held-out documents of both kinds. Set `warmup_steps` and a
schedule that decays: the learning rate is warmed up and decayed once more, and some replay keeps the model from
forgetting (Ibrahim 2024, arXiv:2403.08763). Bits per byte on both kinds are measured at step 0 and every `eval_steps`; if
those of general text rise by more than `forgetting_budget`, the alarm `forgetting` says so, and ends the run with
`--stop_on forgetting`. All weights are trained, or with `--use_peft` LoRA adapters, beside quantized weights with
`--load_in_4bit`, and merged before saving unless `--merge_adapter false`; `--lora_modules_to_save` names what is trained in
full beside them, the embeddings (wte, embed_tokens) say. The same command resumes after an interruption.
"""

from dataclasses import dataclass, field

import transformers
import trl
from accelerate.utils import set_seed
from transformers import AutoConfig, AutoModelForCausalLM, default_data_collator

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_results
from data_prep.models.bits_per_byte import heldout_batches
from data_prep.models.loading import check_length, checkpoint_or_hub_id, load_tokenizer, tokenizer_folder
from data_prep.tokens.corpus_tokens import encoded_documents
from data_prep.tokens.shards import TokenShards
from recipes.trainers.adapter import add_adapter
from recipes.trainers.alarms import show_alarms
from recipes.trainers.arguments import model_kwargs, parse_arguments
from recipes.trainers.batch import tokens_after
from recipes.trainers.blocks import Blocks, check_documents_apart, end_of_documents
from recipes.trainers.curves import logged, save_curves
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.resuming import open_run, train
from recipes.trainers.saving import finish, merge_and_save
from recipes.trainers.sources import DOMAIN, GENERAL, SourceMonitor, logged_as

MEASURED = "bits per byte on heldout and heldout_general are measured every eval_steps, and nothing else"
REFUSED = dict.fromkeys(
    (
        "eval_strategy",
        "eval_delay",
        "eval_on_start",
        "eval_accumulation_steps",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "batch_eval_metrics",
        "include_for_metrics",
        "prediction_loss_only",
        "bf16_full_eval",
        "fp16_full_eval",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
    ),
    MEASURED,
)


@dataclass
class ScriptArguments:
    tokens: str = field(metadata={"help": "Folder that data_prep/mix_corpus.py wrote."})
    heldout: list[str] | None = field(
        default=None,
        metadata={"help": "Data to evaluate on, which training does not see; default: none (pretraining needs some)."},
    )
    heldout_general: list[str] | None = field(
        default=None,
        metadata={
            "help": "The same for text that is not of the domain, to measure forgetting on; default: none (it is needed)."
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
    max_length: int = field(default=1024, metadata={"help": "Length of a row, in tokens."})
    document_attention: bool = field(
        default=False, metadata={"help": "Keep the documents of a row from attending to each other."}
    )
    merge_adapter: bool = field(
        default=True, metadata={"help": "Save LoRA merged into the model; false: the adapter alone."}
    )
    forgetting_budget: float = field(
        default=0.03, metadata={"help": "Share by which bits per byte on heldout_general may rise without an alarm."}
    )
    stop_on: list[str] | None = field(
        default=None,
        metadata={"help": "Alarms that stop the run, see recipes/trainers/alarms.py; default: none."},
    )


def main() -> None:
    script, args, model_args = parse_arguments(
        ScriptArguments, transformers.TrainingArguments, trl.ModelConfig, refused=REFUSED
    )
    run = open_run(script, args, model_args)
    monitor = SourceMonitor(script.forgetting_budget, script.stop_on or [])
    heldout = {DOMAIN: script.heldout, GENERAL: script.heldout_general}
    if not all(heldout.values()):
        name = "heldout_general" if script.heldout else "heldout"
        kind = "general text" if script.heldout else "the domain"
        raise InputError(
            f"{name}: expected documents of {kind} that training does not see, to measure bits per byte on"
        )

    # Tokenizer
    revision = model_args.model_revision
    name = checkpoint_or_hub_id(model_args.model_name_or_path, "recipes/pretrain.py", revision)
    tokenizer = load_tokenizer(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    check_length(tokenizer, config, script.max_length)

    # Dataset
    ids, folder = TokenShards(script.tokens), tokenizer_folder(name, revision)
    ids.check_tokenizer(folder, len(tokenizer))
    if len(ids) < script.max_length:
        raise InputError(f"{script.tokens}: its {len(ids):,} tokens do not fill one block of {script.max_length}")
    end = end_of_documents(ids, tokenizer, name)
    dataset = Blocks(ids, script.max_length, end if script.document_attention else None)
    if args.process_index == 0:
        for files in heldout.values():
            documents = encoded_documents(files, folder)
            check_disjoint(ids.documents_like(documents), map(bytes, documents), files, "document")

    # Model
    weights = {**model_kwargs(model_args), "revision": revision, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(name, **weights)
    model.config.use_cache = False  # with a cache packed documents would see each other
    model.loss_type = "ForCausalLM"  # none for GPT-2: the Trainer would divide by one token a row too many
    if script.document_attention:
        check_documents_apart(model, end)

    # Trainer
    set_seed(args.seed)  # LoRA's matrices are initialised at random
    model = add_adapter(model, model_args, args, script.merge_adapter)
    monitor.tokens, rows = tokens_after(args, len(dataset), script.max_length), args.per_device_eval_batch_size
    for source, files in heldout.items():
        monitor.heldout[source] = heldout_batches(files, tokenizer, script.max_length, rows)
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=dataset,
        data_collator=default_data_collator,  # the tokenizer's adds an attention mask, which lets documents attend again
        processing_class=tokenizer,
        callbacks=[monitor],
    )
    if script.muon_lr and not model_args.use_peft:  # set afterwards: the Trainer refuses it as an argument under FSDP
        trainer.optimizer = MuonWithAdamW(
            trainer.model, script.muon_lr, args.learning_rate, args.weight_decay, script.muon_momentum
        )

    # Train
    seconds = train(trainer, run)

    # Evaluate
    history = trainer.state.log_history
    loss, tokens = logged(history, "loss"), monitor.tokens(trainer.state.global_step)
    bits = {source: logged(history, logged_as(source)) for source in heldout}

    # Save
    merge_and_save(trainer, tokenizer, merge=script.merge_adapter)
    if trainer.is_world_process_zero():
        alarms = show_alarms(history)
        curves = {"loss": loss, **{f"bits per byte, {source}": points for source, points in bits.items()}}
        curves["tokens per second"] = logged(history, "tokens_per_second")
        save_curves(f"{args.output_dir}/curve.png", curves)
        metrics = {"loss_first": loss[0][1], "loss_last": loss[-1][1]}
        change = {source: {"before": points[0][1], "after": points[-1][1]} for source, points in bits.items()}
        results = {"seconds": seconds, "tokens": tokens, "processes": args.world_size, "metrics": metrics}
        results |= {"bits_per_byte": change, "alarms": alarms, "mixture": ids.index.get("sources"), "curves": curves}
        write_results(script.results_dir or args.output_dir, "continue_pretraining", results)
        for source, each in change.items():
            share = each["after"] / each["before"] - 1
            print(f"bits per byte, {source}: {each['before']:.3f} → {each['after']:.3f} ({share:+.1%})")
        print(f"continued on {tokens:,} tokens in {seconds:.0f} s; the model is in {args.output_dir}")
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
