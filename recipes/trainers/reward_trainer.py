"""TRL's RewardTrainer on rankings: all pairs of a prompt from one forward pass per answer, each prompt weighing the same."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from trl import RewardTrainer

from data_prep.files import InputError
from data_prep.preferences import pairs
from data_prep.scoring import encode_answers


@dataclass
class RankingCollator:
    """From rows {"completion_ids": K lists of ids, "ranks": K} to one batch of all their answers.

    Returns {"input_ids", "attention_mask": (answers, length), padded on the right, "pairs": (pairs, 2), the rows of the
    better and the worse answer, "pair_weights": (pairs,), summing to 1}. With `margin_scale` also "margins": (pairs,),
    that many times the difference of the row's "scores" (K); 0 for a row without.
    """

    pad_token_id: int
    margin_scale: float | None = None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids, indices, weights, margins = [], [], [], []
        for row in rows:
            of_prompt = pairs(row["ranks"])
            indices += [(len(ids) + better, len(ids) + worse) for better, worse in of_prompt]
            weights += [1 / len(of_prompt) / len(rows)] * len(of_prompt)
            ids += [torch.tensor(answer) for answer in row["completion_ids"]]
            scores = row.get("scores") or [0.0] * len(row["ranks"])
            margins += [scores[better] - scores[worse] for better, worse in of_prompt]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(answer) for answer in ids], batch_first=True),
            "pairs": torch.tensor(indices),
            "pair_weights": torch.tensor(weights),
        }
        if self.margin_scale is not None:
            batch["margins"] = self.margin_scale * torch.tensor(margins)
        return batch


class RankingRewardTrainer(RewardTrainer):
    """A RewardTrainer whose rows are rankings, {"prompt": messages, "completions": […], "ranks": […]}.

    Every pair of unequal ranks is a comparison and the comparisons of one prompt are averaged before the prompts are:
    as single shuffled pairs they make the model overfit and cost K−1 times the forward passes (InstructGPT,
    arXiv:2203.02155, section 3.5). A pair of TRL's own format is a ranking of two.

    With `margin_scale` the better answer's reward has to be ahead by that many times the difference of the scores that
    the ranks come from (Llama 2, arXiv:2307.09288, equation 2): what was judged far better is pushed further apart.
    """

    def __init__(self, *args, margin_scale: float | None = None, **kwargs) -> None:
        if margin_scale is not None:
            rows = kwargs["train_dataset"]
            scored = len(rows) - rows["scores"][:].count(None) if "scores" in rows.column_names else 0
            if margin_scale <= 0 or not scored:
                raise InputError(f"margin_scale {margin_scale}: found {scored:,} rankings with scores; expected some, "
                                 "and a number above 0")  # fmt: skip
            print(
                f"margins from the scores of {scored:,} of {len(rows):,} rankings, times {margin_scale}; none elsewhere"
            )
        collator = RankingCollator(kwargs["processing_class"].pad_token_id, margin_scale)
        super().__init__(*args, data_collator=collator, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, processing_class, args, dataset_name: str) -> Dataset:
        """Tokenize; rankings with an answer beyond `max_length` are left out, with a count on the screen."""
        if "completion_ids" in dataset.column_names:
            return dataset

        def tokenize(row: dict) -> dict:
            ids = encode_answers(processing_class, row["prompt"], row["completions"])
            return {
                "completion_ids": ids,
                "length": max(map(len, ids)),
            }  # for train_sampling_strategy: group_by_length

        tokenized = dataset.map(tokenize, desc=f"Tokenizing {dataset_name} dataset")
        if args.max_length is None:
            return tokenized
        short = [length <= args.max_length for length in tokenized["length"]]
        if left_out := len(short) - sum(short):
            print(f"{dataset_name}: {left_out:,} of {len(short):,} rankings hold an answer beyond {args.max_length} tokens "
                  "(max_length) and are left out")  # fmt: skip
        if not any(short):
            raise InputError(f"no ranking fits in max_length {args.max_length}: raise it")
        return tokenized.select([index for index, fits in enumerate(short) if fits])

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["completion_ids", "ranks", "scores", "length"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        rewards = outputs.logits.squeeze(-1).float()
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
        return (loss, {"logits": outputs.logits}) if return_outputs else loss
