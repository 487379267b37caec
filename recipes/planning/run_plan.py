"""The plan of one stage: its models, work, memory and time, and what to change where it does not fit."""

from pathlib import Path
from typing import NamedTuple

import trl

from recipes.planning.architecture import Counts, Sources, config_of, count, gpt2, tokenizer_of
from recipes.planning.data import Data, data_of
from recipes.planning.hardware import GPU, USABLE
from recipes.planning.memory import memory_of
from recipes.planning.settings import read_settings
from recipes.planning.work import Work, work_of
from recipes.trainers.adapter import check_score_head
from recipes.trainers.sharding import WHOLE

LADDER = 10  # halvings of a batch that are tried
CHINCHILLA = 20  # tokens per parameter (Hoffmann 2022, arXiv:2203.15556, table 3: 19.2 to 21.6 from 0.4 to 10 B)


class Plan(NamedTuple):
    """One stage. `parts` and `peak` are bytes on a device; `read` is the file's stage and values."""

    path: Path
    stage: str
    values: dict
    models: dict[str, Counts | None]
    origin: str
    data: Data | None
    work: Work
    parts: dict[str, float]
    peak: float

    def total(self, number: float) -> float | None:
        """What a step has, over all steps, None where their number is not known."""
        return self.work.steps and number * self.work.steps

    def seconds(self, gpu: GPU, gpus: int, utilisation: float) -> float | None:
        """Training time. Sampling takes at least as long as its weights need to be read once for every token."""
        step = (self.work.flops + self.work.recomputed) / (gpu.flops * utilisation * gpus)
        return self.total(step + self.work.read / gpu.bandwidth)


def models_of(stage: str, path: Path, values: dict, sources: Sources) -> tuple[dict, str, str | None]:
    """({role: counts}, where the architecture comes from, the name of the model that is started from)."""
    if stage == "pretrain":
        config, origin = gpt2(path, values)
        return {"policy": count(config)}, origin, values["tokenizer"]
    model_args = trl.ModelConfig(**{name: values[name] for name in trl.ModelConfig.__dataclass_fields__})
    name = values.get("sft_model_path") or values["model_name_or_path"]
    config, origin = config_of(name, sources)
    head = "score" if stage == "reward" else "language"
    if stage == "reward":
        check_score_head(config, name)
    models: dict[str, Counts | None] = {"policy": count(config, head, model_args)}
    wanted = stage in ("ppo", "dpo", "kto") or (stage in ("rloo", "grpo") and values["beta"] != 0)
    if wanted and values.get("use_peft"):
        models["adapter reference"] = None  # the policy with its adapter switched off: no weights of its own
    elif wanted and not values.get("precompute_ref_log_probs"):
        models["reference"] = count(config, head, trained=False)
    rewarder = values.get("reward_model_path")
    if stage == "ppo":
        valued = values.get("value_model_path") or (rewarder if reads_ids_of(rewarder, name, sources) else name)
        valued_config, _ = config_of(valued, sources, kind="either")
        check_score_head(valued_config, valued)
        models["value"] = count(valued_config, "score", model_args)
    if rewarder:
        models["reward"] = count(config_of(rewarder, sources, kind="reward")[0], "score", trained=False)
    return models, origin, name


def reads_ids_of(rewarder: str | None, policy: str, sources: Sources) -> bool:
    """Whether a reward model has the vocabulary of the policy: else PPO's value model starts from the policy."""
    if not rewarder:
        return False
    tokenizers = tokenizer_of(rewarder, sources), tokenizer_of(policy, sources)
    return None in tokenizers or tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def plan_of(
    path: Path,
    stage: str,
    values: dict,
    sources: Sources,
    rows: int | None = None,
    gpus: int = 1,
    sharding: str = "ddp",
) -> Plan:
    """The plan of a stage that trains; see `work_of` for `rows`. Raises InputError for what cannot be read."""
    models, origin, name = models_of(stage, path, values, sources)
    made = None
    if "tokens" in values and values["tokens"] in sources.made:
        made = sources.read(sources.made[values["tokens"]])[1].get("total_tokens")
    tokenizer = tokenizer_of(name, sources, values.get("chat_template_path"))
    data = data_of(stage, values, tokenizer, made)
    work = work_of(stage, values, models, data, rows)
    return Plan(
        path, stage, values, models, origin, data, work, *memory_of(stage, values, models, work, gpus, sharding)
    )


def fits(peak: float, memory: float) -> bool:
    return peak <= USABLE * memory


def changes(plan: Plan, sources: Sources, memory: float, gpus: int, sharding: str) -> tuple[dict, float] | None:
    """({key: value} to set, bytes at the peak then) so that a plan fits into `memory` bytes; None if nothing here does.

    Tried in this order, until it fits: smaller micro batches (the global batch stays), activation checkpointing, LoRA, LoRA
    beside 4-bit weights; on several GPUs sharding first.
    """

    def peak(changed: dict, shards: str) -> float:
        values = {**plan.values, **changed}
        models, _, _ = models_of(plan.stage, plan.path, values, sources)
        work = work_of(plan.stage, values, models, plan.data, None)
        return memory_of(plan.stage, values, models, work, gpus, shards)[1]

    bases: list[dict] = [{}]
    bases.append({"activation_checkpointing": True})
    if "use_peft" in plan.values and not plan.values["use_peft"]:
        lora = {"use_peft": True, "lora_target_modules": ["all-linear"], "muon_lr": None}
        lora = {name: value for name, value in lora.items() if name in plan.values}
        bases.append({**bases[-1], **lora})
    if "load_in_4bit" in plan.values and not plan.values["load_in_4bit"]:
        bases.append({**bases[-1], "load_in_4bit": True, "dtype": "bfloat16"})
    rows, accumulation = plan.values["per_device_train_batch_size"], plan.values["gradient_accumulation_steps"]
    shared = gpus > 1 and sharding != "fsdp2" and "fsdp2" not in WHOLE.get(plan.stage, ())
    for shards in [sharding, "fsdp2"] if shared else [sharding]:
        for base in bases:
            for power in range(LADDER):
                parts = 2**power
                if rows % parts:
                    break
                batch = {
                    "per_device_train_batch_size": rows // parts,
                    "gradient_accumulation_steps": accumulation * parts,
                }
                if at_once := plan.values.get("local_rollout_forward_batch_size"):
                    batch["local_rollout_forward_batch_size"] = max(1, at_once // parts)
                changed = {**base, **(batch if power else {})}
                if fits(needed := peak(changed, shards), memory):
                    shown = {name: value for name, value in changed.items() if plan.values.get(name) != value}
                    if plan.values.get("global_batch_size"):  # it follows from that
                        shown.pop("gradient_accumulation_steps", None)
                    return ({"--sharding": "fsdp2"} if shards != sharding else {}) | shown, needed
    return None


def reader(recipe_arguments) -> object:
    """read(path) → (stage, values), each YAML once; `recipe_arguments(stage)` is (dataclasses, refused fields)."""
    from data_prep.common.yaml_file import read_yaml
    from recipes.planning.settings import stage_of

    known: dict[Path, tuple[str, dict]] = {}

    def read(path: Path) -> tuple[str, dict]:
        if path not in known:
            stage = stage_of(path)
            known[path] = (stage, read_yaml(path) if stage == "mix" else read_settings(path, *recipe_arguments(stage)))
        return known[path]

    return read
