"""Arguments of a recipe: from its YAML and the command line, strict, and with the defaults this machine allows."""

import dataclasses
import difflib
import importlib.util
import os
import re
import sys
import warnings
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from typing import NoReturn, get_type_hints

import huggingface_hub
import psutil
import torch
import transformers
from trl import ModelConfig, TrlParser

from data_prep.common.errors import InputError
from data_prep.common.machine import bf16_is_fast, keep_freed_memory, without_cudnn_attention
from data_prep.common.parallel import cores
from data_prep.common.yaml_file import read_yaml
from recipes.trainers import quiet
from recipes.trainers.batch import keep_global_batch
from recipes.trainers.folders import check_folders
from recipes.trainers.late_peft import import_peft
from recipes.trainers.schedule import check_schedule
from recipes.trainers.sharding import check_muon, check_sharding
from recipes.trainers.values import check_values, typed

# Fields that a library's class has and that nothing would read, in every recipe: {field: what to do instead}.
REFUSED = {
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"), "a recipe always trains, and evaluates if heldout is given"
    ),
    "trust_remote_code": "a recipe never runs code that comes with a model",
    "model_init_kwargs": "see dtype, attn_implementation, model_revision and load_in_4bit",
    "restore_callback_states_from_checkpoint": "a resumed run always knows its alarms and losses of before",
    "use_transformers_paged": "see use_transformers_continuous_batching",
}
# Muon comes with an AdamW of its own, and trains PPO's policy and value model alike.
MUON_REFUSED = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "value_learning_rate",
)
# Idle without held-out data.
EVALUATION = (
    "max_prompts",
    "eval_funcs",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "per_device_eval_batch_size",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)
LORA = [name for name in ModelConfig.__dataclass_fields__ if name.startswith("lora_")]
WITHOUT_LORA = ["merge_adapter", "use_rslora", "use_dora", *LORA]
WITHOUT_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """--help with the docstring as it stands, commands and all, and the default of every option, once."""

    def _get_help_string(self, action: Action) -> str | None:
        told = action.required or "default:" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class StrictParser(TrlParser):
    """TrlParser that reports errors as InputError, in one line, instead of after some hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # the spelling with hyphens
        message = re.sub(r"^argument --(\w+)", r"\1", message)
        raise InputError(message.replace("the following arguments are required: ", "missing: "))


def parse_arguments(*dataclass_types, refused: dict[str, str] | None = None) -> tuple:
    """Instances of `dataclass_types` from `--config x.yaml` and the command line, which wins.

    `bf16` and `use_cpu` default to what the machine has, so that one YAML serves a laptop and a GPU; either can be
    set, and the launcher's precision does not count. Without any argument the recipe's own docstring is shown. Each
    instance has the names of what was given, of all of them, under `given`: the libraries derive other values from these.

    Args:
        refused: fields that this recipe does not read, {field: what to do instead}; `REFUSED` is added.

    Raises InputError for a missing file, an unknown key (a typo would otherwise vanish), a value of the wrong type or out
    of range, a field that would be ignored, a package that is missing, and what the arguments' own checks refuse. Exits
    with 2 without arguments.
    """
    # TRL reports every trainer to the Hub unless told not to. The libraries are imported by now, so that an environment
    # variable would come too late for this process.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    if len(sys.argv) == 1:
        print(sys.modules["__main__"].__doc__, file=sys.stderr)
        print("next: one of the commands above, or --help for every option", file=sys.stderr)
        sys.exit(2)
    parser = StrictParser(
        dataclass_types,
        usage="%(prog)s --config FILE.yaml [--option value ...]",
        description=sys.modules["__main__"].__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,  # an abbreviation would pass the checks of what is given
    )
    _own_options_first(parser, len(dataclass_types[0].__dataclass_fields__))
    path, config, words = _config_and_words()  # first: its `env` may be about the GPU, which the next lines ask
    parser.set_defaults(
        bf16=bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        logging_first_step=True,  # a run shorter than logging_steps would have no loss to show
        hub_strategy="end",
        hub_private_repo=True,
    )
    known = {action.dest for action in parser._actions} - {"help"}
    for name in config:
        if name not in known:
            raise InputError(f"{path}: unknown key {name}{_did_you_mean(name, known)}")
    given = set(config) | _names_of(words, parser)
    for name, instead in {**REFUSED, **(refused or {})}.items():
        if name in given:
            raise InputError(f"{name}: this recipe would ignore it: {instead}")
    check_muon(config, given)
    parser.set_defaults_with_config(**config)
    read, rest = parser.parse_known_args(words)
    if rest:
        raise InputError(f"{rest[0]}: found a word that belongs to no option")
    hints = {name: hint for kind in dataclass_types for name, hint in get_type_hints(kind).items()}
    values = {name: typed(name, value, hints[name]) if name in given else value for name, value in vars(read).items()}
    if "bf16" not in given and values["use_cpu"]:
        values["bf16"] = bf16_is_fast("cpu")
    check_sharding(values, {kind.__name__ for kind in dataclass_types})
    check_values({**values, **dict.fromkeys(refused or {})})
    check_folders(values)
    notes = [_own_precision(values), keep_global_batch(values, given)]
    try:
        with warnings.catch_warnings():
            if "gradient_checkpointing" not in given:  # TRL's own default is what is deprecated
                warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            parsed = tuple(
                kind(**{each.name: values[each.name] for each in dataclasses.fields(kind) if each.init})
                for kind in dataclass_types
            )
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, ImportError, OSError, NotImplementedError) as error:
        raise InputError(" ".join(str(error).split())) from None
    _check_together(parsed, given)
    for each in parsed:
        each.given = given
    if not any(getattr(each, "torch_compile", False) for each in parsed):  # compiled shapes are few
        without_cudnn_attention()
    if any(getattr(each, "use_cpu", False) for each in parsed):
        keep_freed_memory()
    quiet.renamed_in_transformers()
    if not {"load_in_4bit", "load_in_8bit"} & given:
        quiet.four_bit_kernels()
    _use_every_core()
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes the first speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for note in filter(None, notes):
        print(note)
    return parsed


def _own_precision(values: dict) -> str | None:
    """Let `bf16` and `fp16` decide, and not what the launcher says, from which transformers starts; says so if they differ."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if launched is None:
        return None
    own = "fp16" if values.get("fp16") else "bf16" if values["bf16"] else "no"
    os.environ["ACCELERATE_MIXED_PRECISION"] = own
    if launched in ("no", own):
        return None
    return f"mixed precision: {own}, by bf16 and fp16 of the recipe; the launcher's {launched} is not taken"


def _config_and_words() -> tuple[str | None, dict, list[str]]:
    """The file behind --config, what it holds, and the words of the command line without it. Its `env` is set."""
    first = StrictParser([], add_help=False, allow_abbrev=False)
    first.add_argument("--config", action="append", default=[])
    read, words = first.parse_known_args(sys.argv[1:])
    if len(read.config) > 1:
        raise InputError(f"--config: found {len(read.config)} files, expected one: {', '.join(read.config)}")
    path = read.config[0] if read.config else None
    config = read_yaml(path) if path else {}
    for name, value in typed("env", config.pop("env", None) or {}, dict).items():
        os.environ[str(name)] = str(value)
    if isinstance(config.get("resume_from_checkpoint"), bool):  # text elsewhere: last, or a folder
        config["resume_from_checkpoint"] = str(config["resume_from_checkpoint"]).lower()
    return path, config, words


def _names_of(words: list[str], parser: ArgumentParser) -> set[str]:
    """The names of the options among `words`. Raises InputError for one that is not there."""
    options = [word.split("=")[0] for word in words if re.match("--?[A-Za-z]", word)]
    known = {name: action.dest for name, action in parser._option_string_actions.items()}
    for option in options:
        if option not in known:
            raise InputError(f"unknown option {option}{_did_you_mean(option, known)}")
    return {known[option] for option in options}


def _did_you_mean(name: str, known) -> str:
    meant = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {meant[0]}?" if meant else "; see --help for all of them"


def _use_every_core() -> None:
    """Let a process that has the machine to itself use all its cores."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        # `accelerate launch` leaves one core to a process that has the machine to itself; PyTorch alone takes them all.
        torch.set_num_threads(min(psutil.cpu_count(logical=False) or 1, cores()))


def _own_options_first(parser: ArgumentParser, number: int) -> None:
    """Let --help begin with the recipe's own `number` options, in a group of their own; the libraries' come after."""
    listed = [action for action in parser._actions if action.option_strings and action.dest not in ("help", "config")]
    names = list(dict.fromkeys(action.dest.removeprefix("no_") for action in listed))[:number]
    own = parser.add_argument_group("options of this recipe")
    for action in listed:
        if action.dest in names:
            own._group_actions.append(action)
            parser._optionals._group_actions.remove(action)
    parser._optionals.title = "options of transformers, trl and peft"
    parser._action_groups = [own, *(group for group in parser._action_groups if group is not own)]


def _is_set(parsed: tuple, name: str, given: set[str]) -> bool:
    """Whether an option was given, and another value than its default ("no", say, asks for nothing)."""
    if name not in given:
        return False
    owner = next(each for each in parsed if hasattr(each, name))
    return getattr(owner, name) != owner.__dataclass_fields__[name].default


def _check_together(parsed: tuple, given: set[str]) -> None:
    """Raise InputError for fields that are idle beside the others that were given."""
    script = parsed[0]
    args = next((each for each in parsed if isinstance(each, transformers.TrainingArguments)), None)
    if args and args.n_gpu > 1 and args.parallel_mode == transformers.training_args.ParallelMode.NOT_DISTRIBUTED:
        raise InputError(
            f"found {args.n_gpu} GPUs and one process, which would split each batch among them (DataParallel); launch a "
            f"process for each: accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes {args.n_gpu}, "
            "or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    # Older launchers give the rank both ways.
    if args and args.local_rank not in (-1, int(os.environ.get("LOCAL_RANK", -1))):
        raise InputError("local_rank: this recipe would ignore it: launch with accelerate or torchrun, which set it")
    if args and args.report_to:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # slow to import

        for tracker in args.report_to:
            if tracker not in INTEGRATION_TO_CALLBACK:
                known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
                raise InputError(f"report_to: found {tracker}, expected one of {known}")
    if args and args.max_steps > 0:  # epochs are counted in updates when training begins
        check_schedule(args, args.max_steps)
    model_args = next((each for each in parsed if isinstance(each, ModelConfig)), None)
    lora = bool(model_args and model_args.use_peft)
    if not getattr(script, "heldout", True) and (
        idle := [name for name in EVALUATION if _is_set(parsed, name, given)]
    ):
        raise InputError(f"{idle[0]}: it needs heldout")
    if getattr(script, "muon_lr", None) and not lora and (idle := [name for name in MUON_REFUSED if name in given]):
        raise InputError(f"{idle[0]}: Muon would ignore it; leave it out, or set muon_lr to null")
    if "muon_momentum" in given and (lora or not getattr(script, "muon_lr", None)):
        raise InputError("muon_momentum: it needs muon_lr, without LoRA")
    attention = getattr(model_args or script, "attn_implementation", None)
    _check_attention(attention)
    _check_precision(attention, model_args, args)
    if model_args is None:
        return
    if getattr(args, "sync_ref_model", False):
        _check_reference(args, lora)
    if not lora and (idle := [name for name in WITHOUT_LORA if name in given]):
        raise InputError(f"{idle[0]}: it needs use_peft")
    if not model_args.load_in_4bit and (idle := [name for name in WITHOUT_4BIT if name in given]):
        raise InputError(f"{idle[0]}: it needs load_in_4bit")
    if model_args.load_in_4bit or model_args.load_in_8bit:
        if not lora:
            raise InputError("load_in_4bit and load_in_8bit train nothing but LoRA adapters: add use_peft")
        if model_args.dtype == "auto":
            raise InputError("dtype: found auto with quantized weights; expected bfloat16 or float32 to compute in")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("load_in_4bit and load_in_8bit need bitsandbytes: pip install -e '.[quantization]'")


def _check_reference(args: transformers.TrainingArguments, lora: bool) -> None:
    """Raise InputError where `sync_ref_model` has no reference that it could move."""
    if lora:
        raise InputError(
            "sync_ref_model: with use_peft the reference is the policy without its adapter, which cannot follow it; leave "
            "one of them out"
        )
    if getattr(args, "precompute_ref_log_probs", False):
        raise InputError("sync_ref_model: the reference moves, and precompute_ref_log_probs needs one that stays")
    if not args.beta and hasattr(args, "num_generations"):  # RLOO and GRPO load none without a KL
        raise InputError("sync_ref_model: with beta 0 there is no reference; expected a beta above 0")


def _check_attention(name: str | None) -> None:
    """Raise InputError for an attention that is not there."""
    if name in (None, "eager", "sdpa") or "/" in name:  # with a slash it names a kernel of the Hub
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # slow to import
    from transformers.utils import is_flash_attn_2_available

    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.keys()})
    if name not in known:
        raise InputError(f"attn_implementation: found {name!r}; expected one of {', '.join(known)}")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise InputError("attn_implementation: flash_attention_2 is not installed; take sdpa, or install flash-attn")


def _check_precision(
    attention: str | None, model_args: ModelConfig | None, args: transformers.TrainingArguments
) -> None:
    """Raise InputError for flash attention in 32 bits, which its kernels refuse only when they are called.

    Autocast, which training runs in, is not enough for a recipe that has `dtype`: answers, rankings and a merged adapter
    are measured after training without it. Pretraining measures within it.
    """
    if attention is None or "flash" not in attention:  # by this transformers knows it, with kernels of the Hub
        return
    if model_args is not None and (model_args.dtype or "float32") == "float32":
        found, wanted = "dtype is float32", "dtype to bfloat16 or float16"
    elif model_args is None and not (args.bf16 or args.fp16):
        found, wanted = "bf16 is false", "bf16 to true"
    else:
        return
    raise InputError(
        f"attn_implementation: {attention} computes in 16 bits, and {found}: set {wanted}, or attn_implementation to sdpa, "
        "which uses flash kernels by itself"
    )


def model_kwargs(model_args: ModelConfig, quantized: bool = True) -> dict:
    """What every model of a run is loaded with by `from_pretrained`: safetensors only, in `dtype`, perhaps quantized.

    The revision is not among it: it belongs to one checkpoint. With `quantized=False` a model that is not trained stays
    in `dtype`.
    """
    load = {
        "dtype": model_args.dtype or "float32",
        "attn_implementation": model_args.attn_implementation,
        "use_safetensors": True,
    }
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        import_peft()  # which TRL imports here
    from trl import get_quantization_config  # slow to import

    if quantized and (quantization := get_quantization_config(model_args)):
        # Heads, by the names that model families give them: they are trained, or read for the loss, in full.
        quantization.llm_int8_skip_modules = ["lm_head", "embed_out", "score"]
        load["quantization_config"] = quantization
        # On a processor with AVX-512 BF16 bitsandbytes 0.50 packs the weights again for the first evaluation, for kernels
        # that know no gradients: training on after it fails.
        importlib.import_module("bitsandbytes.nn.modules").has_avx512bf16 = lambda: False
    return load
