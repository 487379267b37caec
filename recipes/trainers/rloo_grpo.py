"""What TRL 1.12's RLOOTrainer and GRPOTrainer lack: positions that do not depend on padding, rewards from the sampled ids,
updates that a NaN among the rewards does not reach, and checkpoints that hold the answers still to be trained on.

Both pad prompts on the left and answers on the right, sample answers with the right positions (`generate` derives them),
and compute the log-probabilities that they train on without any. A model with learned positions, such as GPT-2, then
sees the shorter prompts of a batch shifted, and is trained on probabilities that no answer was sampled with: for one and
the same answer of a small random model they were 0.18 nats off in a token. Rotary positions are relative, and not
affected. DPOTrainer pads on the right and needs nothing.
"""

import bisect
import copy
import functools
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import nn
from transformers import GenerationConfig, TrainerCallback
from transformers.trainer_callback import ExportableState

from data_prep.common.errors import InputError
from data_prep.common.text import printable
from data_prep.models.generation import generate_answers, stop_token_ids
from data_prep.models.reward_functions import call_reward_function
from data_prep.models.scoring import rewards_of_ids, score_answers
from data_prep.tokens.chat_encoder import encode_prompts
from data_prep.tokens.generation_prompt import head_of_answers, without_head
from recipes.trainers.alarms import ROUNDING, RewardAlarms
from recipes.trainers.curves import logged
from recipes.trainers.padding import check_pad_token
from recipes.trainers.saving import stop_at
from recipes.trainers.sharding import on_device

OWN = ("eval_score", "eval_length", "eval_eos_rate")  # metrics of held-out answers, beside those of eval_funcs


def count_positions_from_first_token(model: nn.Module) -> None:
    """Make `model` derive `position_ids` from its attention mask wherever a caller passes none.

    The hook sits on the body of the model: the wrapper of LoRA calls the head's `forward` past its hooks.
    """

    def derive(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        whole_rows = mask is not None and mask.dim() == 2 and kwargs.get("past_key_values") is None
        if whole_rows and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)  # padding may have any
        return args, kwargs

    model = model.get_base_model() if hasattr(model, "peft_config") else model
    model.base_model.register_forward_pre_hook(derive, with_kwargs=True)


def answer_ends(name: str, revision: str, config, tokenizer) -> list[int]:
    """The ids that an answer of the model `name` ends with (`stop_token_ids`); InputError if the first of them is padding."""
    try:
        settings = GenerationConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except OSError:  # the model has none
        settings = GenerationConfig.from_model_config(config)
    ends = stop_token_ids(settings, tokenizer)
    check_pad_token(tokenizer, ends, name)
    return ends


def set_sampling(args, tokenizer, ends: list[int]) -> None:
    """Let answers be drawn up to any of `ends`, and without padding: sampled, it would read as such."""
    own = args.generation_kwargs or {}
    if args.use_vllm:
        args.generation_kwargs = {"stop_token_ids": ends, **own}
    else:
        suppressed = [tokenizer.pad_token_id, *own.get("suppress_tokens", [])]
        args.generation_kwargs = {"eos_token_id": ends, **own, "suppress_tokens": suppressed}


class AnyOf:
    """Equal to each of some token ids, and to those places of a tensor that hold one."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __eq__(self, other):
        if isinstance(other, torch.Tensor):
            return torch.isin(other, torch.tensor(self.ids, device=other.device))
        return other in self.ids

    __hash__ = None


def sample_by_arguments_alone(trainer, ends: list[int]) -> None:
    """Leave nothing but the ends of an answer in the generation config of the policy, and make TRL know all of them.

    Sampling takes from there what the trainer's arguments do not say: a repetition penalty or a limit on length would
    change the samples, and not the probabilities that are trained on. TRL looks for the tokenizer's end of sequence alone:
    answers that end with another token, as Gemma's do, would have padding after it, and count as truncated.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    model.generation_config = GenerationConfig()
    stop_at(model, ends)
    own = trainer._tokenizer
    trainer._tokenizer = copy.copy(own)  # what TRL compares with; the tokenizer that is saved stays as it is
    trainer._tokenizer.__class__ = type(type(own).__name__, (type(own),), {"eos_token_id": AnyOf(ends)})


