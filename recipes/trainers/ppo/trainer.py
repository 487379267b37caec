"""PPO on transformers.Trainer's loop, with TRL 1.12's arguments.

TRL's `PPOTrainer` (1.12 was its last release) drives a loop of its own that never calls `Trainer.__init__`: precision,
clipping, checkpointing, evaluation, saving and resuming are silently ignored. Here one step of the Trainer is one PPO
update, so all of that is the Trainer's. The class stays TRL's by name and arguments.

The method is that of Ziegler 2019 (arXiv:1909.08593) and Stiennon 2020 (arXiv:2009.01325), details after Huang 2024,
"The N+ implementation details of RLHF with PPO" (arXiv:2403.17031). Shapes below: N answers of a rollout, R tokens of
the longest answer, L tokens of the longest conversation.
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints
from trl.experimental.ppo import PPOTrainer as TRLPPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from data_prep.common.errors import InputError
from data_prep.common.files import read_json, read_jsonl, write_json, write_jsonl
from data_prep.models.reward_functions import call_reward_function
from data_prep.models.scoring import score_answers
from data_prep.tokens.chat_encoder import encode_prompts, encode_text
from recipes.trainers.ppo.config import PPOConfig
from recipes.trainers.ppo.loss import advantages_and_returns, clipped_losses
from recipes.trainers.ppo.policy_and_value import PolicyAndValue, answer_logprobs, groups_by_length
from recipes.trainers.ppo.rollout import Rollout, draw_answers, repetition

FIGURES = ("score", "kl", "rlhf_reward", "length", "eos_rate", "entropy", "repetition")  # of every rollout
SHOWN_ANSWERS = 4  # rows of the table on the screen; completions.jsonl holds all


def with_prompt_ids(dataset: Dataset, tokenizer, room: float, num_proc: int | None = None) -> Dataset:
    """`dataset` with the ids of each `prompt`, text as it stands, messages up to where the assistant's turn begins.

    Control tokens that a prompt spells out are encoded as characters.

    Raises InputError for a prompt without tokens or with more than `room`.
    """

    def encode(rows: dict[str, list]) -> dict[str, list[list[int]]]:
        prompts = rows["prompt"]
        if isinstance(prompts[0], str):  # a column is of one type
            return {"prompt_ids": [encode_text(tokenizer, prompt) for prompt in prompts]}
        return {"prompt_ids": encode_prompts(tokenizer, prompts)}

    encoded = dataset.map(encode, batched=True, num_proc=num_proc, desc="Tokenizing")
    for number, length in enumerate(map(len, encoded["prompt_ids"]), start=1):
        if not 0 < length <= room:
            raise InputError(f"prompt {number} has {length} tokens; expected 1 to {room}, what an answer (response_length) "
                             "leaves of the context: take it out, or lower response_length")  # fmt: skip
    return encoded


def same_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """The collator: prompts are padded where answers are drawn."""
    return {"rows": rows}


class PPOTrainer(TRLPPOTrainer):
    """PPO with the Trainer's own loop, one update per step.

    Args:
        args: see PPOConfig.
        processing_class: the tokenizer of the policy; its pad token must not be the one an answer stops on.
        model, ref_model: policy and reference (None with a LoRA policy: itself with the adapter switched off).
        reward_model: a sequence classifier with one label, or None where there are `reward_funcs`.
        value_model: another one; never the same object.
        train_dataset, eval_dataset: rows with `prompt`, text or messages that end on the user's turn; further columns
            go to the functions.
        reward_funcs: f(prompts, completions, **columns) -> one float per answer, by TRL's convention: for text the
            completions are texts, for messages lists of one assistant message. `args.reward_weights` weighs the sum.
        eval_funcs: functions of that form which are measured in evaluations and never trained on.
        reward_processing_class: the reward model's tokenizer where it is another; the answers are then encoded again.

    The checkpoint of an update holds policy, value model, optimizer, schedule and random states; a run taken up from it
    goes on bit for bit on the same machine.
    """

    # What TRL's class overrides for its own loop is the Trainer's again.
    train, save_model = Trainer.train, Trainer.save_model
    get_train_dataloader, get_eval_dataloader = Trainer.get_train_dataloader, Trainer.get_eval_dataloader

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        reward_model: PreTrainedModel | None,
        value_model: PreTrainedModel,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        reward_funcs: list[Callable] | None = None,
        eval_funcs: list[Callable] | None = None,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if value_model is reward_model:
            raise ValueError("reward_model and value_model are one object: training the value would train the reward")
        self.reward_funcs, self.eval_funcs = list(reward_funcs or []), list(eval_funcs or [])
        for kind, functions in (("reward_funcs", self.reward_funcs), ("eval_funcs", self.eval_funcs)):
            names = [function.__name__ for function in functions]
            if twice := {name for name in names if names.count(name) > 1 or name in (*FIGURES, "reward_model")}:
                raise InputError(
                    f"{kind}: {', '.join(sorted(twice))} is taken: figures are logged by name; rename one"
                )
        sources = (reward_model is not None) + len(self.reward_funcs)
        if not sources:
            raise InputError("nothing to reward answers by: give a reward model, reward_funcs or both")
        self.reward_weights = args.reward_weights or [1.0] * sources
        if len(self.reward_weights) != sources:
            raise InputError(f"reward_weights: {sources} rewards, found {len(self.reward_weights)} weights")
        stop = args.stop_token_id
        self.stop_token_id = processing_class.eos_token_id if stop is None else stop
        if processing_class.pad_token_id in (None, self.stop_token_id):
            raise InputError("the tokenizer pads with what ends an answer: answers could not be told from padding")
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

        if isinstance(eval_dataset, dict):
            raise InputError("eval_dataset: expected one dataset, found several; call evaluate for each")
        readers = [model, value_model] + ([reward_model] if reward_model and not reward_processing_class else [])
        room = (
            min(getattr(each.config, "max_position_embeddings", math.inf) for each in readers) - args.response_length
        )
        model.generation_config.eos_token_id = self.stop_token_id  # saved with every checkpoint
        super(TRLPPOTrainer, self).__init__(  # past TRL's own __init__, which leaves the Trainer's undone
            model=PolicyAndValue(model, value_model),
            args=args,
            data_collator=same_rows,
            train_dataset=with_prompt_ids(train_dataset, processing_class, room, args.dataset_num_proc),
            eval_dataset=with_prompt_ids(eval_dataset, processing_class, room) if eval_dataset is not None else None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.ref_model = ref_model.to(args.device).eval() if ref_model is not None else None
        self.reward_model = reward_model.to(args.device).eval() if reward_model is not None else None
        self.reward_processing_class = reward_processing_class
        self.model_accepts_loss_kwargs = False
        self.room = room
        self.kl_coef = args.kl_coef
        self._figures: list[dict[str, float]] = []  # one per update since the last log

    # One update: roll out, score, estimate advantages, update.

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        step, size = self.state.global_step, self.rollout_size
        first = (step * self.args.world_size + self.args.process_index) * size
        rollout = self.roll_out(inputs["rows"], range(first, first + size))
        self.score(rollout)
        figures = self.estimate_advantages(rollout)
        figures |= self.update(model, rollout)
        self._figures.append(figures)
        tables = self.args.num_sample_generations
        if tables > 0 and step % math.ceil(self.state.max_steps / tables) == 0:
            self.log_completions(rollout)
        if self.args.target_kl is not None:
            # Ziegler 2019, section 2.2: proportional, by at most 2 % an update
            error = max(-0.2, min(0.2, figures["objective/kl"] / self.args.target_kl - 1))
            self.kl_coef *= 1 + 0.1 * error
        return torch.tensor(
            figures["loss/policy"] + self.args.vf_coef * figures["loss/value"], device=self.args.device
        )

    @torch.no_grad()
    def roll_out(self, rows: list[dict], episodes: Sequence[int]) -> Rollout:
        """Draw one answer to each of `rows`; `episodes` number them and seed their draws."""
        tokenizer, device, longest = self.processing_class, self.args.device, self.args.response_length
        policy = self.accelerator.unwrap_model(self.model).policy
        prompts = [row["prompt_ids"] for row in rows]
        generators = (torch.Generator().manual_seed(self.args.seed * 1_000_000_007 + episode) for episode in episodes)
        uniforms = torch.stack([torch.rand(longest, generator=generator) for generator in generators]).to(device)
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
        policy.eval()
        with self.accelerator.autocast():
            answers = draw_answers(
                policy,
                batch,
                uniforms,
                self.args.temperature,
                self.stop_token_id,
                tokenizer.pad_token_id,
                shrink=not self.is_fsdp_enabled,
            )
        policy.train()
        ends = answers == self.stop_token_id
        stopped = ends.any(1)
        lengths = torch.where(stopped, ends.int().argmax(1) + 1, answers.shape[1])
        answers = answers[:, : int(lengths.max())]
        mask = torch.arange(answers.shape[1], device=device) < lengths[:, None]
        prompt_lengths = batch["attention_mask"].sum(1)
        whole = [
            torch.cat([torch.tensor(prompt, device=device), answer[:length]])
            for prompt, answer, length in zip(prompts, answers, lengths.tolist(), strict=True)
        ]
        input_ids = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=tokenizer.pad_token_id)
        positions = (prompt_lengths - 1)[:, None] + torch.arange(answers.shape[1], device=device)
        positions = positions.clamp(max=input_ids.shape[1] - 1)
        return Rollout(rows, input_ids, positions, answers, mask, prompt_lengths + lengths - 1, stopped)

    def texts(self, rollout: Rollout) -> list[str]:
        """The answers as text, without their stop token."""
        kept = [
            answer[: length - stop]
            for answer, length, stop in zip(
                rollout.answers.tolist(), rollout.mask.sum(1).tolist(), rollout.stopped.tolist(), strict=True
            )
        ]
        return self.processing_class.batch_decode(kept, skip_special_tokens=True)

    def call_reward_function(self, function: Callable, rows: list[dict], texts: list[str]) -> torch.Tensor:
        """What a reward function says of answers, (N,)."""
        columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt_ids"}
        return torch.tensor(
            call_reward_function(function, columns.pop("prompt"), texts, columns), device=self.args.device
        )

    @torch.no_grad()
    def score(self, rollout: Rollout) -> None:
        """Fill in log-probabilities under policy and reference, values, and the reward of each answer."""
        model, size = self.accelerator.unwrap_model(self.model), self.args.local_rollout_forward_batch_size
        again = self.reward_processing_class is not None
        groups, parts = groups_by_length(rollout.last + 1, size), []
        with self.accelerator.autocast():
            for rows in groups:
                part = self.inputs_of(rollout, rows)
                logprobs, _, values = model(**part, temperature=self.args.temperature)
                with self.null_ref_context() if self.ref_model is None else nullcontext():
                    ref_logprobs, _ = answer_logprobs(self.ref_model or model.policy, **part,
                                                      temperature=self.args.temperature)  # fmt: skip
                scores = torch.zeros(len(rows), device=values.device)
                if self.reward_model is not None and not again:
                    # Read at the answer's last token: its end of turn, as in the reward model's training.
                    hidden = self.reward_model.base_model(input_ids=part["input_ids"], use_cache=False)
                    last = hidden.last_hidden_state[torch.arange(len(rows)), rollout.last[rows]]
                    scores = self.reward_model.score(last).squeeze(-1).float()
                parts.append((logprobs, values, ref_logprobs, scores))
        back = torch.cat(groups).argsort()
        rollout.logprobs, rollout.values, rollout.ref_logprobs, scores = (
            torch.cat(part)[back] for part in zip(*parts, strict=True)
        )
        texts = self.texts(rollout) if again or self.reward_funcs else []
        if again:
            prompts = [row["prompt"] for row in rollout.rows]
            given = score_answers(
                self.reward_model, self.reward_processing_class, prompts, texts, size, rollout.stopped.tolist()
            )
            scores = torch.tensor(given, device=self.args.device)
        rollout.rewards = {"reward_model": scores} if self.reward_model is not None else {}
        for function in self.reward_funcs:
            rollout.rewards[function.__name__] = self.ask(function, rollout.rows, texts)
        rollout.scores = sum(
            weight * reward for weight, reward in zip(self.reward_weights, rollout.rewards.values(), strict=True)
        )

    def figures_of(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """What a scored rollout looks like, one number per answer, (N,) each."""
        mask = rollout.mask
        kl = ((rollout.logprobs - rollout.ref_logprobs) * mask).sum(1)
        penalty = (self.args.missing_eos_penalty or 0.0) * (~rollout.stopped)
        values = (
            rollout.scores,
            kl,
            rollout.scores - penalty - self.kl_coef * kl,
            mask.sum(1).float(),
            rollout.stopped.float(),
            (-rollout.logprobs * mask).sum(1),
            repetition(rollout.answers, mask),
        )
        return dict(zip(FIGURES, values, strict=True))

    @torch.no_grad()
    def estimate_advantages(self, rollout: Rollout) -> dict[str, float]:
        """Fill in advantages and returns; returns the figures of the rollout, means over all processes."""
        args, mask = self.args, rollout.mask
        log_ratio = rollout.ref_logprobs - rollout.logprobs
        # k1 and k3 of http://joschu.net/blog/kl-approx.html, as a penalty on every token (Ziegler 2019, eq. 2)
        kl = -log_ratio if args.kl_estimator == "k1" else log_ratio.exp() - 1 - log_ratio
        scores = rollout.scores.clone()
        if args.missing_eos_penalty is not None:  # Huang 2024, section 3.2: an answer that was cut is a bad one
            scores[~rollout.stopped] -= args.missing_eos_penalty
        rewards = -self.kl_coef * kl * mask
        rows = torch.arange(len(mask), device=mask.device)
        rewards[rows, mask.sum(1) - 1] += scores
        if args.whiten_rewards:  # scale only: the mean of the rewards carries information (Huang 2024, section 4)
            mean, std = self.moments(rewards, mask)
            rewards = ((rewards - mean) / (std + 1e-8) + mean) * mask
        advantages, rollout.returns = advantages_and_returns(rewards, rollout.values, mask, args.gamma, args.lam)
        # Advantages are whitened over the whole rollout (Huang 2024, section 4), in all processes alike.
        mean, std = self.moments(advantages, mask)
        rollout.advantages = (advantages - mean) / (std + 1e-8) * mask
        figures = {f"objective/{name}": values.mean() for name, values in self.figures_of(rollout).items()}
        if len(rollout.rewards) > 1:
            figures |= {f"rewards/{name}": values.mean() for name, values in rollout.rewards.items()}
        figures = {name: self.accelerator.reduce(value, "mean").item() for name, value in figures.items()}
        # How much of the returns the value model foresees: at 0 the advantages are the bare rewards.
        _, spread = self.moments(rollout.returns, mask)
        _, error = self.moments(rollout.returns - rollout.values, mask)
        explained = 1 - (error / spread.clamp(min=1e-8)).item() ** 2
        return {**figures, "objective/kl_coef": self.kl_coef, "value/explained_variance": explained}

    def update(self, model, rollout: Rollout) -> dict[str, float]:
        """`num_ppo_epochs` × `num_mini_batches` optimizer steps on the clipped objective; returns average figures.

        A step whose gradient is not finite is not taken, in any process, and counted.
        """
        args, size = self.args, len(rollout.mask)
        totals: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(args.seed * 1_000_000_007 + self.state.global_step)
        skipped, norms = 0, []
        for _ in range(args.num_ppo_epochs):
            shuffled = torch.randperm(size, generator=generator).to(rollout.last.device)
            for mini_batch in shuffled.split(size // args.num_mini_batches):
                # Mean over the mini-batch's tokens, whatever the micro batches: their sizes must not change the update.
                tokens = self.accelerator.reduce(rollout.mask[mini_batch].sum().float(), "mean")
                groups = groups_by_length(rollout.last[mini_batch] + 1, self.micro_batch_size)
                # One autocast over all groups: it keeps the weights that it casts to bfloat16 until it ends.
                with self.accelerator.autocast():
                    for number, group in enumerate(groups, start=1):
                        rows, last = mini_batch[group], number == len(groups)
                        longest = int(rollout.last[rows].max()) + 1
                        # torch 2.13 on CPU: up to 128 tokens, flash attention's backward takes up to twice the time of
                        # plain products. Around the backward too, where checkpointed layers run once more.
                        plain = self.args.device.type == "cpu" and longest <= 128
                        with (
                            nullcontext() if last else self.accelerator.no_sync(model),
                            sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
                        ):
                            loss, sums = self.losses(model, rollout, rows, tokens)
                            with torch.autocast(self.args.device.type, enabled=False):
                                self.accelerator.backward(loss)
                        for name, value in sums.items():
                            totals[name] = totals.get(name, 0.0) + value
                # Without a limit it only measures. The norm of gradients that were averaged is the same everywhere.
                norm = self.accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
                if norm is None or torch.isfinite(norm):
                    if self.state.global_step < args.num_value_warmup_updates:
                        for weight in self.accelerator.unwrap_model(model).policy.parameters():
                            weight.grad = None  # else weight decay would move it
                    self.optimizer.step()
                else:
                    skipped += 1
                norms.append(0.0 if norm is None else float(norm))
                # With no gradients left, the Trainer's own step that follows changes nothing.
                self.optimizer.zero_grad(set_to_none=True)
        sums = self.accelerator.reduce(torch.stack(list(totals.values())), "sum")
        averages = dict(zip(totals, (sums / sums[list(totals).index("tokens")]).tolist(), strict=True))
        averages.pop("tokens")
        return {**averages, "policy/grad_norm": sum(norms) / len(norms), "policy/skipped_steps": skipped}

    def losses(self, model, rollout: Rollout, rows: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """The loss of some rows of a rollout as their share of a mean over `tokens`, and sums over their tokens."""
        args, mask = self.args, rollout.mask[rows]
        logprobs, entropy, values = model(**self.inputs_of(rollout, rows), temperature=args.temperature)
        policy_losses, value_losses, ratio, clipped = clipped_losses(
            logprobs, rollout.logprobs[rows], rollout.advantages[rows], values, rollout.values[rows],
            rollout.returns[rows], args.cliprange, args.cliprange_value,
        )  # fmt: skip
        # In the value model's warm-up the policy has no loss.
        trained = float(self.state.global_step >= args.num_value_warmup_updates)
        loss = ((trained * policy_losses + args.vf_coef * value_losses) * mask).sum() / tokens
        with torch.no_grad():
            figures = {
                "loss/policy": policy_losses,
                "loss/value": value_losses,
                "policy/ratio": ratio,
                "policy/approxkl": 0.5 * (logprobs - rollout.logprobs[rows]) ** 2,
                "policy/clipfrac": clipped.float(),
                "policy/entropy": entropy,
                "tokens": torch.ones_like(ratio),
            }
            return loss, {name: (value * mask).sum() for name, value in figures.items()}

    def inputs_of(self, rollout: Rollout, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows of a rollout that a forward pass needs, without the columns that are padding in all of them.

        But for up to seven: few shapes, for the reason `answer_tokens` gives.
        """
        length = min(-(-(int(rollout.last[rows].max()) + 1) // 8) * 8, rollout.input_ids.shape[1])
        return {
            "input_ids": rollout.input_ids[rows, :length],
            "positions": rollout.positions[rows].clamp(max=length - 1),
            "answers": rollout.answers[rows],
            "mask": rollout.mask[rows],
        }

    def moments(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the masked values over all processes."""
        sums = torch.stack([(values * mask).sum(), (values**2 * mask).sum(), mask.sum().float()])
        total, squares, count = self.accelerator.reduce(sums, "sum")
        mean = total / count
        return mean, (squares / count - mean**2).clamp(min=0).sqrt()

    # What the Trainer knows for one model and one loss only.

    def create_optimizer(self, model=None):
        """The Trainer's, with the value model's weights at `value_learning_rate`."""
        rate, given = self.args.value_learning_rate, self.optimizer
        optimizer = super().create_optimizer(model)
        if rate is None or given is not None:
            return optimizer
        own = {id(weight) for weight in self.accelerator.unwrap_model(self.model).value_model.parameters()}
        for group in list(optimizer.param_groups):
            split = [weight for weight in group["params"] if id(weight) in own]
            group["params"] = [weight for weight in group["params"] if id(weight) not in own]
            if split:
                optimizer.add_param_group({**group, "params": split, "lr": rate})
        return optimizer

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Score, KL, length and the other figures of drawn answers to held-out prompts, and what `eval_funcs` say.

        The same random numbers every time: evaluations differ by the policy alone.
        """
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if "prompt_ids" not in dataset.column_names:
            dataset = with_prompt_ids(dataset, self.processing_class, self.room)
        mine = range(self.args.process_index, len(dataset), self.args.world_size)
        sums: dict[str, torch.Tensor] = {}
        names = [function.__name__ for function in self.eval_funcs]
        for start in range(0, max(1, len(mine)), self.args.per_device_eval_batch_size):
            indices = mine[start : start + self.args.per_device_eval_batch_size]
            rows = [dataset[index] for index in indices] or [dataset[0]]  # a process without rows sums with weight 0
            rollout = self.roll_out(rows, [-1 - index for index in indices] or [-1])
            self.score(rollout)
            figures = self.figures_of(rollout)
            texts = self.texts(rollout) if names else []
            figures |= {name: self.ask(function, rows, texts) for name, function in zip(names, self.eval_funcs)}  # noqa: B905
            for name, values in figures.items():
                sums[name] = sums.get(name, 0.0) + values.sum() * bool(len(indices))
        totals = self.accelerator.reduce(torch.stack(list(sums.values())), "sum") / len(dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in zip(sums, totals.tolist(), strict=True)}
        self.log({**metrics})  # which adds the epoch to what it is given
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._figures:
            logs = {
                **logs,
                **{key: sum(row[key] for row in self._figures) / len(self._figures) for key in self._figures[0]},
            }
            logs["loss"] = logs["loss/policy"] + self.args.vf_coef * logs["loss/value"]
            logs["episodes"] = self.state.global_step * self.rollout_size * self.args.world_size
            logs.pop("grad_norm", None)  # the Trainer's, of gradients that are gone; see policy/grad_norm
            self._figures = []
        super(TRLPPOTrainer, self).log(logs, start_time)

    def log_completions(self, rollout: Rollout) -> None:
        """Show some of this process's answers with their scores, and append all of them to `completions.jsonl`."""
        if not self.is_world_process_zero():
            return
        path, step = Path(self.args.output_dir) / "completions.jsonl", self.state.global_step
        earlier = [row for row in read_jsonl(path) if row["step"] < step] if path.exists() else []
        columns = (rollout.rows, self.texts(rollout), rollout.stopped.tolist(), rollout.scores.tolist())
        rows = [
            {"step": step, "prompt": row["prompt"], "completion": text, "stopped": stopped, "score": round(score, 4)}
            for row, text, stopped, score in zip(*columns, strict=True)
        ]
        write_jsonl(path, earlier + rows)
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("prompt", "answer", "score", title=f"update {step}", show_lines=True)
        for row in rows[:SHOWN_ANSWERS]:
            asked = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
            table.add_row(Text(asked), Text(row["completion"]), f"{row['score']:.2f}")
        Console().print(table)

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        budget = self.args.kl_budget
        if budget is not None and metrics["eval_kl"] > budget:
            return False  # a score bought by leaving the reference is not the best (Gao 2023, arXiv:2210.10760)
        return super()._determine_best_metric(metrics, trial)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """The policy with its tokenizer in `output_dir`, the value model in `output_dir/value_model`.

        Written beside and moved, `config.json` last: a folder that holds one is whole.
        """
        if not self.args.should_save:
            return
        output_dir = Path(output_dir or self.args.output_dir)
        partial = output_dir / "partial-model"
        shutil.rmtree(partial, ignore_errors=True)
        wrapper = self.accelerator.unwrap_model(self.model)
        for name, folder in (("policy", partial), ("value_model", partial / "value_model")):
            own = None  # what the Trainer gathered, where weights are in parts on several processes
            if state_dict is not None:
                own = {key[len(name) + 1 :]: value for key, value in state_dict.items() if key.startswith(f"{name}.")}
            getattr(wrapper, name).save_pretrained(folder, state_dict=own)
        self.processing_class.save_pretrained(partial)
        shutil.rmtree(output_dir / "value_model", ignore_errors=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
            os.replace(path, output_dir / path.name)
        partial.rmdir()

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint under another name, moved to its own when it is whole."""
        self.store_flos()
        state, args = self.state, self.args
        final = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        partial = Path(args.output_dir) / f"partial-checkpoint-{state.global_step}"
        if args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial), _internal_call=True)
        if not args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))
        self.accelerator.wait_for_everyone()  # each process has written its random states
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(final)
        if args.should_save:
            write_json(partial / "ppo_state.json", {"kl_coef": self.kl_coef, "figures": self._figures})
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    state.stateful_callbacks[type(callback).__name__] = callback.state()
            state.save_to_json(str(partial / "trainer_state.json"))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            if args.push_to_hub:
                self._push_from_checkpoint(str(final))
            rotate_checkpoints(args.output_dir, args.save_total_limit, state.best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self._load_weights(Path(resume_from_checkpoint))
        saved = read_json(Path(resume_from_checkpoint) / "ppo_state.json")
        self.kl_coef, self._figures = saved["kl_coef"], saved["figures"]

    def _load_best_model(self) -> None:
        self._load_weights(Path(self.state.best_model_checkpoint))

    def _load_weights(self, folder: Path) -> None:
        wrapper = self.accelerator.unwrap_model(self.model)
        for module, path in ((wrapper.policy, folder), (wrapper.value_model, folder / "value_model")):
            if hasattr(module, "peft_config"):
                module.load_adapter(path, adapter_name="default", is_trainable=True)
            else:  # tied weights stand once in the file; a large model is in several
                weights = {}
                for file in path.glob("*.safetensors"):
                    weights |= load_file(file)
                module.load_state_dict(weights, strict=False)
