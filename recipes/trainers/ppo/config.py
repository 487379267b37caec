"""Arguments of PPO: TRL 1.12's, each of which works here or is refused by name, and some of its own."""

import importlib.util
import os
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import trl

from data_prep.common.errors import InputError
from recipes.trainers.sharding import check_sharding


def trl_ppo_config() -> type:
    """TRL's PPOConfig without the package that it is in, whose trainer takes two seconds to import."""
    name = "trl.experimental.ppo.ppo_config"
    if name not in sys.modules:
        path = Path(trl.__file__).parent / "experimental" / "ppo" / "ppo_config.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].PPOConfig


FOLLOWS = (
    "it follows from total_episodes, per_device_train_batch_size, gradient_accumulation_steps and num_mini_batches"
)
NO_LABELS = "there are no labels to compare with; see eval_funcs"
# Arguments that the Trainer or TRL's class would accept and PPOTrainer does not read: {argument: why, or what to set}.
REFUSED = {
    "num_total_batches": FOLLOWS,
    "micro_batch_size": FOLLOWS,
    "local_batch_size": FOLLOWS,
    "batch_size": FOLLOWS,
    "local_mini_batch_size": FOLLOWS,
    "mini_batch_size": FOLLOWS,
    "world_size": FOLLOWS,
    "fp16": "set bf16: small log-probability ratios do not survive fp16",
    "label_smoothing_factor": "PPO has no labels",
    "label_names": "PPO has no labels",
    "neftune_noise_alpha": "noise would make the ratio of new to old probability differ from 1",
    "auto_find_batch_size": "a rollout has a fixed size; lower per_device_train_batch_size and raise "
    "gradient_accumulation_steps by hand, which changes no update",
    "use_liger_kernel": "the losses of PPO are not among its kernels",
    "torch_compile": "rollouts change shape with every update",
    "torch_compile_backend": "rollouts change shape with every update",
    "torch_compile_mode": "rollouts change shape with every update",
    "bf16_full_eval": "an evaluation samples answers as training does; see bf16",
    "fp16_full_eval": "an evaluation samples answers as training does; see bf16",
    "eval_use_gather_object": "an evaluation keeps sums only",
    "eval_do_concat_batches": "an evaluation keeps sums only",
    "eval_accumulation_steps": "an evaluation keeps sums only",
    "ds3_gather_for_generation": "it is for DeepSpeed, which is not supported",
    "train_sampling_strategy": "prompts are shuffled; micro-batches are sorted by length anyway",
    "include_num_input_tokens_seen": "see objective/length and episodes",
    "include_for_metrics": NO_LABELS,
    "batch_eval_metrics": NO_LABELS,
    "prediction_loss_only": "an evaluation samples answers and has no loss",
}


@dataclass
class PPOConfig(trl_ppo_config()):
    """TRL's arguments, some with other defaults, and a few more.

    One update samples `per_device_train_batch_size` × `gradient_accumulation_steps` answers on each process and goes
    over them `num_ppo_epochs` times in `num_mini_batches` optimizer steps each, in micro-batches of
    `per_device_train_batch_size`. Steps of the Trainer (`logging_steps`, `eval_steps`, `save_steps`, `max_steps`) are
    updates.

    `sft_model_path` and `reward_model_path`, which are TRL's, are read by recipes/ppo.py: PPOTrainer is given models.

    Raises InputError for an argument that would be ignored (`REFUSED`), for values that contradict each other, and under
    DeepSpeed or FSDP.
    """

    sft_model_path: str = field(
        default="", metadata={"help": "Folder or Hub id of an assistant: policy and reference."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a reward model; default: none, see reward_funcs."}
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weights of the reward model, if there is one, and of each of reward_funcs; default: 1 each"
        },
    )
    stop_token: str | None = field(
        default=None,
        metadata={
            "help": "Eos: answers end on the chat template's end of turn, the tokenizer's eos_token or what else the model's "
            "generation_config.json stops at; default: on stop_token_id if set, else eos"
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature; log-probabilities are taken at it too"}
    )
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "Adapt kl_coef towards this KL, in nats per answer (Ziegler 2019, section 2.2); default: kl_coef is "
            "fixed"
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Value model's learning rate; default: learning_rate"}
    )
    num_value_warmup_updates: float = field(
        default=0,
        metadata={
            "help": "First updates, or below 1 the share of all updates, in which only the value model is trained (Yuan 2025, "
            "arXiv:2503.01491): advantages over values that predict nothing are noise"
        },
    )
    normalize_rewards: bool = field(
        default=False,
        metadata={
            "help": "Subtract from the rewards their mean on the policy's answers before training and divide by their "
            "standard deviation there: one kl_coef then means the same for any reward (Ziegler 2019, section 2)"
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save a moving average of the policy's weights, of which an update keeps this share (Ramé "
            "2024, arXiv:2406.16768); default: the weights of an update"
        },
    )
    kl_budget: float | None = field(
        default=None,
        metadata={
            "help": "KL, in nats per answer, above which an alarm is raised and no checkpoint counts as the best; "
            "default: no limit"
        },
    )

    def __post_init__(self) -> None:
        check_sharding({"deepspeed": self.deepspeed, "fsdp": self.fsdp}, {"PPOConfig"})
        for each in fields(self):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found = getattr(self, each.name)
            if each.name in REFUSED and found != default and (found is not False or default is True):
                raise InputError(f"{each.name}: not supported by PPO: {REFUSED[each.name]}")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "score"  # the Trainer's default is the loss, which evaluations here lack
        super().__post_init__()
        if self.stop_token not in (None, "eos"):
            raise InputError(f"stop_token: expected eos or nothing, found {self.stop_token!r}; see stop_token_id")
        if self.stop_token and self.stop_token_id is not None:
            raise InputError("stop_token and stop_token_id are both set: each says what ends an answer; give one")
        if self.max_steps > 0 and self.total_episodes is not None:
            rows = self.per_device_train_batch_size * self.gradient_accumulation_steps
            answers = self.max_steps * rows * int(os.environ.get("WORLD_SIZE", 1))
            raise InputError(
                f"max_steps {self.max_steps} and total_episodes {self.total_episodes} are both set: each says how long the "
                f"run is; give total_episodes alone, {answers} for {self.max_steps} updates, or max_steps alone"
            )
        if self.kl_estimator not in ("k1", "k3"):
            raise InputError(f"kl_estimator: expected k1 or k3, found {self.kl_estimator!r}")
        if self.temperature <= 0:
            raise InputError(
                f"temperature: expected more than 0, found {self.temperature}: greedy answers teach nothing"
            )
        if self.target_kl is not None and self.target_kl <= 0:
            raise InputError(f"target_kl: expected more than 0, found {self.target_kl}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"ema_decay: expected a number between 0 and 1, found {self.ema_decay}")
        if self.missing_eos_penalty is not None and self.missing_eos_penalty < 0:
            raise InputError(
                f"missing_eos_penalty: expected a penalty of at least 0, found {self.missing_eos_penalty}"
            )
