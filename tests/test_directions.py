"""Who may import whom, read off the sources, and what a recipe looks like.

recipes → recipes/trainers, data_prep; eval → data_prep; data_prep imports neither. What is in a folder imports none of the
commands above it.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("recipes", "data_prep", "eval")
FORBIDDEN = {"recipes": {"eval"}, "data_prep": {"recipes", "eval"}, "eval": {"recipes"}}
FILES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "recipes").glob("[!_]*.py"))
RECIPES = [path for path in SCRIPTS if path.stem not in ("push_to_hub", "plan")]  # what trains
SECTIONS = ("Tokenizer", "Dataset", "Model", "Trainer", "Train", "Evaluate", "Save")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at its top or later; of `from a import b` both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_sources_are_found():
    assert len(FILES) > 80 and len(RECIPES) == 9


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file):
    package = file.split("/")[0]
    forbidden = set(FORBIDDEN[package])
    if file.count("/") > 1:  # in a folder
        forbidden |= {f"{package}.{path.stem}" for path in (ROOT / package).glob("[!_]*.py")}
    if package == "recipes":
        # A sister could be imported by its bare name too: `recipes/` stands first on the path of a recipe that is run.
        forbidden |= {name for path in SCRIPTS for name in (path.stem, f"recipes.{path.stem}")}
    names = imported(ROOT / file)
    assert not {name for name in names if name in forbidden or name.split(".")[0] in FORBIDDEN[package]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_order_of_all(path):
    text = path.read_text(encoding="utf-8")
    (main,) = [node for node in ast.parse(text).body if getattr(node, "name", "") == "main"]
    assert main.end_lineno - main.lineno < 100 and "fmt: skip" not in text and "fmt: off" not in text
    found = [line.removeprefix("    # ") for line in text.splitlines()[main.lineno :] if line.startswith("    # ")]
    assert tuple(line for line in found if line in SECTIONS) == SECTIONS