def show_control_characters(trainer) -> None:
    """Make the table of `log_completions` show the codes of control characters, which a terminal would obey."""
    module = sys.modules[type(trainer).__module__]
    table = module.print_prompt_completions_sample

    def shown(value):
        if isinstance(value, dict):
            return {key: shown(each) for key, each in value.items()}
        if isinstance(value, list | deque):
            return [shown(each) for each in value]
        return printable(value) if isinstance(value, str) else value

    module.print_prompt_completions_sample = lambda *columns, extra: table(*map(shown, columns), extra=shown(extra))


def keep_answers(trainer) -> None:
    """Make a checkpoint hold the answers that updates after it train on, and a resumed run train on them.

    With `steps_per_generation` above gradient_accumulation_steps, or `num_iterations` above 1, answers are drawn for
    several updates at once. TRL keeps them, and its count of steps that says when to draw again, in memory alone: a
    resumed run would draw others, by the weights it has by then, and train on them as often as on a whole set.

    Resuming raises InputError from a checkpoint between such updates that holds no answers of this process.
    """
    args, save, load = trainer.args, trainer._save_rng_state, trainer._load_rng_state
    every = args.steps_per_generation * trainer.num_iterations
    name = f"answers_{args.process_index}_of_{args.world_size}.pt"

    def save_with_answers(folder: str) -> None:
        save(folder)
        used_up = trainer._step % every == 0
        answers = {"step": trainer._step, "answers": None if used_up else trainer._buffered_inputs}
        torch.save(answers, Path(folder) / name)

    def load_with_answers(checkpoint: str | None) -> None:
        load(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / name
        if path.exists():
            found = torch.load(path, map_location="cpu", weights_only=True)
            trainer._step, trainer._buffered_inputs = found["step"], send_to_device(found["answers"], args.device)
        elif trainer.state.global_step * args.gradient_accumulation_steps % every:
            raise InputError(
                f"{checkpoint}: holds no {name}: of an earlier version or of another number of processes, it lacks the "
                "answers that its next update trains on; resume from another, or --resume_from_checkpoint false"
            )

    trainer._save_rng_state, trainer._load_rng_state = save_with_answers, load_with_answers


class WatchRewards(TrainerCallback, ExportableState):
    """Tell `alarms` of rewards that teach nothing, and skip an update whose answers have one that is NaN or infinite.

    TRL takes NaN for "this function has nothing to say", leaves such an answer out and says nothing; an infinite reward
    becomes an advantage of 3e38. PPO leaves the weights as they are in such an update (`take_step` of
    trainers/ppo/trainer.py), and so does this, in all processes.

    `groups_without_spread`, the share of prompts whose answers have one reward, is logged beside TRL's
    `frac_reward_zero_std`, which RLOO takes after the KL penalty: that differs from answer to answer.
    """

    def __init__(self, trainer, alarms: RewardAlarms) -> None:
        self.bad: list[str] = []  # functions with such a reward for the answers that are being rewarded
        self.skips = False  # whether the answers that are being trained on have one
        self.passed = False  # whether answers of this update that were trained on before them had one
        self.tokenizer, self.head = trainer.processing_class, head_of_answers(trainer.processing_class)
        trainer.reward_funcs = [self.watched(function) for function in trainer.reward_funcs]
        calculate = trainer._calculate_rewards

        def calculate_rewards(*args) -> torch.Tensor:
            self.bad = []
            rewards = calculate(*args)
            found = trainer.accelerator.reduce(torch.tensor(float(len(self.bad)), device=rewards.device), "sum")
            if trainer.model.training:
                self.skips = bool(found)
                self.passed |= self.skips
                groups = (rewards * trainer.reward_weights.to(rewards.device)).sum(1).view(-1, trainer.num_generations)
                spread = groups.max(1).values - groups.min(1).values
                alike = spread <= ROUNDING * groups.abs().max().clamp(min=1.0)
                trainer._metrics["train"]["groups_without_spread"].append(alike.float().mean().item())
            if found:
                alarms.not_finite += self.bad or ["a function on another process"]
                rewards = torch.full_like(rewards, math.nan)  # none of these answers has an advantage
            return rewards

        trainer._calculate_rewards = calculate_rewards
        trainer.add_callback(self)

    def watched(self, function: Callable) -> Callable:
        """`function` with 0 for rewards that are not finite, noted in `bad`; its answers are without the template's head."""

        @functools.wraps(function)
        def rewards(completions: list[list[dict]], completion_ids: list[list[int]], **given) -> list[float]:
            kept = [without_head(list(ids), self.head) for ids in completion_ids]
            completions = [
                [{**answer[0], "content": self.tokenizer.decode(own, skip_special_tokens=True)}, *answer[1:]]
                if len(own) < len(ids)
                else answer
                for answer, own, ids in zip(completions, kept, completion_ids, strict=True)
            ]
            found = function(completions=completions, completion_ids=completion_ids, **given)
            if not all(map(math.isfinite, found)):
                self.bad.append(function.__name__)
            return [value if math.isfinite(value) else 0.0 for value in found]

        return rewards

    def state(self) -> dict:
        """What `trainer_state.json` keeps."""
        return {"args": {}, "attributes": {"skips": self.skips}}

    def on_train_begin(self, args, state, control, **kwargs):
        name = type(self).__name__
        if state.global_step and name in state.stateful_callbacks:
            self.skips = state.stateful_callbacks[name]["attributes"]["skips"]
        # Resumed from a checkpoint without this callback, the Trainer would fail with a KeyError at its next one.
        state.stateful_callbacks.setdefault(name, self.state())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.skips or self.passed:
            for weight in model.parameters():
                weight.grad = None  # with a gradient of 0, weight decay and momentum would still move it
        self.passed = False


def reward_at_last_token(reward_model: nn.Module, tokenizer, bf16: bool) -> Callable:
    """A reward function of TRL's form that reads `reward_model` at the last token of the sampled ids.

    That is the end of turn, as in the reward model's training, or the last token of a truncated answer, as in
    recipes/trainers/ppo/trainer.py. TRL's own call with a model takes the text instead: without special tokens, encoded
    again (an answer of broken characters grows, perhaps beyond the context), and with an end of turn after a truncated
    answer, whose score is then that of a whole one. `bf16` is the trainer's precision.
    """
    device = reward_model.device

    @torch.no_grad()
    def reward_model_score(prompts: list[list[dict]], completion_ids: list[list[int]], **columns) -> list[float]:
        starts = encode_prompts(tokenizer, prompts)
        ids = [start + completion for start, completion in zip(starts, completion_ids, strict=True)]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return rewards_of_ids(reward_model, ids)

    return reward_model_score


def reward_of_text(reward_model: nn.Module, tokenizer, ends: list[int]) -> Callable:
    """A reward function of TRL's form that encodes answers again, as text, for a `reward_model` with its own `tokenizer`.

    TRL's own call with a model would make control tokens of what a prompt or an answer spells out. An answer is whole if
    its ids end with one of `ends`, the policy's; a truncated one gets no end of turn.
    """

    def reward_model_score(
        prompts: list[list[dict]], completions: list[list[dict]], completion_ids: list[list[int]], **columns
    ) -> list[float]:
        answers = [completion[-1]["content"] for completion in completions]
        stopped = [ids[-1] in ends for ids in completion_ids]
        return score_answers(reward_model, tokenizer, prompts, answers, stopped=stopped)

    return reward_model_score


def reward_weights(given: list[float] | None, number: int, missing_eos_penalty: float) -> list[float]:
    """A weight for each of `number` rewards (default: 1). Raises InputError if the numbers differ, or for a bonus."""
    weights = given or [1.0] * number
    if not number or len(weights) != number:
        raise InputError(
            f"found {number} rewards (reward_model_path, reward_funcs) and {len(weights)} reward_weights; "
            "expected at least one, and a weight for each"
        )
    if missing_eos_penalty < 0:
        raise InputError(f"missing_eos_penalty: expected at least 0, found {missing_eos_penalty}")
    return weights


def missing_eos_reward(ends: list[int]) -> Callable:
    """A reward function of TRL's form: -1 for an answer that was truncated, its last token none of `ends`, else 0."""

    def missing_eos(completion_ids: list[list[int]], **columns) -> list[float]:
        return [-float(ids[-1] not in ends) for ids in completion_ids]

    return missing_eos


def training_curves(log_history: list[dict], missing_eos_penalty: float) -> dict[str, list[tuple[int, float]]]:
    """The curves of recipes/ppo.py from TRL's log: score without the penalty, KL and entropy per answer, length, EOS rate.

    TRL logs means over tokens; times the mean length they are per answer. An update that trains on answers drawn before
    logs no length: theirs holds.
    """
    truncated = dict(logged(log_history, "completions/clipped_ratio"))
    length = dict(logged(log_history, "completions/mean_length"))
    drawn = sorted(length)

    def per_answer(key: str) -> list[tuple[int, float]]:
        return [
            (step, value * length[drawn[bisect.bisect(drawn, step) - 1]]) for step, value in logged(log_history, key)
        ]

    reward = [(step, value) for step, value in logged(log_history, "reward") if value is not None]  # none was finite
    return {
        "score": [(step, value + missing_eos_penalty * truncated[step]) for step, value in reward],
        "kl": per_answer("kl"),
        "length": list(length.items()),
        "eos_rate": [(step, 1 - value) for step, value in truncated.items()],
        "entropy": per_answer("entropy"),
    }


def heldout_metrics(
    model,
    tokenizer,
    dataset: Dataset,
    rewards: list[Callable],
    weights: list[float],
    args,
    eval_funcs: Sequence[Callable] = (),
) -> dict:
    """{"eval_score", "eval_length", "eval_eos_rate", "eval_<function>"} of one sampled answer to each prompt of `dataset`.

    Means over prompts. The score is the weighted sum of `rewards`, as in training; `eval_funcs` are measured alone. TRL's
    own evaluation weighs a batch as much as another, however few prompts it holds, and draws from the random numbers of
    the training.
    """
    prompts = list(dataset["prompt"])
    batch, seed = args.per_device_eval_batch_size, args.seed
    with on_device(model, args.device):
        sampled = generate_answers(
            model, tokenizer, prompts, args.max_completion_length, args.temperature, 1, batch, seed
        )
    answers = [answer for (answer,) in sampled]
    columns = {"completion_ids": [answer["ids"] for answer in answers], "reference": list(dataset["reference"])}
    texts, scores = [answer["text"] for answer in answers], [0.0] * len(answers)
    measured = {f"eval_{function.__name__}": 0.0 for function in eval_funcs}
    if len(measured) < len(eval_funcs) or measured.keys() & set(OWN):
        raise InputError(
            "eval_funcs: metrics are named by function: rename one that another or score, length, eos_rate has"
        )
    for start in range(0, len(answers), batch):
        part = slice(start, start + batch)
        own = {name: values[part] for name, values in columns.items()}
        for reward, weight in zip(rewards, weights, strict=True):
            found = call_reward_function(reward, prompts[part], texts[part], own)
            scores[part] = [score + weight * value for score, value in zip(scores[part], found, strict=True)]
        for name, function in zip(measured, eval_funcs, strict=True):
            measured[name] += sum(call_reward_function(function, prompts[part], texts[part], own)) / len(answers)
    stopped, lengths = ([answer[key] for answer in answers] for key in ("stopped", "tokens"))
    means = [sum(values) / len(answers) for values in (scores, lengths, stopped)]
    return dict(zip(OWN, means, strict=True)) | measured
