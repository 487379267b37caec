"""How fast is it here? Every speed is a fraction of the machine's matrix rate, so that figures compare between machines.

    python -m eval.speed matrix
    python -m eval.speed shakespeare --data ../shared/data/tinyshakespeare.txt
    python -m eval.speed ppo --run runs/quickstart
    python -m eval.speed data --data ../shared/data/belle_chat_800.json

`matrix` prints the rate of a 1024³ product. `shakespeare` trains nanoGPT's small CPU model (4 layers, 128 wide, context
64, characters) by recipes/configs/shakespeare and takes the seconds of the whole process to nanoGPT's validation loss of
1.8857, which nanoGPT's own CPU recipe reached in 102 s where the fp32 product ran at 190 GFLOP/s. `ppo` trains a run's
assistant against its reward model by TRL 1.12's own PPO trainer and by recipes/trainers/ppo/trainer.py, each in a process
of its own, and checks that both optimise the same objective. `data` is eval/benchmarks/data.py. Run them on a
quiet machine: they are benchmarks, and no test looks at their times.
"""

import argparse
import inspect
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import torch

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing, read_json, write_results
from data_prep.common.machine import bf16_is_fast, matrix_rate
from data_prep.common.parallel import cores
from data_prep.common.provenance import commit, machine
from data_prep.models.loading import check_context
from data_prep.readers.conversations import read_conversations
from eval.benchmarks import data as data_speed

NANOGPT_LOSS, NANOGPT_SECONDS, NANOGPT_RATE = 1.8857, 102.0, 190e9
TRAINING_BYTES = 1_003_854  # nanoGPT's split of tinyshakespeare: the first 90 % train, the rest validates

