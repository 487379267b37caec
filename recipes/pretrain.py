r"""Pretrain a GPT-2-style model from random weights on a mixed corpus.

    accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/pretrain.py \
        --config recipes/configs/quickstart/pretrain.yaml
    torchrun --nproc_per_node 8 recipes/pretrain.py --config recipes/configs/gpt2_small/pretrain.yaml

Needs a tokenizer (data_prep/train_tokenizer.py), token ids (data_prep/mix_corpus.py) and held-out documents to measure
bits per byte on. The shape of the model is in the YAML. With `muon_lr` matrices are trained by Muon and the rest by
AdamW. In the output folder: the model, its tokenizer, `curve.png`, and `samples.jsonl`, what the model writes after
fixed prompts at step 0 and along the way. The same command resumes after an interruption.
"""

from dataclasses import dataclass, field

import torch
import transformers
from transformers import GPT2Config, default_data_collator

from data_prep.common.disjoint import check_disjoint
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, write_results
from data_prep.common.machine import matrix_rate
from data_prep.models.bits_per_byte import heldout_batches
from data_prep.models.loading import load_tokenizer
from data_prep.tokens.corpus_tokens import encoded_documents
from data_prep.tokens.shards import TokenShards
from recipes.trainers.arguments import parse_arguments
from recipes.trainers.batch import tokens_after
from recipes.trainers.blocks import Blocks
from recipes.trainers.callbacks import PretrainingMonitor, check_prompts
from recipes.trainers.compiled import ease_compiling
from recipes.trainers.curves import logged, save_curves
from recipes.trainers.late_peft import import_peft
from recipes.trainers.muon import MuonWithAdamW
from recipes.trainers.resuming import open_run, train
from recipes.trainers.saving import finish, save_model, serve_as_measured

MEASURED = "bits per byte on heldout are measured every eval_steps, and nothing else"
REFUSED = dict.fromkeys(
    (
        "eval_strategy",
        "eval_delay",
        "eval_on_start",
        "per_device_eval_batch_size",
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
    tokenizer: str = field(metadata={"help": "Folder of the tokenizer."})
    tokens: str = field(metadata={"help": "Folder that data_prep/mix_corpus.py wrote."})
    heldout: list[str] | None = field(
        default=None,
        metadata={"help": "Data to evaluate on, which training does not see; default: none (pretraining needs some)."},
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
    n_layer: int = field(default=12, metadata={"help": "Number of blocks."})
    n_head: int = field(default=12, metadata={"help": "Attention heads of a block."})
    n_embd: int = field(default=768, metadata={"help": "Width, a multiple of n_head."})
    n_positions: int = field(default=1024, metadata={"help": "Context, in tokens; also the length of a row."})
    activation_function: str = field(
        default="gelu_pytorch_tanh",  # GPT-2's gelu_new as one kernel instead of eight
        metadata={"help": "Activation of the MLPs, by its name in transformers."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention by its name in transformers; default: sdpa."}
    )
    document_attention: bool = field(
        default=False, metadata={"help": "Keep the documents of a row from attending to each other."}
    )
    sample_prompts: list[str] = field(
        default_factory=lambda: ["The"], metadata={"help": "Texts that the samples continue; []: no samples."}
    )


def main() -> None:
    script, args = parse_arguments(ScriptArguments, transformers.TrainingArguments, refused=REFUSED)
    run = open_run(script, args)
    if not script.heldout:
        raise InputError(
            "heldout: expected files of documents that training does not see, to measure bits per byte on"
        )

    # Tokenizer
    tokenizer = load_tokenizer(existing(script.tokenizer, "python -m data_prep.train_tokenizer"))
    check_prompts(script.sample_prompts, tokenizer, script.n_positions)

    # Dataset
    ids = TokenShards(script.tokens)
    ids.check_tokenizer(script.tokenizer, len(tokenizer))
    dataset = Blocks(ids, script.n_positions, tokenizer.eos_token_id if script.document_attention else None)
    if not len(dataset):
        raise InputError(f"{script.tokens}: its {len(ids):,} tokens do not fill one block of {script.n_positions}")
    if args.process_index == 0:
        documents = encoded_documents(script.heldout, script.tokenizer)
        check_disjoint(ids.documents_like(documents), map(bytes, documents), script.heldout, "document")

    # Model
    transformers.set_seed(args.seed)
    config = GPT2Config(
        n_layer=script.n_layer,
        n_head=script.n_head,
        n_embd=script.n_embd,
        n_positions=script.n_positions,
        activation_function=script.activation_function,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation=script.attn_implementation,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config)
    for block in model.transformer.h:  # each block starts as the identity: faster at a given number of tokens
        torch.nn.init.zeros_(block.attn.c_proj.weight)
        torch.nn.init.zeros_(block.mlp.c_proj.weight)
    model.loss_type = "ForCausalLM"  # none for GPT-2: the Trainer would divide by one token a row too many
    if args.torch_compile:
        ease_compiling(model, masked=script.document_attention)

    # Trainer
    monitor = PretrainingMonitor(
        heldout=heldout_batches(script.heldout, tokenizer, script.n_positions),
        tokenizer=tokenizer,
        prompts=script.sample_prompts,
        tokens=tokens_after(args, len(dataset), script.n_positions),
        rate=matrix_rate(torch.bfloat16 if args.bf16 else torch.float32, device=args.device) * args.world_size,
    )
    import_peft()  # as the Trainer does, which would bring bitsandbytes and the compiler with it
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=dataset,
        data_collator=default_data_collator,  # the tokenizer's adds an attention mask, which lets documents attend again
        processing_class=tokenizer,
        callbacks=[monitor],
    )
    if script.muon_lr:  # set afterwards: the Trainer refuses it as an argument under FSDP
        trainer.optimizer = MuonWithAdamW(
            trainer.model, script.muon_lr, args.learning_rate, args.weight_decay, script.muon_momentum
        )

    # Train
    seconds = train(trainer, run)

    # Evaluate
    history = trainer.state.log_history
    loss, bpb, tokens = logged(history, "loss"), monitor.curve, monitor.tokens(trainer.state.global_step)

    # Save
    serve_as_measured(model, tokenizer)
    save_model(trainer, {"": model})
    if trainer.is_world_process_zero():
        speed = {key: logged(history, key) for key in ("tokens_per_second", "fraction_of_matrix_rate")}
        curves = {"loss": loss, "held-out bits per byte": bpb, "tokens per second": speed["tokens_per_second"]}
        save_curves(f"{args.output_dir}/curve.png", curves)
        metrics = {"loss_first": loss[0][1], "loss_last": loss[-1][1], "bits_per_byte": bpb[-1][1]}
        metrics |= {key: points[-1][1] for key, points in speed.items()}
        results = {"seconds": seconds, "parameters": model.num_parameters(), "tokens": tokens}
        results |= {"processes": args.world_size, "metrics": metrics, "curves": curves}
        write_results(script.results_dir or args.output_dir, "pretrain", results)
        print(f"loss {loss[0][1]:.2f} → {loss[-1][1]:.2f}; held-out bits per byte {bpb[0][1]:.2f} → {bpb[-1][1]:.3f}")
        print(
            f"pretrained {model.num_parameters() / 1e6:.1f} M parameters on {tokens:,} tokens in {seconds:.0f} s; "
            f"the model is in {args.output_dir}"
        )
    finish(trainer)


if __name__ == "__main__":
    run_main(main)
