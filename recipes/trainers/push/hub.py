"""The Hub: whether a push can be is told before any work, and all files of one arrive in one commit, or none does."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from transformers.trainer_utils import HubStrategy

from data_prep.common.errors import InputError
from data_prep.common.text import counted

if TYPE_CHECKING:  # slow to import
    from transformers import TrainingArguments

# What an earlier push may have left in the repository of a model: from_pretrained would apply an adapter to a merged one.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter_*", "training_args.bin", "settings.json")


def prepare_push(args: TrainingArguments) -> None:
    """Find out before any work whether the model can be pushed, and keep `hub_token` out of all files.

    Raises InputError if there is no token, the Hub cannot be reached or refuses, and for a push along the way.
    """
    if args.hub_token:
        # Trainers write their arguments into every checkpoint.
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if args.hub_strategy != HubStrategy.END:
        raise InputError(
            f"hub_strategy: found {args.hub_strategy.value}; a recipe pushes its finished model: expected end"
        )
    if args.push_to_hub and int(os.environ.get("RANK", 0)) == 0:
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        try:
            open_repository(name, private=args.hub_private_repo is not False, public="hub_private_repo: false")
        except InputError as error:
            raise InputError(f"push_to_hub: {error}; or leave push_to_hub out") from None


def open_repository(name: str, *, private: bool, public: str, kind: str = "model", create_pr: bool = False) -> str:
    """Make a repository unless it is there, and see that it can be written to. Returns its whole name, owner/name.

    Args:
        public: how the user says that a public repository is meant.
        create_pr: a pull request will do, for which nobody needs to be allowed to write.

    Raises InputError if there is no token, the Hub cannot be reached or refuses, or the repository is public against
    the user's word.
    """
    if huggingface_hub.get_token() is None:
        raise InputError(f"{name}: no token found: log in by `hf auth login`, or set HF_TOKEN")
    try:
        name = huggingface_hub.create_repo(name, repo_type=kind, private=private, exist_ok=True).repo_id
        found = huggingface_hub.repo_info(name, repo_type=kind)
        if not create_pr:
            huggingface_hub.auth_check(name, repo_type=kind, write=True)
    except Exception as error:  # a network, a server, a token, a name: many classes of several libraries
        raise InputError(f"{name}: {reason(error)}") from None
    if private and found.private is False:
        raise InputError(f"{name}: is there and public, and a push is private unless told otherwise: {public}")
    return name


def upload(
    name: str,
    files: dict[str, Path | bytes],
    *,
    kind: str = "model",
    revision: str | None = None,
    create_pr: bool = False,
    tags: tuple[str, ...] = (),
) -> tuple[str, str]:
    """Send files to a repository in one commit, and tag it. Returns (address of what was made, id of the commit).

    Args:
        files: {name there: file here, or its content}.
        revision: the branch, made if it is not there; default: main.

    Raises InputError, which says what has arrived, if any step fails or is interrupted.
    """
    done = before = None
    try:
        if revision and revision != "main" and not revision.startswith("refs/"):
            huggingface_hub.create_branch(name, branch=revision, repo_type=kind, exist_ok=True)
        before = huggingface_hub.repo_info(name, repo_type=kind, revision=revision).sha
        there = huggingface_hub.list_repo_files(name, repo_type=kind, revision=revision) if kind == "model" else []
        old = [path for path in there if path not in files and any(fnmatch(path, each) for each in REPLACED)]
        operations = [CommitOperationDelete(path) for path in old]
        operations += [CommitOperationAdd(path, content) for path, content in files.items()]
        done = huggingface_hub.create_commit(
            name,
            operations,
            commit_message="Upload the model" if kind == "model" else "Upload the data set",
            repo_type=kind,
            revision=revision,
            create_pr=create_pr,
        )
        for tag in tags:
            huggingface_hub.create_tag(name, tag=tag, revision=done.oid, repo_type=kind)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        said = f"{name}: {reason(error)}"
        if done:
            raise InputError(f"{said}; {counted(len(files), 'file')} arrived in {done.oid}, untagged") from None
        raise InputError(f"{said}; {_arrived(name, kind, revision, before)}") from None
    return (done.pr_url or done.commit_url), done.oid


def _arrived(name: str, kind: str, revision: str | None, before: str | None) -> str:
    """What came of a commit that failed: a lost connection may have lost the answer alone."""
    try:
        if before is None or huggingface_hub.repo_info(name, repo_type=kind, revision=revision).sha == before:
            return "no file arrived: they come in one commit"
        return "but all files arrived"
    except (Exception, KeyboardInterrupt, SystemExit):
        return f"whether the files arrived is not known: see {constants.ENDPOINT}/{name}"


def reason(error: BaseException) -> str:
    """What went wrong in one line, without the token that a request may name."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    # "Error while uploading …" does not say what the server said.
    error = next((each for each in causes if getattr(each, "response", None) is not None), error)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401:
        first = "401, the Hub does not know the token: log in by `hf auth login`, or set HF_TOKEN"
    elif code == 403:
        first = f"403, the token may not write there ({first})"
    elif code is None and (isinstance(error, OSError) or type(error).__module__.startswith("httpx")):
        first = f"{constants.ENDPOINT} cannot be reached ({first})"
    token = huggingface_hub.get_token()
    return (first.replace(token, "…") if token else first)[:300]