# Of both PPO trainers. TRL's ignores max_grad_norm, so ours does not clip either.
PPO_SETTINGS = {
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
# Of every process that is measured: offline, and memory kept between steps, as in recipes/steps.sh.
PPO_ENVIRONMENT = {
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
# TRL puts the score one place after an answer's last token, and lets the value of that place count, by this line alone.
TRL_LINE, TRL_LINE_AS_OURS = "sequence_lengths_p1 = sequence_lengths + 1", "sequence_lengths_p1 = sequence_lengths"
LOSS_ROUNDING = 1e-4  # by which two losses of the same answers, or a ratio and 1, may differ
GRADIENT_ROUNDING = 1e-3  # by which two gradients may, as a share of their norm


def matrix(arguments) -> dict:
    """GFLOP/s in fp32 and, where it is a gain, bf16."""
    rates = {"fp32": matrix_rate(torch.float32) / 1e9}
    if bf16_is_fast():
        rates["bf16"] = matrix_rate(torch.bfloat16) / 1e9
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} GFLOP/s in a 1024³ matrix product, {torch.get_num_threads()} threads")
    return {"metrics": rates}


def shakespeare(arguments) -> dict:
    """Seconds of the pretraining process to nanoGPT's loss, over nanoGPT's at the same matrix rate."""
    text, root = existing(arguments.data).read_bytes(), Path(__file__).parents[1]
    configs = root / "recipes" / "configs" / "shakespeare"
    with tempfile.TemporaryDirectory() as folder:  # the paths in the YAMLs are relative: a run of the user's stays
        run = Path(folder) / "runs" / "shakespeare"
        (run / "data").mkdir(parents=True)
        (run / "data/train.txt").write_bytes(text[:TRAINING_BYTES])
        (run / "data/val.txt").write_bytes(text[TRAINING_BYTES:])

        def python(*command) -> None:
            subprocess.run([sys.executable, *map(str, command)], cwd=folder, check=True)

        tokenizer = ["--corpus", run / "data/train.txt", "--vocab_size", 262, "--output_dir", run / "tokenizer"]
        python("-m", "data_prep.train_tokenizer", *tokenizer)
        python("-m", "data_prep.mix_corpus", "--config", configs / "mix.yaml")
        rate = matrix_rate(torch.float32, seconds=2.0)
        start = time.perf_counter()
        python(root / "recipes" / "pretrain.py", "--config", configs / "pretrain.yaml")
        seconds = time.perf_counter() - start
        figures = read_json(run / "base/pretrain.json")["metrics"]
    # a character is a byte here, so bits per byte are the loss in another unit
    loss = figures["bits_per_byte"] * math.log(2)
    ratio = seconds * (rate / NANOGPT_RATE) / NANOGPT_SECONDS
    reached = "reached" if loss <= NANOGPT_LOSS else "NOT reached"
    print(
        f"validation loss {loss:.4f} ({reached}: nanoGPT's is {NANOGPT_LOSS}) in {seconds:.1f} s of the whole process, "
        f"matrix rate {rate / 1e9:.0f} GFLOP/s; over nanoGPT's {NANOGPT_SECONDS:.0f} s at the same matrix rate: {ratio:.2f}"
    )
    figures = {"loss": loss, "whole_process_seconds": seconds, "fp32_gflops": rate / 1e9, "over_nanogpt": ratio}
    return {"metrics": figures}


def ppo(arguments) -> dict:
    """Episodes/s and peak memory of TRL's own PPO trainer and of ours, and whether both optimise the same objective."""
    if arguments.updates < 2:
        raise InputError(f"--updates {arguments.updates}: expected at least 2, because the first is not timed")
    if arguments.worker:
        return compare_objectives(arguments) if arguments.worker == "objective" else time_updates(arguments)
    for path, made_by in (
        ("sft/config.json", "recipes/sft.py"),
        ("reward/config.json", "recipes/reward.py"),
        ("data/prompts_ppo.json", "data_prep.python_docs"),
    ):
        existing(Path(arguments.run) / path, made_by)
    prompts = Path(arguments.run) / "data/prompts_ppo.json"
    count = len(read_conversations(prompts)[0])
    if not 0 < arguments.batch_size <= count:
        raise InputError(f"--batch_size {arguments.batch_size}: expected 1 to {count}, the prompts in {prompts}")

    load = psutil.getloadavg()[0]  # of others: a machine shared with them has no times to compare
    torch.set_num_threads(arguments.threads)
    rates = matrix(arguments)["metrics"]
    environment = {**os.environ, **PPO_ENVIRONMENT, "OMP_NUM_THREADS": str(arguments.threads)}
    environment.pop("ACCELERATE_MIXED_PRECISION", None)  # the one way to give TRL's trainer another precision

    def process(worker: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "eval.speed", *sys.argv[1:], "--worker", worker, "--results_dir", folder]
            if code := subprocess.run(command, env=environment).returncode:
                # What it raised it has said itself; a process that was ended for want of memory says nothing.
                sys.exit(code if code > 0 else f"error: the process of {worker} was ended by signal {-code}")
            return read_json(Path(folder) / "speed_ppo.json")

    objective = process("objective")
    # What bf16 brings is not the trainer's doing, so ours is measured in TRL's precision too.
    workers = ["stock", "ours_fp32", *(["ours_bf16"] if bf16_is_fast() else [])]
    found = {worker: process(worker) for worker in workers}

    stock, fastest = found["stock"], found[workers[-1]]
    keys = ["episodes_per_second", "peak_memory_mib"] + ["peak_gpu_memory_mib"] * torch.cuda.is_available()
    print(f"\n{'':10}{'episodes/s':>12}{'over TRL':>10}", end="")
    print(f"{'peak MiB':>10}{'over TRL':>10}{'loaded MiB':>12}{'tokens per answer':>19}")
    for worker, figures in found.items():
        over = {key: figures[key] / stock[key] for key in keys}
        print(
            f"{worker:10}{figures['episodes_per_second']:12.1f}{over['episodes_per_second']:10.2f}"
            f"{figures['peak_memory_mib']:10.0f}{over['peak_memory_mib']:10.2f}{figures['loaded_memory_mib']:12.0f}"
            f"{figures['mean_answer_length']:19.1f}"
            + (f"   GPU: {figures[keys[2]]:.0f} MiB, {over[keys[2]]:.2f} of TRL's" if len(keys) > 2 else "")
        )
    print(
        f"{stock['episodes']} episodes each after {arguments.batch_size} not timed, {arguments.threads} threads, load "
        f"average of the machine before {load:.1f}; peak: the most the process ever held; loaded: what libraries and models "
        "alone hold"
    )
    print(f"the same objective within rounding: {'yes' if objective['same_objective'] else 'NO'}, see above")

    metrics = {f"{worker}_{key}": figures[key] for worker, figures in found.items() for key in keys}
    metrics |= {f"{key}_over_stock": fastest[key] / stock[key] for key in keys}
    metrics |= {"same_objective": objective["same_objective"]}
    return {
        "metrics": metrics,
        "processes": found,
        "objective": objective,
        "matrix_gflops": rates,
        "load_average_before": load,
        "settings": {**ppo_settings(arguments), **PPO_ENVIRONMENT, "threads": arguments.threads},
        "machine": machine(),
        "commit": commit(),
    }


def ppo_settings(arguments) -> dict:
    """The arguments that both trainers get."""
    return {
        **PPO_SETTINGS,
        "per_device_train_batch_size": arguments.batch_size,
        "local_rollout_forward_batch_size": arguments.batch_size,
        "response_length": arguments.response_length,
        "num_ppo_epochs": arguments.num_ppo_epochs,
        "seed": arguments.seed,
    }


def ppo_trainer(arguments, which: str, output_dir: str, batches: int, bf16: bool = False, optimizer=None, **changes):
    """TRL's trainer ("stock") or ours ("ours") on the run's models and the same `batches` batches of prompts.

    `optimizer` is called with the parameters of policy and value model; without, the one that the arguments name.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl.experimental import ppo as trl_ppo

    from data_prep.models.loading import load_checkpoint
    from data_prep.readers.prompts import read_questions
    from data_prep.tokens.chat_encoder import encode_prompts
    from recipes.trainers.ppo import trainer as our_ppo

    run = Path(arguments.run)
    rows = read_questions(run / "data/prompts_ppo.json", arguments.batch_size * arguments.updates, arguments.seed)
    prompts = [row["prompt"] for row in rows][: arguments.batch_size * batches]
    (policy, tokenizer), (reference, _) = (load_checkpoint(str(run / "sft")) for _ in range(2))
    (reward, other), (value, _) = (load_checkpoint(str(run / "reward"), reward_model=True) for _ in range(2))
    if other.get_vocab() != tokenizer.get_vocab():
        raise InputError(f"{run}/reward and {run}/sft have different tokenizers: rewards would be noise")
    check_context(tokenizer, policy.config, None)
    ids = encode_prompts(tokenizer, prompts)

    module = trl_ppo if which == "stock" else our_ppo
    args = module.PPOConfig(
        **{**ppo_settings(arguments), **changes},
        output_dir=output_dir,
        total_episodes=arguments.batch_size * batches,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if which == "stock":  # ids padded on the left, and an evaluation set, which it never looks at without samples
        tokenizer.padding_side = "left"
        dataset = Dataset.from_dict({"input_ids": ids})
        evaluation = dataset.select(range(1))
    else:
        dataset, evaluation = Dataset.from_list([{"prompt": prompt} for prompt in prompts]), None
    models = [model.float() for model in (policy, reference, reward, value)]
    set_seed(arguments.seed)  # TRL shuffles by NumPy's global generator
    trainer = module.PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=models[0],
        ref_model=models[1],
        reward_model=models[2],
        value_model=models[3],
        train_dataset=dataset,
        eval_dataset=evaluation,
        optimizers=(optimizer([*policy.parameters(), *value.parameters()]) if optimizer else None, None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def time_updates(arguments) -> dict:
    """Seconds and peak memory of this process, which trains by one trainer and does nothing else."""
    import resource  # not on Windows

    from tqdm.auto import tqdm
    from transformers import TrainerCallback
    from trl.experimental.ppo import ppo_trainer as trl_module

    which, _, precision = arguments.worker.partition("_")
    ends, tokens = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            ends.append(time.perf_counter())
            bar.update()

    with tempfile.TemporaryDirectory() as folder:
        trainer = ppo_trainer(arguments, which, folder, arguments.updates, bf16=precision == "bf16")
        trainer.add_callback(Clock())
        bar = tqdm(total=arguments.updates, desc=arguments.worker, unit="update")
        # The two draw different random numbers; a comparison of their times supposes answers of about one length.
        if which == "stock":
            generate, eos = trl_module.batch_generation, trainer.processing_class.eos_token_id

            def drawing(model, queries, *rest):
                drawn = generate(model, queries, *rest)
                ended = (drawn[0][:, queries.shape[1] :] == eos).int()
                tokens.append(int((ended.cumsum(1) - ended == 0).sum()))  # up to the first eos
                return drawn

            trl_module.batch_generation = drawing
        else:
            roll_out = trainer.roll_out

            def drawing(*inputs, **named):
                rollout = roll_out(*inputs, **named)
                tokens.append(int(rollout.mask.sum()))
                return rollout

            trainer.roll_out = drawing
        loaded = psutil.Process().memory_info().rss / 2**20
        trainer.train()
        bar.close()
    episodes, seconds = arguments.batch_size * (arguments.updates - 1), ends[-1] - ends[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return {
        "precision": precision or "fp32",
        "episodes": episodes,
        "seconds": seconds,
        "episodes_per_second": episodes / seconds,
        "peak_memory_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "loaded_memory_mib": loaded,
        "peak_gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        "answer_tokens": sum(tokens),
        "mean_answer_length": sum(tokens) / (arguments.batch_size * arguments.updates),
    }


def compare_objectives(arguments) -> dict:
    """What both trainers log of one update of one epoch in fp32, and their gradients, on the answers that ours draws.

    Both go through their own `train()`; TRL's is given the answers where it would draw some. It differs from ours on
    purpose in where the score sits and in which values count, both by one line of its code (`TRL_LINE`). So it runs on
    these answers twice, as it is and with that line changed, and once on answers of its own, for its ratio.
    """
    from trl.experimental.ppo import ppo_trainer as trl_module

    rollouts = []

    def one_update(which: str, train) -> dict:
        """Ratio, losses and gradient (policy's, value model's) that `train` leaves; the weights stay as they were."""
        gradients, parameters = [], []

        def optimizer(weights):
            parameters.extend(weights)
            still = torch.optim.SGD(weights, lr=0.0)
            still.register_step_pre_hook(keep)
            return still

        def keep(*_) -> None:
            if not gradients and any(weight.grad is not None for weight in parameters):
                gradients.extend(torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in parameters)

        with tempfile.TemporaryDirectory() as folder:
            trainer = ppo_trainer(arguments, which, folder, 1, optimizer=optimizer, num_ppo_epochs=1)
            wrapper = trainer.accelerator.unwrap_model(trainer.model)
            train(trainer)
        logged = {key: value for row in trainer.state.log_history for key, value in row.items()}
        names = ("val/ratio", "policy/approxkl_avg", "loss/policy_avg", "loss/value_avg") if which == "stock" else (
            "policy/ratio", "policy/approxkl", "loss/policy", "loss/value")  # fmt: skip
        ratio, approxkl, policy_loss, value_loss = (logged[name] for name in names)
        size = len(list(wrapper.policy.parameters()))
        return {
            "ratio": ratio,
            "log_ratio_rms": math.sqrt(2 * approxkl),  # a mean of ratios could hide some above 1 and some below
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "gradients": [
                torch.cat([part.flatten() for part in half]) for half in (gradients[:size], gradients[size:])
            ],
        }

    def drawing(trainer) -> None:
        update = trainer.update

        def keeping(model, rollout):
            rollouts.append(rollout)
            return update(model, rollout)

        trainer.update = keeping
        trainer.train()

    def given(train):
        """`train` of TRL's on the answers that ours drew."""
        (rollout,) = rollouts
        answers: dict[tuple, list] = {}
        for row, mask in enumerate(rollout.mask):
            prompt = rollout.input_ids[row, : int(rollout.positions[row, 0]) + 1]
            answers.setdefault(tuple(prompt.tolist()), []).append(rollout.answers[row][mask])

        def batch_generation(model, queries, size, pad_token_id, generation_config):
            drawn = [answers[tuple(row[row != pad_token_id].tolist())].pop() for row in queries]
            responses = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True, padding_value=pad_token_id)
            both = torch.cat([queries, responses], 1)
            logits = trl_module.forward(model, both, pad_token_id).logits[:, queries.shape[1] - 1 : -1]
            return both, logits / generation_config.temperature

        def run(trainer) -> None:
            own, trl_module.batch_generation = trl_module.batch_generation, batch_generation
            train(trainer)
            trl_module.batch_generation = own

        return run

    def changed(trainer) -> None:
        source = textwrap.dedent(inspect.getsource(type(trainer).train))
        if source.count(TRL_LINE) != 1:
            raise RuntimeError(f"expected {TRL_LINE!r} once in TRL's PPOTrainer.train: is this TRL 1.12?")
        scope = {}
        # The original's text, so that nothing else can differ from it: a copy here would have to be checked against it.
        exec(source.replace(TRL_LINE, TRL_LINE_AS_OURS), vars(trl_module), scope)
        scope["train"](trainer)

    def unchanged(trainer) -> None:
        trainer.train()

    found = {"ours": one_update("ours", drawing)}
    found["stock_own_answers"] = one_update("stock", unchanged)
    found["stock"] = one_update("stock", given(unchanged))
    found["stock_adjusted"] = one_update("stock", given(changed))
    (rollout,) = rollouts
    tokens = int(rollout.mask.sum())

    titles = {
        "ours": "ours",
        "stock_adjusted": "TRL's, its score's place and its values as ours",
        "stock": "TRL's as it is",
        "stock_own_answers": "TRL's as it is, on answers it drew itself",
    }
    print(
        f"\nfirst epoch, {len(rollout.mask)} answers of {tokens / len(rollout.mask):.1f} tokens that ours drew, fp32"
    )
    print(f"{'':50}{'ratio':>10}{'rms of its log':>16}{'policy loss':>14}{'value loss':>12}")
    for name, title in titles.items():
        figures = found[name]
        print(f"{title:50}{figures['ratio']:10.6f}{figures['log_ratio_rms']:16.1e}", end="")
        print(f"{figures['policy_loss']:14.7f}{figures['value_loss']:12.6f}")
    print(f"  as ours: this line of TRL's `train` replaced and no other: `{TRL_LINE_AS_OURS}`")
    print(
        "  the policy loss is 0 but for rounding, because advantages are whitened over these tokens: see its gradient"
    )

    ours, adjusted = found["ours"], found["stock_adjusted"]
    apart = {key: abs(ours[key] - adjusted[key]) for key in ("policy_loss", "value_loss")}
    # TRL whitens by a variance over n - 1, ours over n tokens: so much longer are our advantages.
    whitening = math.sqrt(tokens / (tokens - 1)) - 1
    lengths = (1 + whitening, 1.0)
    for part, mine, theirs, length in zip(
        ("policy", "value"), ours["gradients"], adjusted["gradients"], lengths, strict=True
    ):
        apart[f"{part}_gradient"] = ((mine / length - theirs).norm() / theirs.norm()).item()
    strays = max(max(abs(figures["ratio"] - 1), figures["log_ratio_rms"]) for figures in found.values())
    same = all(each <= LOSS_ROUNDING for each in (strays, apart["policy_loss"], apart["value_loss"])) and all(
        each <= GRADIENT_ROUNDING for each in (apart["policy_gradient"], apart["value_gradient"])
    )
    verdict = (
        f"{'the same objective' if same else 'NOT THE SAME OBJECTIVE'} as TRL's with its score's place and values as ours: "
        f"policy losses {apart['policy_loss']:.0e} apart, value losses {apart['value_loss']:.0e}, ratios {strays:.0e} "
        f"from 1 ({LOSS_ROUNDING:.0e} allowed); gradients {apart['policy_gradient']:.0e} (policy, but for "
        f"{whitening:.2%}: TRL whitens over n - 1) and {apart['value_gradient']:.0e} (value) of their norm "
        f"({GRADIENT_ROUNDING:.0e} allowed)"
    )
    print(verdict)
    for figures in found.values():
        del figures["gradients"]
    return {
        "first_epoch": found,
        "answer_tokens": tokens,
        "same_objective": same,
        "difference": apart,
        "verdict": verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("matrix", matrix), ("shakespeare", shakespeare), ("ppo", ppo), ("data", data_speed.data)):
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--results_dir", help="where the figures go; without, they are printed only")
        if name == "shakespeare":
            command.add_argument("--data", default="../shared/data/tinyshakespeare.txt", help="tinyshakespeare.txt")
        if name == "data":
            data_speed.add_arguments(command)
        if name == "ppo":
            threads = min(psutil.cpu_count(logical=False) or 1, cores())
            command.add_argument("--run", default="runs/quickstart", help="its sft, reward and data/prompts_ppo.json")
            command.add_argument("--updates", type=int, default=8, help="by each trainer; the first is not timed")
            command.add_argument("--batch_size", type=int, default=64, help="answers of an update")
            command.add_argument("--response_length", type=int, default=48, help="tokens")
            command.add_argument("--num_ppo_epochs", type=int, default=4)
            command.add_argument("--threads", type=int, default=threads, help="all cores without")
            command.add_argument("--seed", type=int, default=42)
            command.add_argument("--worker", help=argparse.SUPPRESS)  # what a process started by this command does
    arguments = parser.parse_args()
    results = arguments.function(arguments)
    if arguments.results_dir:
        write_results(arguments.results_dir, f"speed_{arguments.command}", results)


if __name__ == "__main__":
    run_main(main)
