"""Pushing a model: which files go, without the paths of this machine, with a card; by a recipe or by push_to_hub.py."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, write_json
from recipes.trainers.push.hub import upload
from recipes.trainers.push.lineage import PUSHED, base_of, looks_like_hub_id, object_in
from recipes.trainers.push.model_card import MARK, model_card

if TYPE_CHECKING:  # slow to import
    from transformers import Trainer

# What a model is made of. Nothing else goes: neither checkpoints, logs and settings nor rows of the user's data.
GOES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_model-*-of-*.safetensors",
    "adapter_model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    "curve.png",
)
# In a config: where this machine had the model or the tokenizer from.
FROM = ("_name_or_path", "name_or_path", "base_model_name_or_path")
OF_THIS_MACHINE = ("is_local", "local_files_only")


def model_files(folder: Path, card: str, base: str | None) -> dict[str, Path | bytes]:
    """{name on the Hub: file here, or its content} of the model or adapter in `folder`, the card first.

    Args:
        base: the id of the base model on the Hub; an adapter's config names it, or nothing.
    """
    files: dict[str, Path | bytes] = {"README.md": card.encode()}
    for pattern in GOES:
        for path in sorted(folder.glob(pattern)):
            files[path.relative_to(folder).as_posix()] = without_paths(path, base)
    return files


def without_paths(path: Path, base: str | None) -> Path | bytes:
    """A file as it goes: a config that names a folder of this machine goes without it."""
    if not path.name.endswith("config.json"):
        return path
    value = object_in(path)
    cleaned = {key: each for key, each in value.items() if key not in OF_THIS_MACHINE}
    for key in FROM:
        if key == "base_model_name_or_path" and key in cleaned:
            cleaned[key] = base
        elif key in cleaned and (Path(str(cleaned[key])).exists() or not looks_like_hub_id(str(cleaned[key]))):
            del cleaned[key]
    return path if cleaned == value else (json.dumps(cleaned, ensure_ascii=False, indent=2) + "\n").encode()


def own_card(folder: Path) -> str | None:
    """The user's own README.md in a folder; None where there is none, or one that a library or a recipe wrote."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    written = (MARK, "- generated_from_trainer", "[More Information Needed]")  # ours, TRL's, PEFT's
    return text if text and not any(each in text for each in written) else None


def write_card(folder: Path, name: str, **told) -> str:
    """Put the model card into `folder` as README.md, unless the user's own is there; returns the one that stands there.

    `told` is what `model_card` takes.
    """
    text = own_card(folder)
    if text is None:
        text = str(model_card(folder, name, **told))
        with atomic_write(folder / "README.md") as file:
            file.write(text)
    return text


def push_model(
    folder: Path,
    name: str,
    card: str,
    base: str | None,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    tags: tuple[str, ...] = (),
) -> None:
    """Upload a model with its card, and write down beside it where it is: models made from it will name that.

    Raises InputError, which says what has arrived, if that fails.
    """
    made, commit = upload(name, model_files(folder, card, base), revision=revision, create_pr=create_pr, tags=tags)
    if not create_pr:
        write_json(folder / PUSHED, {"repo_id": name, "revision": revision or "main", "commit": commit, "tags": tags})
    print(f"pushed to {made}")


def push_trained(trainer: Trainer) -> None:
    """Upload what a recipe has trained. Raises InputError, which says that the model is safe, if that fails."""
    args, name = trainer.args, trainer.hub_model_id
    folder, private = Path(args.output_dir), args.hub_private_repo is not False
    base = base_of(folder)
    card = write_card(folder, name, private=private, base=base)
    try:
        push_model(folder, name, card, base, revision=args.hub_revision)
    except InputError as error:
        again = ["python", "recipes/push_to_hub.py", "--model", str(folder), "--repo_id", name]
        again += ([] if private else ["--public"]) + (["--revision", args.hub_revision] if args.hub_revision else [])
        raise InputError(
            f"the model in {folder} is whole, but not pushed: {error}; try again: {shlex.join(again)}"
        ) from None
