r"""Push a trained model, an adapter or a data set to the Hub, with a card that is written from what is on disk.

    python recipes/push_to_hub.py --model runs/quickstart/sft --repo_id me/python-assistant --dry_run
    python recipes/push_to_hub.py --model runs/quickstart/sft --repo_id me/python-assistant --tag v1
    python recipes/push_to_hub.py --dataset runs/mine/data/conversations.jsonl --repo_id me/mine --license cc-by-4.0

The card says which stages made the model, from which data and how many rows of it, what was measured (with intervals,
for the Hub too), what was forgotten, what it cannot do, how it is used and how it is made again: from settings.json and
the results beside the folder. `--dry_run` shows it, lists the files that go, and sends nothing. Weights, tokenizer with
chat template and configs go; checkpoints, logs, quarantined rows, and the paths of this machine do not. The repository is
private unless `--public` is given. All files arrive in one commit or none does: after a failure, the same command again.
A README.md of your own in the folder is pushed as it is. The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import existing
from data_prep.common.text import counted, printable
from data_prep.models.loading import check_folder
from recipes.trainers.push.dataset_files import data_files_to_push, dataset_card
from recipes.trainers.push.hub import open_repository, upload
from recipes.trainers.push.lineage import base_of
from recipes.trainers.push.model_card import model_card
from recipes.trainers.push.model_files import model_files, own_card, push_model, write_card


def size_of(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def show(card: str, files: dict[str, Path | bytes], folder: Path, arguments: argparse.Namespace) -> None:
    """Print the card, the files that go with their sizes, what stays in the folder, and where they would go."""
    print(printable(card))
    for name, content in files.items():
        print(f"{size_of(content):16,} bytes  {name}")
    print(f"{sum(map(size_of, files.values())):16,} bytes in {counted(len(files), 'file')}")
    if folder.is_dir() and (stays := sorted(each.name for each in folder.iterdir() if each.name not in files)):
        print(f"not pushed: {', '.join(map(printable, stays))}")
    print(f"nothing was sent; it would go to {arguments.repo_id}, {'public' if arguments.public else 'private'}")


def licenses_of(given: list[str]) -> dict[str, str]:
    """{data: licence} of NAME=LICENCE, …. Raises InputError for another form."""
    parts = [each.rpartition("=") for each in given]
    if wrong := [each for each, part in zip(given, parts, strict=True) if not all(part)]:
        raise InputError(f"--data_license {wrong[0]}: expected the data and its licence, as conversations.json=mit")
    return {name: license for name, _, license in parts}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="folder of a model or an adapter that a recipe has trained")
    what.add_argument("--dataset", type=Path, help="what data_prep.check or clean_corpus wrote, or a file of rows")
    parser.add_argument("--repo_id", required=True, help="the repository, owner/name; made if it is not there")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="only you can see it (default)")
    seen.add_argument("--public", action="store_true", help="everybody can see it (default: private)")
    parser.add_argument("--dry_run", action="store_true", help="show card and files, send nothing (default: push)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request (default: push to the branch)")
    parser.add_argument("--revision", help="branch to push to, made if it is not there (default: main)")
    parser.add_argument("--tag", nargs="+", default=[], metavar="TAG", help="tags for what is pushed (default: none)")
    parser.add_argument("--license", help="licence of what is pushed, as the Hub names it: mit, … (default: none)")
    parser.add_argument(
        "--data_license",
        nargs="+",
        default=[],
        metavar="DATA=LICENCE",
        help="licences of the data that the model learned from, by the names of its files (default: not given)",
    )
    parser.add_argument("--base_model", help="id of the base model on the Hub (default: what the records say)")
    parser.add_argument(
        "--results_dir", help="where evaluations wrote (default: as in training, else beside the model)"
    )
    arguments = parser.parse_args()
    try:
        validate_repo_id(arguments.repo_id)
    except HFValidationError as error:
        raise InputError(f"--repo_id {arguments.repo_id}: {error}") from None
    if arguments.create_pr and (idle := [each for each in ("revision", "tag") if getattr(arguments, each)]):
        raise InputError(f"--{idle[0]}: a pull request goes to main and is not tagged; leave it or --create_pr out")
    if arguments.dataset:
        if idle := [each for each in ("data_license", "base_model", "results_dir") if getattr(arguments, each)]:
            raise InputError(f"--{idle[0]}: it is for a model; with --dataset leave it out")
    else:
        check_folder(str(existing(arguments.model, "a recipe")), "a recipe", adapter=True)
    return arguments


def repository(arguments: argparse.Namespace) -> str:
    """The whole name of the repository, made if it is not there."""
    kind = "model" if arguments.model else "dataset"
    private, pr = not arguments.public, arguments.create_pr
    return open_repository(arguments.repo_id, private=private, public="--public", kind=kind, create_pr=pr)


def push_dataset(arguments: argparse.Namespace, told: dict, to: dict) -> None:
    if own := own_card(arguments.dataset):
        print(f"{arguments.dataset / 'README.md'} is your own: it is pushed as it is")
    card = own or str(dataset_card(arguments.dataset, arguments.repo_id, **told))
    with tempfile.TemporaryDirectory() as temporary:
        files = data_files_to_push(arguments.dataset, card, Path(temporary))
        if arguments.dry_run:
            show(card, files, arguments.dataset, arguments)
        else:
            made, _ = upload(repository(arguments), files, kind="dataset", **to)
            print(f"pushed to {made}")


def push_trained_model(arguments: argparse.Namespace, told: dict, to: dict) -> None:
    folder, base = arguments.model, arguments.base_model or base_of(arguments.model)
    told |= {"base": base, "licenses": licenses_of(arguments.data_license), "results_dir": arguments.results_dir}
    if own := own_card(folder):
        print(f"{folder / 'README.md'} is your own: it is pushed as it is")
    if arguments.dry_run:
        card = own or str(model_card(folder, arguments.repo_id, **told))
        show(card, model_files(folder, card, base), folder, arguments)
    else:
        name = repository(arguments)
        push_model(folder, name, write_card(folder, name, **told), base, **to)


def main() -> None:
    arguments = parse_arguments()
    told = {"private": not arguments.public, "license": arguments.license}
    to = {"revision": arguments.revision, "create_pr": arguments.create_pr, "tags": tuple(arguments.tag)}
    push = push_dataset if arguments.dataset else push_trained_model
    push(arguments, told, to)


if __name__ == "__main__":
    run_main(main)
