"""The same PPO with the judge as its reward: what it reaches is what a perfect reward model would give it."""

import subprocess
import sys
import tempfile
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import write_json

ROOT = Path(__file__).parents[2]
# What makes a PPO run what it is; the rest of its settings says where its outputs go, or was not set.
SETTINGS = (
    "prompts", "on_bad", "columns", "max_prompt_length", "long_prompts", "muon_lr", "muon_momentum", "sft_model_path", "model_revision",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "total_episodes",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "seed", "data_seed",
    "activation_checkpointing", "gradient_checkpointing", "num_mini_batches", "local_rollout_forward_batch_size",
    "response_length", "stop_token_id", "temperature", "missing_eos_penalty", "num_ppo_epochs", "whiten_rewards", "kl_coef",
    "kl_estimator", "cliprange", "cliprange_value", "vf_coef", "gamma", "lam", "target_kl", "value_learning_rate",
    "num_value_warmup_updates", "normalize_rewards", "kl_budget", "dtype", "attn_implementation",
)  # fmt: skip
LORA = (
    "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "load_in_8bit",
    "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant",
)  # fmt: skip


def config_of(settings: dict, changes: dict) -> dict:
    """What recipes/ppo.py is given: the run's own settings, but for where they are told to differ."""
    names = (*SETTINGS, *LORA) if settings.get("use_peft") else SETTINGS
    kept = {name: settings[name] for name in names if settings.get(name) is not None}
    kept = {name: value for name, value in kept.items() if value is not False or name not in LORA}
    if not kept.get("muon_lr") or kept.get("use_peft"):
        kept.pop("muon_momentum", None)  # its default, which without Muon is refused as idle
    if settings.get("stop_token") and settings.get("stop_token_id") is None:
        kept["stop_token"] = "eos"  # the only one that there is; the libraries mask what is called a token
    still = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "num_sample_generations": 0}
    return {**kept, **still, "reward_gate": "off", **changes}


def train_on(reward: dict, settings: dict, weight: float, value_model: str | None, folder: str) -> str:
    """Train a PPO model in `folder` on a reward, the judge, and return its folder.

    Args:
        reward: the setting of recipes/ppo.py that names it, reward_funcs or reward_model_path.
        weight: of the judge: what makes its spread within a prompt that of the reward, so that kl_coef means the same.
        value_model: what the value model starts from.

    Raises InputError with the recipe's own error.
    """
    config, output = Path(folder, "ppo.yaml"), str(Path(folder, "ppo"))
    changes = {**reward, "reward_weights": [weight], "output_dir": output}
    changes |= {"value_model_path": value_model} if value_model else {}
    write_json(config, config_of(settings, changes))  # JSON is YAML
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(ROOT / "recipes" / "ppo.py"), "--config", str(config)]
        done = subprocess.run(command, stdout=sys.stderr, stderr=errors)
        errors.seek(0)
        said = errors.read()
    if done.returncode:
        _, found, error = said.rpartition("error: ")
        reason = error.strip() if found else (said.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"--with_judge_as_reward: recipes/ppo.py ended with {done.returncode}: {reason}")
    return output
