"""Who may import whom: the folders of data_prep never import the commands above them, nor recipes or eval."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "data_prep"
FILES = sorted(str(path.relative_to(FOLDER.parent)) for path in FOLDER.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file):
    forbidden = {"recipes", "eval"}
    if file.count("/") > 1:  # in a folder
        forbidden |= {f"data_prep.{path.stem}" for path in FOLDER.glob("*.py")}
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER.parent / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not {name for name in names if name in forbidden or name.split(".")[0] in forbidden}
