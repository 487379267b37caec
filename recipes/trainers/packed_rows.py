"""SFT on packed rows, for attention that is computed on whole rows."""

import torch
from trl import SFTTrainer
from trl.trainer import sft_trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from recipes.trainers.blocks import check_documents_apart
from recipes.trainers.sft_loss import chunked_loss, scales_its_logits


class PackedRows(DataCollatorForLanguageModeling):
    """A batch of packed rows, in which positions that start again at 0 keep conversations from attending to each other.

    Padding is a row of conversations of one token each, which nothing is learned from.
    """

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().torch_call(examples)
        del batch["attention_mask"]  # given one, transformers would not look at the positions
        batch["labels"][batch["position_ids"] == 0] = -100  # not predicted from the conversation before
        return batch


def number_of_tokens(position_ids: torch.Tensor) -> torch.Tensor:
    """The tokens of a batch of `PackedRows` without padding, whose positions are all 0 up to the end of their row."""
    return (position_ids.flip(-1).cumsum(-1) > 0).sum()


class PackedSFTTrainer(SFTTrainer):
    """TRL's trainer, whose packed rows stay rows under sdpa and eager.

    TRL joins the rows of a batch to one. Flash attention's kernels leave out what the conversations in it do not attend to;
    sdpa and eager compute all of it, which grows with the square of the row's length, and mask most. Its loss over chunks is
    that of sft_loss.py, which is faster; a model whose logits TRL's would not be (Granite, Falcon-H1) gets the plain loss.

    `args.assistant_only_loss` is for what made the rows: they have labels, and TRL refuses templates without marks that it
    does not know.

    Raises InputError for rows of several conversations in a model that does not keep them apart by their positions, as
    BLOOM and OPT, or has layers that carry a state over them, as Qwen3.5, LFM2 and Falcon-H1.
    """

    def __init__(self, model, args, **kwargs) -> None:
        if args.padding_free or (args.packing and args.packing_strategy != "wrapped"):
            name = "packing" if args.packing else "padding_free"
            check_documents_apart(model, kwargs["processing_class"].eos_token_id, name, "conversations")
        if args.loss_type == "chunked_nll" and scales_its_logits(model):
            args.loss_type = "nll"
            print(
                f"loss_type: nll, in place of chunked_nll, which does not know how {type(model).__name__} scales its logits"
            )
        # The model's forward, as TRL sets it, calls it by this name.
        sft_trainer._chunked_cross_entropy_loss = chunked_loss
        assistant_only_loss, args.assistant_only_loss = args.assistant_only_loss, False
        template = kwargs["processing_class"].chat_template  # of the rows: TRL reads chat_template_path once more
        super().__init__(model, args, **kwargs)
        self.args.assistant_only_loss, self.processing_class.chat_template = assistant_only_loss, template
        attention = self.model.config._attn_implementation
        self.in_rows = self.args.packing and self.padding_free and attention in ("sdpa", "eager")
        if self.in_rows:
            self.data_collator = PackedRows(
                pad_token_id=self.data_collator.pad_token_id,
                pad_to_multiple_of=self.args.pad_to_multiple_of,
                return_position_ids=True,
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        position_ids = inputs["position_ids"] if self.in_rows else None
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.in_rows and self.model.training:
            # TRL has counted the columns of the batch, as if it were one row.
            missing = number_of_tokens(position_ids) - position_ids.size(1)
            self._total_train_tokens += self.accelerator.gather_for_metrics(missing).sum().item()
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss
