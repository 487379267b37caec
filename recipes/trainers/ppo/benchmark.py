"""Benchmark of PPO: episodes per second and peak memory of TRL 1.12's own trainer and of PPOTrainer.

    python -m recipes.trainers.ppo.benchmark --run runs/quickstart

Both train a run's SFT model against its reward model on the same prompts, each in a process of its own, one after the
other, `--repeats` times; the median counts, and the least and the most are printed beside it. The first update is not
timed. Run it on a quiet machine. That both optimise the same objective is tested (tests/test_ppo_objective.py).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, read_json, write_results
from data_prep.common.machine import bf16_is_fast, matrix_rates, peak_memory, seconds_of_others
from data_prep.common.parallel import cores
from data_prep.common.provenance import commit, machine
from data_prep.models.loading import check_context, load_checkpoint
from data_prep.readers.conversations import read_conversations
from data_prep.readers.prompts import read_prompts
from data_prep.tokens.chat_encoder import encode_prompts

PROMPTS = "data/prompts_ppo.json"  # in the run's folder
# Of both trainers. TRL's ignores max_grad_norm, so ours does not clip either.
SETTINGS = {
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "temperature": 1.0,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.05,
    "learning_rate": 5e-5,
    "vf_coef": 0.1,
    "max_grad_norm": 0.0,
    "gradient_checkpointing": False,
}
# Of every measured process: offline, and memory kept between steps, as in recipes/steps.sh.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    threads = min(psutil.cpu_count(logical=False) or 1, cores())
    parser.add_argument(
        "--run",
        default="runs/quickstart",
        help="folder with sft, reward and data/prompts_ppo.json (default: runs/quickstart)",
    )
    parser.add_argument(
        "--updates", type=int, default=8, help="updates of each trainer, the first not timed (default: 8)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each trainer (default: 3)")
    parser.add_argument("--batch_size", type=int, default=64, help="answers per update (default: 64)")
    parser.add_argument("--response_length", type=int, default=48, help="longest answer in tokens (default: 48)")
    parser.add_argument(
        "--num_ppo_epochs", type=int, default=4, help="passes over the answers of an update (default: 4)"
    )
    parser.add_argument(
        "--threads", type=int, default=threads, help=f"threads of each trainer (default: all cores, {threads})"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of everything random (default: 42)")
    parser.add_argument("--results_dir", help="folder for speed_ppo.json (default: results are only printed)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # what a process started by this command measures
    arguments = parser.parse_args()
    results = time_updates(arguments) if arguments.worker else compare(arguments)
    if arguments.results_dir:
        write_results(arguments.results_dir, "speed_ppo", results)


def compare(arguments: argparse.Namespace) -> dict:
    """Measure each trainer in a process of its own, and print and return the comparison."""
    check_inputs(arguments)
    torch.set_num_threads(arguments.threads)
    rates = matrix_rates()
    # What bf16 brings is not the trainer's doing, so ours is measured in TRL's precision too.
    workers = ["stock", "ours_fp32", *(["ours_bf16"] if bf16_is_fast() else [])]
    runs = [{worker: measure(worker, arguments.threads) for worker in workers} for _ in range(arguments.repeats)]

    keys = ["episodes_per_second", "peak_memory_mib"]
    if torch.cuda.is_available():
        keys.append("peak_gpu_memory_mib")
    print_table(runs, keys)
    busy = max(found["cores_of_others"] for run in runs for found in run.values())
    print(
        f"{runs[0]['stock']['episodes']} episodes each after {arguments.batch_size} not timed, {arguments.threads} "
        f"threads, medians of {arguments.repeats} (least to most); other processes kept up to {busy:.1f} cores busy; peak: "
        "the most memory the process ever held; loaded: what libraries and models hold before training"
    )
    metrics = {f"{worker}_{key}": middle(runs, worker, key) for worker in workers for key in keys}
    metrics |= {f"{key}_over_stock": statistics.median(over_stock(runs, workers[-1], key)) for key in keys}
    return {
        "metrics": metrics,
        "over_stock": {key: over_stock(runs, workers[-1], key) for key in keys},
        "cores_of_others": {"ppo": [found["cores_of_others"] for run in runs for found in run.values()]},
        "runs": runs,
        "matrix_gflops": rates,
        "settings": {**settings_of(arguments), **ENVIRONMENT, "threads": arguments.threads},
        "machine": machine(),
        "commit": commit(),
    }


def middle(runs: list[dict[str, dict]], worker: str, key: str) -> float:
    """The median of a figure of a trainer."""
    return statistics.median(run[worker][key] for run in runs)


def over_stock(runs: list[dict[str, dict]], worker: str, key: str) -> list[float]:
    """A figure of a trainer over TRL's in the same run."""
    return [run[worker][key] / run["stock"][key] for run in runs]


def check_inputs(arguments: argparse.Namespace) -> None:
    """Raise InputError for a run without the files that are needed, and for sizes that cannot be measured."""
    if arguments.repeats < 1:
        raise InputError(f"--repeats {arguments.repeats}: expected at least 1")
    if arguments.updates < 2:
        raise InputError(f"--updates {arguments.updates}: expected at least 2, because the first is not timed")
    run = Path(arguments.run)
    existing(run / "sft/config.json", "recipes/sft.py")
    existing(run / "reward/config.json", "recipes/reward.py")
    prompts = existing(run / PROMPTS, "data_prep.python_docs")
    count = len(read_conversations(prompts)[0])
    if not 0 < arguments.batch_size <= count:
        raise InputError(f"--batch_size {arguments.batch_size}: expected 1 to {count}, the prompts in {prompts}")


def measure(worker: str, threads: int) -> dict:
    """What a process of this command with the same options measures of one trainer."""
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    environment.pop("ACCELERATE_MIXED_PRECISION", None)  # the one way to give TRL's trainer another precision
    with tempfile.TemporaryDirectory() as folder:
        options = [*sys.argv[1:], "--worker", worker, "--results_dir", folder]
        command = [sys.executable, "-m", "recipes.trainers.ppo.benchmark", *options]
        start, before = time.perf_counter(), seconds_of_others()
        if code := subprocess.run(command, env=environment).returncode:
            # An error was printed by the process itself; one that was killed, perhaps out of memory, prints nothing.
            sys.exit(code if code > 0 else f"error: the process of {worker} was killed by signal {-code}")
        cores = max(0.0, seconds_of_others() - before) / (time.perf_counter() - start)
        return {**read_json(Path(folder) / "speed_ppo.json"), "cores_of_others": cores}


def print_table(runs: list[dict[str, dict]], keys: list[str]) -> None:
    """A row for each trainer: medians, what they are over TRL's in the same run, and that from least to most."""
    print(f"\n{'':10}{'episodes/s':>12}{'over TRL':>22}", end="")
    print(f"{'peak MiB':>10}{'over TRL':>22}{'loaded MiB':>12}{'tokens per answer':>19}")
    for worker in runs[0]:
        found = {key: middle(runs, worker, key) for key in (*keys, "loaded_memory_mib", "length")}
        over = {}
        for key in keys:
            ratios = over_stock(runs, worker, key)
            over[key] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        row = (
            f"{worker:10}{found['episodes_per_second']:12.1f}{over['episodes_per_second']:>22}"
            f"{found['peak_memory_mib']:10.0f}{over['peak_memory_mib']:>22}{found['loaded_memory_mib']:12.0f}"
            f"{found['length']:19.1f}"
        )
        if "peak_gpu_memory_mib" in keys:
            row += f"   GPU: {found['peak_gpu_memory_mib']:.0f} MiB, {over['peak_gpu_memory_mib']} of TRL's"
        print(row)


def settings_of(arguments: argparse.Namespace) -> dict:
    """The arguments that both trainers get."""
    return {
        **SETTINGS,
        "per_device_train_batch_size": arguments.batch_size,
        "local_rollout_forward_batch_size": arguments.batch_size,
        "response_length": arguments.response_length,
        "num_ppo_epochs": arguments.num_ppo_epochs,
        "seed": arguments.seed,
    }


def build_trainer(
    which: str,
    run: str | Path,
    settings: dict,
    updates: int,
    output_dir: str | Path,
    bf16: bool = False,
    optimizer: Callable | None = None,
):
    """TRL's trainer ("stock") or ours ("ours") on a run's models and prompts, the same prompts for both.

    Args:
        settings: arguments of either, see `settings_of`.
        optimizer: called with the parameters of policy and value model; default: the one that the arguments name.

    Raises InputError if the tokenizers of SFT and reward model differ.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl.experimental import ppo as trl_ppo

    from recipes.trainers.ppo import trainer as our_ppo

    run, episodes = Path(run), settings["per_device_train_batch_size"] * updates
    prompts = [row["prompt"] for row in read_prompts(run / PROMPTS, episodes, settings["seed"])]
    (policy, tokenizer), (reference, _) = (load_checkpoint(str(run / "sft")) for _ in range(2))
    (reward, other), (value, _) = (load_checkpoint(str(run / "reward"), reward_model=True) for _ in range(2))
    if other.get_vocab() != tokenizer.get_vocab():
        raise InputError(f"{run}/reward and {run}/sft have different tokenizers: rewards would be noise")
    check_context(tokenizer, policy.config, None)

    if which == "stock":  # ids padded on the left, and an evaluation set, which it does not use without samples
        module, tokenizer.padding_side = trl_ppo, "left"
        dataset = Dataset.from_dict({"input_ids": encode_prompts(tokenizer, prompts)})
        heldout = dataset.select(range(1))
    else:
        module, dataset, heldout = our_ppo, Dataset.from_list([{"prompt": prompt} for prompt in prompts]), None
    args = module.PPOConfig(
        **settings,
        output_dir=str(output_dir),
        total_episodes=episodes,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    set_seed(settings["seed"])  # TRL shuffles by NumPy's global generator
    trainer = module.PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy.float(),
        ref_model=reference.float(),
        reward_model=reward.float(),
        value_model=value.float(),
        train_dataset=dataset,
        eval_dataset=heldout,
        optimizers=(optimizer([*policy.parameters(), *value.parameters()]) if optimizer else None, None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def time_updates(arguments: argparse.Namespace) -> dict:
    """Seconds and peak memory of this process, which trains by one trainer and does nothing else."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    which, _, precision = arguments.worker.partition("_")
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            ends.append(time.perf_counter())
            bar.update()

    with tempfile.TemporaryDirectory() as folder:
        settings, updates = settings_of(arguments), arguments.updates
        trainer = build_trainer(which, arguments.run, settings, updates, folder, bf16=precision == "bf16")
        trainer.add_callback(Clock())
        lengths = count_tokens_of_stock(trainer) if which == "stock" else count_tokens_of_ours(trainer)
        loaded = psutil.Process().memory_info().rss / 2**20
        with tqdm(total=updates, desc=arguments.worker, unit="update") as bar:
            trainer.train()
    episodes, seconds = arguments.batch_size * (updates - 1), ends[-1] - ends[0]
    return {
        "precision": precision or "fp32",
        "episodes": episodes,
        "seconds": seconds,
        "episodes_per_second": episodes / seconds,
        "peak_memory_mib": peak_memory() / 2**20,
        "loaded_memory_mib": loaded,
        "peak_gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        "answer_tokens": sum(lengths),
        "length": sum(lengths) / (arguments.batch_size * updates),
    }


# The trainers sample by different random numbers: a comparison of their times assumes answers of about one length.


def count_tokens_of_stock(trainer) -> list[int]:
    """Tokens of the answers that TRL's trainer samples from now on, up to the first EOS, a number for each call."""
    from trl.experimental.ppo import ppo_trainer as module

    tokens, generate, eos = [], module.batch_generation, trainer.processing_class.eos_token_id

    def counting(model, queries, *rest):
        sampled = generate(model, queries, *rest)
        ended = (sampled[0][:, queries.shape[1] :] == eos).int()
        tokens.append(int((ended.cumsum(1) - ended == 0).sum()))
        return sampled

    module.batch_generation = counting
    return tokens


def count_tokens_of_ours(trainer) -> list[int]:
    """Tokens of the answers that our trainer samples from now on, a number for each rollout."""
    tokens, roll_out = [], trainer.roll_out

    def counting(*inputs, **named):
        rollout = roll_out(*inputs, **named)
        tokens.append(int(rollout.mask.sum()))
        return rollout

    trainer.roll_out = counting
    return tokens


if __name__ == "__main__":
    run_main(main)
