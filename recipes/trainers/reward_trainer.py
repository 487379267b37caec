"""TRL's RewardTrainer on rankings: all pairs of a prompt from one forward pass per answer, each prompt weighing the same."""

import os
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from trl import RewardTrainer

from data_prep.common.errors import InputError
from data_prep.models.loading import carries_state
from data_prep.models.scoring import encode_answers
from data_prep.readers.ranks import pairs
from data_prep.tokens.generation_prompt import check_begins
from recipes.trainers.precision import train_head_in_fp32


@dataclass
class RankingCollator:
    """From rows {"completion_ids": K lists of ids, "ranks": K} to one batch of all their answers.

    Returns {"input_ids", "attention_mask": (answers, length), padded on the right, "pairs": (pairs, 2), the rows of the
    better and the worse answer, "pair_weights": (pairs,), summing to 1}. With `margin_scale` also "margins": (pairs,),
    that many times the difference of the row's "scores" (K); 0 for a row without. With `shared_prompt` the first two
    are those of `shared_prompt_rows`, "position_ids" and "ends" with them.
    """

    pad_token_id: int
    margin_scale: float | None = None
    shared_prompt: bool = False

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids, indices, weights, margins = [], [], [], []
        for row in rows:
            of_prompt = pairs(row["ranks"])
            indices += [(len(ids) + better, len(ids) + worse) for better, worse in of_prompt]
            weights += [1 / len(of_prompt) / len(rows)] * len(of_prompt)
            ids += [torch.tensor(answer) for answer in row["completion_ids"]]
            scores = row.get("scores") or [0.0] * len(row["ranks"])
            margins += [scores[better] - scores[worse] for better, worse in of_prompt]
        batch = {"pairs": torch.tensor(indices), "pair_weights": torch.tensor(weights)}
        if self.shared_prompt:
            batch |= shared_prompt_rows([row["completion_ids"] for row in rows], self.pad_token_id)
        else:
            batch["input_ids"] = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)
            batch["attention_mask"] = pad_sequence([torch.ones_like(answer) for answer in ids], batch_first=True)
        if self.margin_scale is not None:
            batch["margins"] = self.margin_scale * torch.tensor(margins)
        return batch


def length_of_shared(answers: list[list[int]]) -> int:
    """How many ids all answers, prompts included, begin with; a last one is left to each."""
    return min(len(os.path.commonprefix(answers)), min(map(len, answers)) - 1)


