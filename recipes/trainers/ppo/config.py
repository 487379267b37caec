"""Arguments of PPO: TRL 1.12's, every one of which works here or is refused by name, and what they lack."""

from dataclasses import MISSING, dataclass, field, fields

from trl.experimental.ppo import PPOConfig as TRLPPOConfig

from data_prep.common.errors import InputError

# What the Trainer or TRL's class would accept and nothing here would read: {argument: why, or what to set instead}.
REFUSED = {
    **dict.fromkeys(
        ("num_total_batches", "micro_batch_size", "local_batch_size", "batch_size", "local_mini_batch_size",
         "mini_batch_size", "world_size"),
        "it follows from total_episodes, per_device_train_batch_size, gradient_accumulation_steps and num_mini_batches",
    ),
    "fp16": "set bf16: small log-probability ratios do not survive fp16",
    "label_smoothing_factor": "PPO has no labels",
    "label_names": "PPO has no labels",
    "neftune_noise_alpha": "noise would make the ratio of new to old probability differ from 1",
    "auto_find_batch_size": "a rollout has a fixed size; lower per_device_train_batch_size and raise "
    "gradient_accumulation_steps by hand, which changes no update",
    "use_liger_kernel": "the losses of PPO are not among its kernels",
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"),
                    "rollouts change shape with every update"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "an evaluation draws answers as training does; see bf16"),
    **dict.fromkeys(("eval_use_gather_object", "eval_do_concat_batches", "eval_accumulation_steps"),
                    "an evaluation keeps sums only"),
    "ds3_gather_for_generation": "it is for DeepSpeed ZeRO-3, which is not supported; use ZeRO-2",
    "train_sampling_strategy": "prompts are shuffled; micro-batches are sorted by length anyway",
    "include_num_input_tokens_seen": "see objective/length and episodes",
    "include_for_metrics": "there are no labels to compare with; see eval_funcs",
    "batch_eval_metrics": "there are no labels to compare with; see eval_funcs",
    "prediction_loss_only": "an evaluation draws answers and has no loss",
}  # fmt: skip


@dataclass
class PPOConfig(TRLPPOConfig):
    """TRL's arguments with the defaults that hold up, and these.

    One update draws `per_device_train_batch_size` × `gradient_accumulation_steps` answers on each process and goes over
    them `num_ppo_epochs` times in `num_mini_batches` optimizer steps each, in micro-batches of
    `per_device_train_batch_size`. Steps of the Trainer (`logging_steps`, `eval_steps`, `save_steps`, `max_steps`) are
    updates.

    Raises InputError for an argument that would be ignored (`REFUSED`) and for values that contradict each other.
    """

    sft_model_path: str = field(default="", metadata={"help": "The policy and its reference start here."})
    reward_model_path: str | None = field(default=None, metadata={"help": "A sequence classifier with one label."})
    value_model_path: str | None = field(
        default=None,
        metadata={"help": "Where the value model starts; None: the reward model, without one the policy."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Functions f(prompts, completions, **columns) -> list[float]: path/to/file.py:name or "
                          "package.module.name. Beside a reward model or instead of it."},
    )  # fmt: skip
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Of the reward model, where there is one, then of each function; None: 1 each."},
    )
    eval_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Functions of the same form, measured on held-out answers and never trained on."},
    )
    stop_token: str | None = field(
        default=None, metadata={"help": "eos, or None: stop_token_id, and without one the tokenizer's eos_token."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Of the draws, and of the probabilities trained on."})
    target_kl: float | None = field(
        default=None,
        metadata={"help": "Adapt kl_coef towards this KL, nats per answer (Ziegler 2019, section 2.2); None: fixed."},
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the value model; None: learning_rate. It has far more to learn."}
    )
    num_value_warmup_updates: int = field(
        default=0,
        metadata={"help": "Updates at the start that train the value model alone (Yuan 2025, arXiv:2503.01491): "
                          "advantages over values that know nothing are noise, and move the policy at random."},
    )  # fmt: skip
    kl_budget: float | None = field(
        default=None,
        metadata={"help": "KL, nats per answer: beyond it an alarm is raised, and no checkpoint counts as the best."},
    )
    stop_on: list[str] | None = field(default=None, metadata={"help": "Alarms that stop the run; see alarms.py."})
    max_seconds: float | None = field(
        default=None, metadata={"help": "Stop training after so many seconds of wall time; None: run to the end."}
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found = getattr(self, each.name)
            if each.name in REFUSED and found != default and (found is not False or default is True):
                raise InputError(f"{each.name}: not supported by PPO: {REFUSED[each.name]}")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "score"  # the library's default is a loss, which an evaluation here has not
        super().__post_init__()
        if self.stop_token not in (None, "eos"):
            raise InputError(f"stop_token: expected eos or nothing, found {self.stop_token!r}; see stop_token_id")
        if self.stop_token and self.stop_token_id is not None:
            raise InputError("stop_token and stop_token_id are both set: an answer ends on one token")
        if self.kl_estimator not in ("k1", "k3"):
            raise InputError(f"kl_estimator: expected k1 or k3, found {self.kl_estimator!r}")
        if self.temperature <= 0:
            raise InputError(
                f"temperature: expected more than 0, found {self.temperature}: greedy answers teach nothing"
            )
        if self.target_kl is not None and self.target_kl <= 0:
            raise InputError(f"target_kl: expected more than 0, found {self.target_kl}")
        if self.missing_eos_penalty is not None and self.missing_eos_penalty < 0:
            raise InputError(
                f"missing_eos_penalty: expected a penalty of at least 0, found {self.missing_eos_penalty}"
            )
