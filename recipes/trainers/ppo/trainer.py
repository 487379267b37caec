"""PPO on transformers.Trainer's loop, with TRL 1.12's arguments.

One step of the Trainer is one PPO update, so precision, clipping, evaluation, logging, saving and resuming are the
Trainer's own. TRL's `PPOTrainer` (1.12 was its last release) runs a loop of its own that silently ignores all of them.

The method is that of Ziegler 2019 (arXiv:1909.08593) and Stiennon 2020 (arXiv:2009.01325), details after Huang 2024,
"The N+ implementation details of RLHF with PPO" (arXiv:2403.17031). Shapes: N answers of a rollout, R tokens of the
longest answer, L tokens of the longest conversation (see `Rollout`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from data_prep.common.errors import InputError
from data_prep.common.files import read_json, write_json
from data_prep.models.generation import sums_in
from data_prep.models.reward_functions import call_reward_function
from data_prep.models.scoring import score_answers
from recipes.trainers.best_model import check_metric
from recipes.trainers.checkpoints import load_weights
from recipes.trainers.dropout import disable_dropout
from recipes.trainers.ppo.averaging import MovingAverage
from recipes.trainers.ppo.completions import log_completions
from recipes.trainers.ppo.config import PPOConfig
from recipes.trainers.ppo.loss import advantages_and_returns, clipped_losses
from recipes.trainers.ppo.policy_and_value import PolicyAndValue, answer_logprobs, attention_kernel, groups_by_length
from recipes.trainers.ppo.prepare import (
    check_names,
    reward_weights,
    same_rows,
    set_rollouts_as_batches,
    shortest_context,
    stop_tokens_of,
    value_warmup_updates,
    with_prompt_ids,
)
from recipes.trainers.ppo.rollout import METRICS, Rollout, answer_metrics, rollout_of, sample_answers
from recipes.trainers.precision import train_head_in_fp32
from recipes.trainers.saving import stop_at

AVERAGE = "average.safetensors"  # in a checkpoint, with ema_decay
REWARD_SAMPLE = 256  # answers from which normalize_rewards takes mean and spread


class PPOTrainer(Trainer):
    """PPO with the Trainer's own loop, one update per step.

    Args:
        args: see PPOConfig. The batch size and the number of steps in it are set to those of rollouts.
        processing_class: the policy's tokenizer; its pad token must differ from what ends an answer.
        model, ref_model: policy and reference. `ref_model` may be None for a LoRA policy: the reference is then the
            policy with its adapter switched off, or with the adapter `args.ref_adapter_name` instead.
        reward_model: a sequence classifier with one label; None if there are `reward_funcs`.
        value_model: another sequence classifier with one label, never the same object.
        train_dataset, eval_dataset: rows with `prompt`, text or messages that end on the user's turn; further columns
            are passed to the functions.
        reward_funcs: f(prompts, completions, **columns) -> one float per answer, by TRL's convention: for text prompts
            completions are texts, for messages lists of one assistant message. `args.reward_weights` weighs the sum.
        eval_funcs: functions of the same form, measured in evaluations and never trained on.
        reward_processing_class: the reward model's tokenizer if it differs from the policy's; answers are then encoded
            again, as text.

    A checkpoint holds policy, value model, optimizer, schedule and random states of an update; a run resumed from it
    on the same machine gives the same bits as one that was never interrupted. With `args.ema_decay` evaluations are of the
    average of the policy's weights, a checkpoint has it beside the update's own, and after training the policy is it.

    Raises InputError for arguments, functions and prompts that do not fit together, ValueError for models that do not.
    """

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
        if ref_model is None and not hasattr(model, "peft_config"):
            raise ValueError("ref_model may be None for a LoRA policy only")
        if isinstance(eval_dataset, dict):
            raise InputError("eval_dataset: expected one dataset, found several; call evaluate for each")
        if hasattr(value_model, "peft_config"):
            train_head_in_fp32(value_model)
        self.reward_funcs, self.eval_funcs = list(reward_funcs or []), list(eval_funcs or [])
        check_names("reward_funcs", self.reward_funcs)
        check_names("eval_funcs", self.eval_funcs)
        check_metric(args, [f"eval_{name}" for name in (*METRICS, *(each.__name__ for each in self.eval_funcs))])
        self.reward_weights = reward_weights(args, (reward_model is not None) + len(self.reward_funcs))
        self.stop_token_ids = stop_tokens_of(args, model, processing_class)
        self.micro_batch_size = args.per_device_train_batch_size
        self.rollout_size = set_rollouts_as_batches(args, len(train_dataset))
        self.num_value_warmup_updates = value_warmup_updates(args, len(train_dataset), self.rollout_size)
        encoded_for = [model, value_model]
        if reward_model is not None and reward_processing_class is None:
            encoded_for.append(reward_model)
        self.max_prompt_length = shortest_context(encoded_for) - args.response_length
        for each in filter(None, (model, ref_model, reward_model, value_model)):
            disable_dropout(each)  # dropout would make the ratio of new to old probability differ from 1
        stop_at(model, self.stop_token_ids)

        train_dataset = with_prompt_ids(train_dataset, processing_class, self.max_prompt_length, args.dataset_num_proc)
        if eval_dataset is not None:
            eval_dataset = with_prompt_ids(eval_dataset, processing_class, self.max_prompt_length)
        super().__init__(
            model=PolicyAndValue(model, value_model),
            args=args,
            data_collator=same_rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.ref_model = ref_model.to(args.device).eval() if ref_model is not None else None
        self.reward_model = reward_model.to(args.device).eval() if reward_model is not None else None
        self.reward_processing_class = reward_processing_class
        self.model_accepts_loss_kwargs = False
        self.average = None if args.ema_decay is None else MovingAverage(model, args.ema_decay)
        self.kl_coef = args.kl_coef
        self.reward_moments = None if args.normalize_rewards else (0.0, 1.0)  # mean and standard deviation
        self._metrics: list[dict[str, float]] = []  # one per update since the last log

    def train(self, *arguments, **named):
        output = super().train(*arguments, **named)
        if self.average is not None:
            self.average.put_into_policy()
        return output

    # One update: roll out, score, estimate advantages, update.

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.reward_moments is None:
            self.measure_rewards()
        step, size = self.state.global_step, self.rollout_size
        first = (step * self.args.world_size + self.args.process_index) * size
        rollout = self.roll_out(inputs["rows"], range(first, first + size))
        self.score(rollout)
        metrics = self.estimate_advantages(rollout)
        metrics |= self.update(model, rollout)
        if self.average is not None:
            self.average.update()
        self._metrics.append(metrics)
        tables = self.args.num_sample_generations
        if tables > 0 and step % math.ceil(self.state.max_steps / tables) == 0 and self.is_world_process_zero():
            path = Path(self.args.output_dir) / "completions.jsonl"
            log_completions(path, step, rollout.texts(self.processing_class), rollout)
        if self.args.target_kl is not None:
            # Ziegler 2019, section 2.2: proportional, by at most 2 % an update
            error = max(-0.2, min(0.2, metrics["objective/kl"] / self.args.target_kl - 1))
            self.kl_coef *= 1 + 0.1 * error
        loss = metrics["loss/policy"] + self.args.vf_coef * metrics["loss/value"]
        return torch.tensor(loss, device=self.args.device)

    @torch.no_grad()
    def roll_out(self, rows: list[dict], episodes: Sequence[int]) -> Rollout:
        """Sample one answer to each of `rows`; `episodes`, a number for each, seed the samples."""
        args, tokenizer = self.args, self.processing_class
        policy = self.accelerator.unwrap_model(self.model).policy
        generators = (torch.Generator().manual_seed(args.seed * 1_000_000_007 + episode) for episode in episodes)
        uniforms = torch.stack([torch.rand(args.response_length, generator=generator) for generator in generators])
        prompts = {"input_ids": [row["prompt_ids"] for row in rows]}
        batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(args.device)
        policy.eval()
        with self.accelerator.autocast():
            answers = sample_answers(
                policy,
                batch,
                uniforms.to(**sums_in(args.device)),
                args.temperature,
                self.stop_token_ids,
                tokenizer.pad_token_id,
            )
        policy.train()
        return rollout_of(rows, answers, self.stop_token_ids, tokenizer.pad_token_id)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> None:
        """Set log-probabilities under policy and reference, values, rewards and scores of `rollout`."""
        model, size = self.accelerator.unwrap_model(self.model), self.args.local_rollout_forward_batch_size
        temperature, encode_again = self.args.temperature, self.reward_processing_class is not None
        groups, parts = groups_by_length(rollout.last + 1, size), []
        with self.accelerator.autocast():
            for rows in groups:
                inputs = rollout.inputs(rows)
                logprobs, _, values = model(**inputs, temperature=temperature)
                with nullcontext(self.ref_model) if self.ref_model is not None else self.policy_as_reference() as ref:
                    ref_logprobs, _ = answer_logprobs(ref, **inputs, temperature=temperature)
                scores = torch.zeros(len(rows), device=values.device)
                if self.reward_model is not None and not encode_again:
                    # Read at the answer's last token: its end of turn, as in the reward model's training.
                    hidden = self.reward_model.base_model(input_ids=inputs["input_ids"], use_cache=False)
                    last = hidden.last_hidden_state[torch.arange(len(rows)), rollout.last[rows]]
                    scores = self.reward_model.score(last).squeeze(-1).float()
                parts.append((logprobs, values, ref_logprobs, scores))
        back = torch.cat(groups).argsort()
        rollout.logprobs, rollout.values, rollout.ref_logprobs, scores = (
            torch.cat(part)[back] for part in zip(*parts, strict=True)
        )
        texts = rollout.texts(self.processing_class) if encode_again or self.reward_funcs else []
        if encode_again:
            prompts = [row["prompt"] for row in rollout.rows]
            found = score_answers(
                self.reward_model, self.reward_processing_class, prompts, texts, size, rollout.stopped.tolist()
            )
            scores = torch.tensor(found, device=self.args.device)
        rollout.rewards = {"reward_model": scores} if self.reward_model is not None else {}
        for function in self.reward_funcs:
            rollout.rewards[function.__name__] = self.rewards_by(function, rollout.rows, texts)
        rollout.scores = sum(
            weight * reward for weight, reward in zip(self.reward_weights, rollout.rewards.values(), strict=True)
        )

    @contextmanager
    def policy_as_reference(self):
        """The LoRA policy as its own reference: without its adapter, or with `ref_adapter_name` in its place."""
        policy, args = self.accelerator.unwrap_model(self.model).policy, self.args
        if not args.ref_adapter_name:
            with policy.disable_adapter():
                yield policy
        else:
            policy.set_adapter(args.ref_adapter_name)
            yield policy
            policy.set_adapter(args.model_adapter_name or "default")

    def rewards_by(self, function: Callable, rows: list[dict], texts: list[str]) -> torch.Tensor:
        """(N,) rewards that `function` gives the answers `texts` to the prompts of `rows`."""
        columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt_ids"}
        rewards = call_reward_function(function, columns.pop("prompt"), texts, columns)
        return torch.tensor(rewards, device=self.args.device)

    @torch.no_grad()
    def measure_rewards(self) -> None:
        """Set the moments that `normalize_rewards` asks for: those of the scores of the policy's own answers to at most
        `REWARD_SAMPLE` prompts, before it is trained."""
        prompts = self.train_dataset.shuffle(seed=self.args.seed)
        prompts = prompts.select(range(min(REWARD_SAMPLE, len(prompts))))
        parts = [(rollout.scores, weight) for _, rollout, weight in self.answers_to(prompts)]
        scores, weights = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        mean, std = (moment.item() for moment in self.moments(scores, weights))
        if std < 1e-6:
            raise InputError(
                f"normalize_rewards: the policy's answers to {len(prompts):,} prompts all get a reward of {mean:.3g}, which "
                "has no spread to divide by: give a reward that tells answers apart, or set normalize_rewards: false"
            )
        self.reward_moments = mean, std
        if self.is_world_process_zero():
            print(
                f"rewards of {len(prompts):,} answers before training: {mean:.3g} ± {std:.3g}; they are normalized by it"
            )

    def rewards_of(self, rollout: Rollout) -> torch.Tensor:
        """(N,) what the answers of a scored `rollout` are rewarded with, before the KL penalty."""
        mean, std = self.reward_moments
        # A truncated answer is a bad one (Huang 2024, section 3.2).
        return (rollout.scores - mean) / std - (self.args.missing_eos_penalty or 0.0) * ~rollout.stopped

    def metrics_of(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """`answer_metrics` at the current KL coefficient, (N,) each."""
        return answer_metrics(rollout, self.rewards_of(rollout), self.kl_coef)

    @torch.no_grad()
    def estimate_advantages(self, rollout: Rollout) -> dict[str, float]:
        """Set advantages and returns of a scored `rollout`; returns its metrics, means over all processes."""
        args, mask = self.args, rollout.mask
        log_ratio = rollout.ref_logprobs - rollout.logprobs
        # k1 and k3 of http://joschu.net/blog/kl-approx.html, as a penalty on every token (Ziegler 2019, eq. 2)
        kl = -log_ratio if args.kl_estimator == "k1" else log_ratio.exp() - 1 - log_ratio
        rewards = -self.kl_coef * kl * mask
        rows = torch.arange(len(mask), device=mask.device)
        rewards[rows, mask.sum(1) - 1] += self.rewards_of(rollout)
        if args.whiten_rewards:  # scale only: the mean of the rewards carries information (Huang 2024, section 4)
            mean, std = self.moments(rewards, mask)
            rewards = ((rewards - mean) / (std + 1e-8) + mean) * mask
        advantages, rollout.returns = advantages_and_returns(rewards, rollout.values, mask, args.gamma, args.lam)
        # Advantages are whitened over the whole rollout (Huang 2024, section 4), in all processes alike.
        mean, std = self.moments(advantages, mask)
        rollout.advantages = (advantages - mean) / (std + 1e-8) * mask
        metrics = {f"objective/{name}": values.mean() for name, values in self.metrics_of(rollout).items()}
        if len(rollout.rewards) > 1:
            metrics |= {f"rewards/{name}": values.mean() for name, values in rollout.rewards.items()}
        metrics = {name: self.accelerator.reduce(value, "mean").item() for name, value in metrics.items()}
        metrics["objective/score_std"] = self.accelerator.gather(rollout.scores).std(correction=0).item()
        # The share of the returns' variance that the values predict: at 0 the advantages are the bare rewards.
        _, spread = self.moments(rollout.returns, mask)
        _, error = self.moments(rollout.returns - rollout.values, mask)
        explained = 1 - (error / spread.clamp(min=1e-8)).item() ** 2
        return {**metrics, "objective/kl_coef": self.kl_coef, "value/explained_variance": explained}

    def update(self, model, rollout: Rollout) -> dict[str, float]:
        """`num_ppo_epochs` × `num_mini_batches` optimizer steps on the clipped objective; returns mean metrics."""
        args, size = self.args, len(rollout.mask)
        totals: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(args.seed * 1_000_000_007 + self.state.global_step)
        norms, skipped = [], 0
        for _ in range(args.num_ppo_epochs):
            shuffled = torch.randperm(size, generator=generator).to(rollout.last.device)
            for mini_batch in shuffled.split(size // args.num_mini_batches):
                # Mean over the mini-batch's tokens, so that the sizes of micro-batches do not change the update.
                tokens = self.accelerator.reduce(rollout.mask[mini_batch].sum().float(), "mean")
                groups = groups_by_length(rollout.last[mini_batch] + 1, self.micro_batch_size)
                # One autocast over all groups: it caches the weights that it casts to bfloat16 until it ends.
                with self.accelerator.autocast():
                    for number, group in enumerate(groups, start=1):
                        rows, last = mini_batch[group], number == len(groups)
                        longest = int(rollout.last[rows].max()) + 1
                        sync = nullcontext() if last else self.accelerator.no_sync(model)
                        with sync, attention_kernel(args.device, longest):
                            loss, sums = self.losses(model, rollout, rows, tokens)
                            with torch.autocast(args.device.type, enabled=False):
                                self.accelerator.backward(loss)
                        for name, value in sums.items():
                            totals[name] = totals.get(name, 0.0) + value
                norm, taken = self.take_step(model)
                norms.append(norm)
                skipped += not taken
        sums = self.accelerator.reduce(torch.stack(list(totals.values())), "sum")
        means = dict(zip(totals, (sums / sums[list(totals).index("tokens")]).tolist(), strict=True))
        means.pop("tokens")
        return {**means, "policy/grad_norm": sum(norms) / len(norms), "policy/skipped_steps": skipped}

    def take_step(self, model) -> tuple[float, bool]:
        """(gradient norm, whether a step was taken): all processes skip a step whose gradient is not finite."""
        # Without a limit it only measures. The norm of gradients that were averaged is the same everywhere.
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm or math.inf)
        finite = norm is None or bool(torch.isfinite(norm))
        if finite:
            if self.trains_value_only:
                for weight in self.accelerator.unwrap_model(model).policy.parameters():
                    weight.grad = None  # with a gradient of 0, weight decay would still move it
            self.optimizer.step()
        # With no gradients left, the Trainer's own step that follows changes nothing.
        self.optimizer.zero_grad(set_to_none=True)
        return 0.0 if norm is None else float(norm), finite

    @property
    def trains_value_only(self) -> bool:
        """Whether this update is one of the value model's warm-up."""
        return self.state.global_step < self.num_value_warmup_updates

    def losses(self, model, rollout: Rollout, rows: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """The loss of some rows of a rollout as their share of a mean over `tokens`, and sums over their tokens."""
        args, mask, old_logprobs = self.args, rollout.mask[rows], rollout.logprobs[rows]
        logprobs, entropy, values = model(**rollout.inputs(rows), temperature=args.temperature)
        policy_losses, value_losses, ratio, clipped = clipped_losses(
            logprobs,
            old_logprobs,
            rollout.advantages[rows],
            values,
            rollout.values[rows],
            rollout.returns[rows],
            args.cliprange,
            args.cliprange_value,
        )
        policy_coef = 0.0 if self.trains_value_only else 1.0
        loss = ((policy_coef * policy_losses + args.vf_coef * value_losses) * mask).sum() / tokens
        with torch.no_grad():
            metrics = {
                "loss/policy": policy_losses,
                "loss/value": value_losses,
                "policy/ratio": ratio,
                "policy/approxkl": 0.5 * (logprobs - old_logprobs) ** 2,
                "policy/clipfrac": clipped.float(),
                "policy/entropy": entropy,
                "tokens": torch.ones_like(ratio),
            }
            return loss, {name: (value * mask).sum() for name, value in metrics.items()}

    def moments(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the masked values over all processes."""
        sums = torch.stack([(values * mask).sum(), (values**2 * mask).sum(), mask.sum().float()])
        total, squares, count = self.accelerator.reduce(sums, "sum")
        mean = total / count
        return mean, (squares / count - mean**2).clamp(min=0).sqrt()

    # What the Trainer does for one model and one loss only.

    def create_optimizer(self, model=None):
        """The Trainer's, with the value model's weights at `value_learning_rate`."""
        rate, given = self.args.value_learning_rate, self.optimizer
        optimizer = super().create_optimizer(model)
        if rate is None or given is not None:
            return optimizer
        value_weights = {id(weight) for weight in self.accelerator.unwrap_model(self.model).value_model.parameters()}
        for group in list(optimizer.param_groups):
            moved = [weight for weight in group["params"] if id(weight) in value_weights]
            group["params"] = [weight for weight in group["params"] if id(weight) not in value_weights]
            if moved:
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer

    def answers_to(self, dataset: Dataset) -> Iterator[tuple[list[dict], Rollout, torch.Tensor]]:
        """(rows, scored rollout, weights (N,)) of this process's share of `dataset`, batch by batch; the same random
        numbers every time. All processes get as many batches, filled up with rows of weight 0."""
        args = self.args
        mine = range(args.process_index, len(dataset), args.world_size)
        for start in range(0, math.ceil(len(dataset) / args.world_size), args.per_device_eval_batch_size):
            indices = mine[start : start + args.per_device_eval_batch_size]
            rows = [dataset[index] for index in indices] or [dataset[0]]
            rollout = self.roll_out(rows, [-1 - index for index in indices] or [-1])
            self.score(rollout)
            yield rows, rollout, torch.full((len(rows),), float(bool(len(indices))), device=args.device)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Mean `METRICS` of sampled answers to held-out prompts, and what `eval_funcs` give them.

        The same random numbers every time: evaluations differ by the policy alone.
        """
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if "prompt_ids" not in dataset.column_names:
            dataset = with_prompt_ids(dataset, self.processing_class, self.max_prompt_length)
        if self.reward_moments is None:
            self.measure_rewards()
        sums: dict[str, torch.Tensor] = {}
        with self.average.in_policy() if self.average is not None else nullcontext():
            for rows, rollout, weights in self.answers_to(dataset):
                metrics = self.metrics_of(rollout)
                texts = rollout.texts(self.processing_class) if self.eval_funcs else []
                for function in self.eval_funcs:
                    metrics[function.__name__] = self.rewards_by(function, rows, texts)
                for name, values in metrics.items():
                    sums[name] = sums.get(name, 0.0) + (values * weights).sum()
        means = self.accelerator.reduce(torch.stack(list(sums.values())), "sum") / len(dataset)
        found = {f"{metric_key_prefix}_{name}": value for name, value in zip(sums, means.tolist(), strict=True)}
        self.log({**found})  # a copy: `log` adds the epoch to it
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._metrics:
            means = {key: sum(row[key] for row in self._metrics) / len(self._metrics) for key in self._metrics[0]}
            logs = {**logs, **means}
            logs["loss"] = logs["loss/policy"] + self.args.vf_coef * logs["loss/value"]
            logs["episodes"] = self.state.global_step * self.rollout_size * self.args.world_size
            logs.pop("grad_norm", None)  # the Trainer's, of gradients that are gone; see policy/grad_norm
            self._metrics = []
        super().log(logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        budget = self.args.kl_budget
        if budget is not None and metrics["eval_kl"] > budget:
            return False  # a score bought by leaving the reference is not the best (Gao 2023, arXiv:2210.10760)
        return super()._determine_best_metric(metrics, trial)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """The policy with its tokenizer in `output_dir`, the value model in `output_dir/value_model`."""
        if not self.args.should_save:
            return
        output_dir = Path(output_dir or self.args.output_dir)
        wrapper = self.accelerator.unwrap_model(self.model)
        for name, folder in (("policy", output_dir), ("value_model", output_dir / "value_model")):
            own = None  # what the Trainer gathered, where weights are in parts on several processes
            if state_dict is not None:
                own = {key[len(name) + 1 :]: value for key, value in state_dict.items() if key.startswith(f"{name}.")}
            getattr(wrapper, name).save_pretrained(folder, state_dict=own)
        self.processing_class.save_pretrained(output_dir)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            kept = {"kl_coef": self.kl_coef, "reward_moments": self.reward_moments, "metrics": self._metrics}
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            if self.average is not None:
                save_file(self.average.weights, folder / AVERAGE)
            write_json(folder / "ppo_state.json", kept)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self._load_weights(Path(resume_from_checkpoint))
        saved = read_json(Path(resume_from_checkpoint) / "ppo_state.json")
        self.kl_coef, self.reward_moments, self._metrics = saved["kl_coef"], saved["reward_moments"], saved["metrics"]

    def _load_best_model(self) -> None:
        self._load_weights(Path(self.state.best_model_checkpoint))

    def _load_weights(self, folder: Path) -> None:
        wrapper = self.accelerator.unwrap_model(self.model)
        for module, path in ((wrapper.policy, folder), (wrapper.value_model, folder / "value_model")):
            if hasattr(module, "peft_config"):
                module.load_adapter(path, adapter_name="default", is_trainable=True)
            else:
                load_weights(module, path)
        if self.average is not None and (folder / AVERAGE).exists():
            self.average.weights = load_file(folder / AVERAGE, device=str(self.args.device))
        elif self.average is not None:  # of a run without one: it starts from the weights just loaded
            self.average = MovingAverage(wrapper.policy, self.args.ema_decay)