def shared_prompt_rows(rankings: list[list[list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A row for every ranking: its prompt once, then its answers one after another, each of which sees the prompt and
    itself alone. The rewards are those of answers in rows of their own.

    Returns {"input_ids", "position_ids": (rankings, L), L that of the longest row, "attention_mask": (rankings, 1, L, L),
    True where a token may look, "ends": (answers, 2), row and column of the last token of each answer}.
    """
    rows, ends = [], []
    for number, answers in enumerate(rankings):
        shared = length_of_shared(answers)
        row = [(token, position, 0) for position, token in enumerate(answers[0][:shared])]
        for part, answer in enumerate(answers, start=1):
            row += [(token, shared + offset, part) for offset, token in enumerate(answer[shared:])]
            ends.append((number, len(row) - 1))
        rows.append(torch.tensor(row))
    padded = pad_sequence(rows, batch_first=True, padding_value=-1)
    tokens, positions, part = padded.unbind(-1)
    causal = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool).tril()
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])  # padding sees padding: no row without any
    return {
        "input_ids": tokens.masked_fill(part < 0, pad_token_id),
        "position_ids": positions.clamp(min=0),
        "attention_mask": (seen & causal)[:, None],
        "ends": torch.tensor(ends),
    }


class RankingRewardTrainer(RewardTrainer):
    """A RewardTrainer whose rows are rankings, {"prompt": messages, "completions": […], "ranks": […]}.

    Every pair of unequal ranks is a comparison and the comparisons of one prompt are averaged before the prompts are:
    as single shuffled pairs they make the model overfit and cost K−1 times the forward passes (InstructGPT,
    arXiv:2203.02155, section 3.5). A pair of TRL's own format is a ranking of two.

    With `margin_scale` the better answer's reward has to be ahead by that many times the difference of the scores that
    the ranks come from (Llama 2, arXiv:2307.09288, equation 2): what was judged far better is pushed further apart.

    With `shared_prompt` a prompt is computed once for all its answers, for the same rewards: about half the tokens where
    three short answers follow a prompt of their length. It needs an attention that takes any mask, and a model that looks
    at nothing else (see `check_shared_prompt`).
    """

    def __init__(self, *args, margin_scale: float | None = None, shared_prompt: bool = False, **kwargs) -> None:
        if margin_scale is not None:
            rows = kwargs["train_dataset"]
            scored = len(rows) - rows["scores"][:].count(None) if "scores" in rows.column_names else 0
            if margin_scale <= 0 or not scored:
                raise InputError(
                    f"margin_scale {margin_scale}: found {scored:,} rankings with scores; expected some, and a number above 0"
                )
            print(
                f"margins from the scores of {scored:,} of {len(rows):,} rankings, times {margin_scale}; none elsewhere"
            )
        collator = RankingCollator(kwargs["processing_class"].pad_token_id, margin_scale, shared_prompt)
        self.shared_prompt = shared_prompt  # read while the datasets are prepared
        super().__init__(*args, data_collator=collator, **kwargs)
        if hasattr(self.model, "peft_config"):
            train_head_in_fp32(self.model)
        attention = self.model.config._attn_implementation
        if shared_prompt and attention not in ("sdpa", "eager"):
            raise InputError(f"shared_prompt needs attn_implementation sdpa or eager; found {attention}")
        if shared_prompt:
            self.check_shared_prompt()

    @torch.no_grad()
    def check_shared_prompt(self) -> None:
        """Raise InputError if answers behind a shared prompt have other rewards than in rows of their own in this model.

        Tried on the ranking with the longest answer: a given mask takes the place of a sliding window, which matters in rows
        that are longer than it. The attention of BLOOM and MPT counts the columns of a row, whatever the positions are.
        Not tried in the parts of ZeRO-3.
        """
        from transformers.integrations import is_deepspeed_zero3_enabled  # slow to import

        if carries_state(self.model.config):
            raise InputError(
                f"shared_prompt: {self.model.config.model_type} models have layers that carry a state from token to token, "
                "from one answer to the next too; set shared_prompt: false"
            )
        if is_deepspeed_zero3_enabled():
            return
        lengths, model = self.train_dataset["longest"][:], self.model.eval()
        row, kind = self.train_dataset[lengths.index(max(lengths))], model.config.model_type
        rewards = []
        for shared in (False, True):
            batch = RankingCollator(self.data_collator.pad_token_id, shared_prompt=shared)([row])
            batch = {name: values.to(model.device) for name, values in batch.items()}
            try:
                rewards.append(self.rewards_of(model, batch).float())
            except ValueError as error:
                said = " ".join(str(error).split())
                raise InputError(
                    f"shared_prompt: {kind} models take no mask but that of padding ({said}); leave it out"
                ) from None
        alone, together = rewards
        close = 1e-3 if model.dtype == torch.float32 else 0.1  # rounding is another in other rows
        if (apart := (alone - together).abs().max().item()) > close * max(1.0, alone.abs().max().item()):
            raise InputError(
                f"shared_prompt: in {kind} models answers behind a shared prompt have other rewards than in rows of their own, "
                f"by up to {apart:.3g} in a ranking of {max(lengths):,} tokens; leave it out"
            )

    def _prepare_dataset(self, dataset: Dataset, processing_class, args, dataset_name: str) -> Dataset:
        """Tokenize; rankings with an answer beyond `max_length` are left out, with a count on the screen."""
        if "completion_ids" in dataset.column_names:
            return dataset

        def tokenize(rows: dict[str, list]) -> dict[str, list]:
            encoded = encode_answers(processing_class, rows["prompt"], rows["completions"])
            check_begins(processing_class, rows["prompt"], rows["completions"], encoded)
            longest = [max(map(len, ids)) for ids in encoded]
            lengths = longest
            if self.shared_prompt:
                shared = list(map(length_of_shared, encoded))
                lengths = [
                    first + sum(len(answer) - first for answer in ids)
                    for first, ids in zip(shared, encoded, strict=True)
                ]
            # "length" is for train_sampling_strategy: group_by_length
            return {"completion_ids": encoded, "longest": longest, "length": lengths}

        tokenized = dataset.map(tokenize, batched=True, desc=f"Tokenizing {dataset_name} dataset")
        if args.max_length is None:
            return tokenized
        short = [length <= args.max_length for length in tokenized["longest"]]
        if left_out := len(short) - sum(short):
            print(
                f"{dataset_name}: {left_out:,} of {len(short):,} rankings hold an answer beyond {args.max_length} tokens "
                "(max_length) and are left out"
            )
        if not any(short):
            raise InputError(f"no ranking fits in max_length {args.max_length}: raise it")
        return tokenized.select([index for index, fits in enumerate(short) if fits])

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["completion_ids", "ranks", "scores", "length"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        rewards = self.rewards_of(model, inputs).float()
        better, worse = rewards[inputs["pairs"]].unbind(1)
        weights = inputs["pair_weights"]
        ahead = better - worse - inputs["margins"] if "margins" in inputs else better - worse
        loss = -(weights * logsigmoid(ahead)).sum()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * (weights * (better + worse) ** 2).sum()
        with torch.no_grad():
            figures = {
                "accuracy": (weights * (better > worse)).sum(),
                "margin": (weights * (better - worse)).sum(),
                "mean_reward": rewards.mean(),
                "min_reward": rewards.min(),
                "max_reward": rewards.max(),
            }
            for name, value in figures.items():
                self._metrics[mode][name].append(self.accelerator.gather_for_metrics(value).mean().item())
        return (loss, {"logits": rewards}) if return_outputs else loss

    def rewards_of(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(answers,) rewards of a batch."""
        if "ends" not in inputs:
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.squeeze(-1)
        # The model gives one reward a row, but its head has computed one a token. Taken within its forward pass, so that
        # what wraps the model (DDP, FSDP) knows of it.
        every: list[torch.Tensor] = []
        owner = self.accelerator.unwrap_model(model)
        head = next(module for name, module in owner.named_modules() if name.split(".")[-1] == "score")
        hook = head.register_forward_hook(lambda module, given, output: every.append(output))
        mask = inputs["attention_mask"]
        if owner.config._attn_implementation == "eager":  # it adds the mask to the scores, whatever it holds
            mask = torch.zeros_like(mask, dtype=owner.dtype).masked_fill(~mask, torch.finfo(owner.dtype).min)
        try:
            model(inputs["input_ids"], position_ids=inputs["position_ids"], attention_mask=mask, use_cache=False)
        finally:
            hook.remove()
        return every[0][tuple(inputs["ends"].T)].squeeze(-1)
