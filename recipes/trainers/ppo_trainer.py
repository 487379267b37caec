"""PPO on transformers.Trainer's loop, with TRL 1.12's arguments.

TRL's `PPOTrainer` (1.12 was its last release) drives a loop of its own that never calls `Trainer.__init__`: precision,
clipping, checkpointing, evaluation, saving and resuming are silently ignored. Here one step of the Trainer is one PPO
update, so all of that is the Trainer's. The class stays TRL's by name and arguments: `PPOConfig`, `null_ref_context`.

The method is that of Ziegler 2019 (arXiv:1909.08593) and Stiennon 2020 (arXiv:2009.01325), details after Huang 2024,
"The N+ implementation details of RLHF with PPO" (arXiv:2403.17031). Shapes below: N answers of a rollout, R tokens of
the longest answer, L tokens of the longest conversation.
"""

import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.experimental.ppo import PPOConfig
from trl.experimental.ppo import PPOTrainer as TRLPPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from data_prep.files import InputError


@dataclass
class Rollout:
    """What one batch of prompts gave.

    input_ids: (N, L) prompt and answer, padded on the right with `mask_id` 0, which causal attention never looks back at.
    positions: (N, R) where in a row of `input_ids` the token stands that predicts each answer token.
    answers: (N, R) the answer's tokens, end of turn included.
    mask: (N, R) True on the answer's tokens, False after them.
    last: (N,) where the answer's last token stands in `input_ids`.
    stopped: (N,) True where the answer ends on the end of turn.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    stopped: torch.Tensor
    logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None


class PolicyAndValue(nn.Module):
    """Policy and value model under one `forward`, so that one wrapper (DDP, autocast) covers both."""

    def __init__(self, policy: nn.Module, value_model: nn.Module) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.config = policy.config

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        self.policy.gradient_checkpointing_enable(**kwargs)
        self.value_model.gradient_checkpointing_enable(**kwargs)

    def forward(self, input_ids, positions, answers, mask, temperature: float) -> tuple[torch.Tensor, ...]:
        logprobs, entropy = answer_logprobs(self.policy, input_ids, positions, answers, mask, temperature)
        model = self.value_model.get_base_model() if hasattr(self.value_model, "peft_config") else self.value_model
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        values = model.score(hidden[rows, positions]).squeeze(-1).float()
        return logprobs, entropy, values.masked_fill(~mask, 0.0)


def answer_logprobs(
    model, input_ids, positions, answers, mask, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, entropy) of each answer token under `model`, (N, R) each, 0 where `mask` is False.

    The head runs on the answers' positions alone: logits of prompts and padding would be most of the memory.
    """
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    rows = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(positions)
    logits = model.get_output_embeddings()(hidden[rows[mask], positions[mask]]).float() / temperature
    logs = logits.log_softmax(-1)
    chosen = logs.gather(-1, answers[mask][:, None]).squeeze(-1)
    with torch.no_grad():
        spread = -(logs.exp() * logs).sum(-1)
    empty = torch.zeros(mask.shape, device=logs.device)
    return empty.masked_scatter(mask, chosen), empty.masked_scatter(mask, spread)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimates (Schulman 2016, arXiv:1506.02438, eq. 16) and their returns, (N, R) each.

    The value after the last token of an answer is 0: the episode is over, whether it stopped or was cut.
    """
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        following = values[:, step + 1] * mask[:, step + 1] if step + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, step] + gamma * following - values[:, step]
        running = (delta + gamma * lam * running) * mask[:, step]
        advantages[:, step] = running
    return advantages, (advantages + values) * mask


class PromptCollator:
    """Rows of {"input_ids"} as they are: prompts are padded where answers are drawn."""

    def __call__(self, rows: list[dict]) -> dict[str, list[list[int]]]:
        return {"prompts": [row["input_ids"] for row in rows]}


class PPOTrainer(TRLPPOTrainer):
    """PPO with the Trainer's own loop, one update per step.

    Args:
        args: TRL's PPOConfig. `per_device_train_batch_size` × `gradient_accumulation_steps` prompts make a rollout on
            each process; it is gone over `num_ppo_epochs` times in `num_mini_batches` optimizer steps each, in micro
            batches of `per_device_train_batch_size`.
        processing_class: the tokenizer; its end of turn (`eos_token`) ends an answer, its pad token must be another.
        model, ref_model: policy and reference (None with `peft_config`: the policy with its adapter switched off).
        reward_model, value_model: two sequence classifiers with one label, never one and the same object.
        train_dataset, eval_dataset: rows with `prompt`, messages that end on the user's turn.
        muon_lr: see MuonWithAdamW; None: the optimizer that `args.optim` names.
    """

    # What TRL's class overrides for its own loop is the Trainer's again.
    train, save_model, _save_checkpoint = Trainer.train, Trainer.save_model, Trainer._save_checkpoint
    get_train_dataloader, get_eval_dataloader = Trainer.get_train_dataloader, Trainer.get_eval_dataloader

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        reward_model: PreTrainedModel,
        value_model: PreTrainedModel,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
    ) -> None:
        if value_model is reward_model:
            raise ValueError("reward_model and value_model are one object: training the value would train the reward")
        if processing_class.pad_token_id == processing_class.eos_token_id:
            raise InputError("the tokenizer pads with its end of turn: answers could not be told from padding")
        if args.stop_token_id is not None:
            raise InputError("stop_token_id is not supported: answers end on the tokenizer's eos_token")
        self.is_peft_model = hasattr(model, "peft_config")
        if ref_model is None and not self.is_peft_model:
            raise ValueError("ref_model may be None for a LoRA policy only")
        for each in filter(None, (model, ref_model, reward_model, value_model)):
            disable_dropout_in_model(each)  # dropout would make the ratio of new to old probability differ from 1
        self.ref_adapter_name, self.model_adapter_name = args.ref_adapter_name, args.model_adapter_name

        args.world_size = PartialState().num_processes  # PPOConfig declares a field over the property of that name
        # To the Trainer, a rollout is one batch and one update is one step.
        self.micro_batch_size = args.per_device_train_batch_size
        self.rollout_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if self.rollout_size % args.num_mini_batches:
            raise InputError(
                f"a rollout of {self.rollout_size} does not divide into {args.num_mini_batches} mini-batches"
            )
        args.per_device_train_batch_size, args.gradient_accumulation_steps = self.rollout_size, 1
        args.dataloader_drop_last = True  # a ragged last rollout would weigh its answers more
        args.remove_unused_columns = False
        if len(train_dataset) < self.rollout_size * args.world_size:
            raise InputError(
                f"{len(train_dataset)} prompts do not fill one rollout of {self.rollout_size * args.world_size}"
            )
        if args.total_episodes is not None:
            args.max_steps = math.ceil(args.total_episodes / (self.rollout_size * args.world_size))

        tokenize = {"fn_kwargs": {"tokenizer": processing_class}, "remove_columns": train_dataset.column_names}
        super(TRLPPOTrainer, self).__init__(  # past TRL's own __init__, which leaves the Trainer's undone
            model=PolicyAndValue(model, value_model),
            args=args,
            data_collator=PromptCollator(),
            train_dataset=train_dataset.map(encode_prompt, desc="Tokenizing prompts", **tokenize),
            eval_dataset=eval_dataset.map(encode_prompt, **tokenize) if eval_dataset is not None else None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.ref_model = ref_model.to(args.device).eval() if ref_model is not None else None
        self.reward_model = reward_model.to(args.device).eval()
        self.model_accepts_loss_kwargs = False
        self.generation = GenerationConfig(
            max_new_tokens=args.response_length,
            use_cache=True,  # else the policy's generation config decides, and one saved in training says no
            do_sample=True,
            temperature=args.temperature,
            top_k=0,
            eos_token_id=processing_class.eos_token_id,
            pad_token_id=processing_class.pad_token_id,
            suppress_tokens=[processing_class.pad_token_id],  # a drawn pad would read as the end of the answer
        )

    # One update: roll out, score, estimate advantages, update.

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        model.train()
        with torch.random.fork_rng():  # the processes would otherwise draw the same random numbers
            torch.manual_seed(self.args.seed + 1_000_003 * self.state.global_step + self.args.process_index)
            rollout = self.roll_out(inputs["prompts"])
        self.score(model, rollout)
        figures = self.estimate_advantages(rollout)
        losses = self.update(model, rollout)
        self._figures = {**figures, **losses}
        return torch.tensor(losses["loss/policy"] + self.args.vf_coef * losses["loss/value"], device=self.args.device)

    @torch.no_grad()
    def roll_out(self, prompts: list[list[int]]) -> Rollout:
        """Draw one answer per prompt (lists of ids)."""
        tokenizer, device = self.processing_class, self.args.device
        policy = self.accelerator.unwrap_model(self.model).policy
        policy.eval()
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
        with self.accelerator.autocast():
            output = policy.generate(**batch, generation_config=self.generation)
        policy.train()
        answers = output[:, batch["input_ids"].shape[1] :]
        ends = answers == tokenizer.eos_token_id
        stopped = ends.any(1)
        lengths = torch.where(stopped, ends.int().argmax(1) + 1, answers.shape[1])
        answers = answers[:, : int(lengths.max())]
        mask = torch.arange(answers.shape[1], device=device) < lengths[:, None]
        prompt_lengths = batch["attention_mask"].sum(1)
        rows = [
            torch.cat([torch.tensor(prompt, device=device), answer[:length]])
            for prompt, answer, length in zip(prompts, answers, lengths.tolist(), strict=True)
        ]
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
        positions = (prompt_lengths - 1)[:, None] + torch.arange(answers.shape[1], device=device)
        positions = positions.clamp(max=input_ids.shape[1] - 1)
        return Rollout(input_ids, positions, answers, mask, prompt_lengths + lengths - 1, stopped)

    @torch.no_grad()
    def score(self, model, rollout: Rollout) -> None:
        """Fill in log-probabilities under policy and reference, values, and the reward of each answer."""
        parts = []
        for rows in torch.arange(len(rollout.mask)).split(self.args.local_rollout_forward_batch_size):
            part = self.inputs_of(rollout, rows)
            with self.accelerator.autocast():
                logprobs, _, values = model(**part, temperature=self.args.temperature)
                with self.null_ref_context() if self.ref_model is None else nullcontext():
                    reference = self.ref_model or self.accelerator.unwrap_model(self.model).policy
                    ref_logprobs, _ = answer_logprobs(reference, **part, temperature=self.args.temperature)
                # The reward is read at the answer's last token: its end of turn, as in the reward model's training.
                hidden = self.reward_model.base_model(input_ids=part["input_ids"], use_cache=False).last_hidden_state
                last = rollout.last[rows]
                scores = self.reward_model.score(hidden[torch.arange(len(rows), device=last.device), last]).squeeze(-1)
            parts.append((logprobs, values, ref_logprobs, scores.float()))
        rollout.logprobs, rollout.values, rollout.ref_logprobs, rollout.scores = map(
            torch.cat, zip(*parts, strict=True)
        )

    @torch.no_grad()
    def estimate_advantages(self, rollout: Rollout) -> dict[str, float]:
        """Fill in advantages and returns; returns the figures of the rollout."""
        args, mask = self.args, rollout.mask
        log_ratio = rollout.ref_logprobs - rollout.logprobs
        # k1 and k3 of http://joschu.net/blog/kl-approx.html, as a penalty on every token (Ziegler 2019, eq. 2)
        kl = -log_ratio if args.kl_estimator == "k1" else log_ratio.exp() - 1 - log_ratio
        scores = rollout.scores.clone()
        if args.missing_eos_penalty is not None:  # Huang 2024, detail 15: an answer that was cut is a bad one
            scores[~rollout.stopped] -= args.missing_eos_penalty
        rewards = -args.kl_coef * kl * mask
        rows = torch.arange(len(mask), device=mask.device)
        rewards[rows, mask.sum(1) - 1] += scores
        if args.whiten_rewards:  # scale only: the mean of the rewards carries information (Huang 2024, detail 18)
            mean, std = self.moments(rewards, mask)
            rewards = ((rewards - mean) / (std + 1e-8) + mean) * mask
        advantages, rollout.returns = advantages_and_returns(rewards, rollout.values, mask, args.gamma, args.lam)
        mean, std = self.moments(advantages, mask)
        rollout.advantages = (advantages - mean) / (std + 1e-8) * mask
        figures = {
            "objective/score": rollout.scores.mean(),
            "objective/kl": (-log_ratio * mask).sum(1).mean(),
            "objective/length": mask.sum(1).float().mean(),
            "objective/eos_rate": rollout.stopped.float().mean(),
            "objective/entropy": (-rollout.logprobs * mask).sum(1).mean(),
        }
        return {name: self.accelerator.reduce(value, "mean").item() for name, value in figures.items()}

    def update(self, model, rollout: Rollout) -> dict[str, float]:
        """`num_ppo_epochs` × `num_mini_batches` optimizer steps on the clipped objective; returns average figures."""
        args, size = self.args, len(rollout.mask)
        totals: dict[str, float] = {}
        weight_sum = 0
        for _ in range(args.num_ppo_epochs):
            for mini_batch in torch.randperm(size).split(size // args.num_mini_batches):
                # Mean over the mini-batch's tokens, whatever the micro batches: their sizes must not change the update.
                tokens = self.accelerator.reduce(rollout.mask[mini_batch].sum().float(), "mean")
                micro_batches = mini_batch.split(self.micro_batch_size)
                for number, rows in enumerate(micro_batches, start=1):
                    last = number == len(micro_batches)
                    with (
                        nullcontext() if last else self.accelerator.no_sync(model),
                        self.compute_loss_context_manager(),
                    ):
                        loss, figures = self.losses(model, rollout, rows, tokens)
                        self.accelerator.backward(loss)
                    weight = int(rollout.mask[rows].sum())
                    weight_sum += weight
                    for name, value in figures.items():
                        totals[name] = totals.get(name, 0.0) + value.item() * weight
                if args.max_grad_norm:
                    self.accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                self.optimizer.step()
                # With no gradients left, the Trainer's own step that follows changes nothing.
                self.optimizer.zero_grad(set_to_none=True)
        return {name: value / weight_sum for name, value in totals.items()}

    def losses(self, model, rollout: Rollout, rows: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """The loss of some rows of a rollout as their share of a mean over `tokens`, and figures to average by token."""
        args, mask = self.args, rollout.mask[rows]
        logprobs, entropy, values = model(**self.inputs_of(rollout, rows), temperature=args.temperature)
        log_ratio = (logprobs - rollout.logprobs[rows]) * mask
        ratio, advantages = log_ratio.exp(), rollout.advantages[rows]
        clipped = ratio.clamp(1 - args.cliprange, 1 + args.cliprange)
        policy_losses = torch.max(-advantages * ratio, -advantages * clipped)
        old_values, returns = rollout.values[rows], rollout.returns[rows]
        near = old_values + (values - old_values).clamp(-args.cliprange_value, args.cliprange_value)
        value_losses = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)
        loss = ((policy_losses + args.vf_coef * value_losses) * mask).sum() / tokens
        with torch.no_grad():
            figures = {
                "loss/policy": masked_mean(policy_losses, mask),
                "loss/value": masked_mean(value_losses, mask),
                "policy/ratio": masked_mean(ratio, mask),
                "policy/approxkl": masked_mean(0.5 * log_ratio**2, mask),
                "policy/clipfrac": masked_mean((-advantages * clipped > -advantages * ratio).float(), mask),
                "policy/entropy": masked_mean(entropy, mask),
            }
        return loss, figures

    def inputs_of(self, rollout: Rollout, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows of a rollout that a forward pass needs, without the columns that are padding in all of them."""
        length, width = int(rollout.last[rows].max()) + 1, int(rollout.mask[rows].sum(1).max())
        return {
            "input_ids": rollout.input_ids[rows, :length],
            "positions": rollout.positions[rows].clamp(max=length - 1),
            "answers": rollout.answers[rows],
            "mask": rollout.mask[rows] & (torch.arange(rollout.mask.shape[1], device=rollout.mask.device) < width),
        }

    def moments(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the masked values over all processes."""
        sums = torch.stack([(values * mask).sum(), (values**2 * mask).sum(), mask.sum().float()])
        total, squares, count = self.accelerator.reduce(sums, "sum")
        mean = total / count
        return mean, (squares / count - mean**2).clamp(min=0).sqrt()

    # What of the Trainer knows only one model.

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Score, KL, length and rate of stopping of drawn answers to held-out prompts."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        sums: dict[str, float] = {}
        with torch.random.fork_rng():  # evaluating must not change what training draws next
            torch.manual_seed(self.args.seed)
            batches = range(0, len(dataset), self.args.per_device_eval_batch_size)
            for start in batches:
                prompts = dataset[start : start + self.args.per_device_eval_batch_size]["input_ids"]
                rollout = self.roll_out(prompts)
                self.score(self.model, rollout)
                for name, value in self.estimate_advantages(rollout).items():
                    sums[name] = sums.get(name, 0.0) + value * len(prompts)
        metrics = {f"{metric_key_prefix}_{name.split('/')[1]}": value / len(dataset) for name, value in sums.items()}
        self.log({**metrics})  # which adds the epoch to what it is given
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {
                **logs,
                **self._figures,
                "episodes": self.state.global_step * self.rollout_size * self.args.world_size,
            }
            logs.pop("grad_norm", None)  # the Trainer's, of gradients that are gone; clipping happened in `update`
        super(TRLPPOTrainer, self).log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """The policy with its tokenizer in `output_dir`, the value model in `output_dir/value_model`."""
        if not self.args.should_save:
            return
        output_dir = output_dir or self.args.output_dir
        os.makedirs(output_dir, exist_ok=True)
        wrapper = self.accelerator.unwrap_model(self.model)
        wrapper.policy.save_pretrained(output_dir)
        wrapper.value_model.save_pretrained(Path(output_dir) / "value_model")
        self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        from safetensors.torch import load_file

        wrapper = self.accelerator.unwrap_model(self.model)
        for module, folder in (
            (wrapper.policy, Path(resume_from_checkpoint)),
            (wrapper.value_model, Path(resume_from_checkpoint) / "value_model"),
        ):
            if hasattr(module, "peft_config"):
                module.load_adapter(folder, adapter_name="default", is_trainable=True)
            else:
                module.load_state_dict(
                    load_file(folder / "model.safetensors"), strict=False
                )  # tied weights stand once


def encode_prompt(row: dict, tokenizer) -> dict[str, list[int]]:
    """`prompt` as ids that end where the assistant's turn begins."""
    text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
