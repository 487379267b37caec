"""What a command imports before it has looked at its options, and what importing and ending cost."""

import gc
import importlib
import subprocess
import sys

from helpers.recipes import ENVIRONMENT, ROOT

from data_prep.common.imports import collector_paused

COMMANDS = (
    *(
        f"eval.{name}"
        for name in ("answers", "perplexity", "report", "reward_accuracy", "reward_gate", "run", "win_rate")
    ),
    *(f"data_prep.{name}" for name in ("mix_corpus", "python_docs", "rank_completions", "sample_completions")),
    "data_prep.train_tokenizer",
)
SLOW = (
    "torch",
    "transformers",
    "datasets",
    "pyarrow",
    "pandas",
    "matplotlib",
    "evaluate",
    "accelerate",
    "trl",
    "peft",
)

# A cycle that nobody refers to any more: Python's last search before the process ends would find it.
CYCLE = """
import atexit
from data_prep.common.errors import run_main

class Node:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("searched")

def main():
    atexit.register(print, "at exit")
    Node()
    try:
        print("done")
    finally:
        print("finally")

run_main(main)
"""


def run(program: str) -> tuple[str, str]:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return done.stdout, done.stderr


def test_no_command_of_the_quickstart_imports_what_is_slow_before_it_has_read_its_options():
    program = f"import sys, {', '.join(COMMANDS)}\nprint([name for name in {SLOW} if name in sys.modules])"
    assert run(program) == ("[]\n", "")


def test_a_command_ends_without_a_last_search_for_cycles_but_with_all_that_is_to_happen_at_its_end():
    assert run(CYCLE) == ("done\nfinally\nat exit\n", "")


def test_a_command_starts_the_collector_seldom_and_leaves_what_is_imported_out_of_its_rounds():
    program = (
        "import gc\nfrom data_prep.common.errors import run_main\nbefore = len(gc.get_objects())\n"
        "def main():\n    frozen, made = gc.get_freeze_count(), [[] for _ in range(1000)]\n    run_main(lambda: made)\n"
        "    print(gc.get_threshold()[0], frozen >= before, gc.get_freeze_count() < frozen + 500)\nrun_main(main)"
    )
    assert run(program) == ("10000 True True\n", "")


def test_the_collector_rests_while_libraries_are_imported_and_leaves_them_alone_afterwards():
    frozen = gc.get_freeze_count()
    try:
        with collector_paused():
            assert not gc.isenabled()
            made = [[] for _ in range(1000)]
        assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(made)
    finally:
        gc.unfreeze()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_peft_is_imported_without_bitsandbytes_which_can_be_imported_afterwards(tmp_path, monkeypatch):
    from recipes.trainers.late_peft import import_peft

    (tmp_path / "bitsandbytes.py").write_text("")
    (tmp_path / "peft.py").write_text("try:\n    import bitsandbytes\nexcept ImportError:\n    bitsandbytes = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("peft", "bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    import_peft()
    assert sys.modules["peft"].__file__ == str(tmp_path / "peft.py") and sys.modules["peft"].bitsandbytes is None
    assert importlib.import_module("bitsandbytes").__file__ == str(tmp_path / "bitsandbytes.py")
    for name in ("peft", "bitsandbytes"):
        del sys.modules[name]  # the test's own; the real ones come back
