"""What the Makefile installs, and when: on a PATH of its own, with a python and a uv that note what they are asked."""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), flags=re.M).group()
TOOLS = ("make", "sh", "bash", "cp", "cat", "grep", "mkdir", "sed", "touch")

# It runs `-c` by the real Python, and fails to install whatever $BROKEN names.
PYTHON = f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} "$@"
[ "$3" = --version ] && exit 0
echo "${{0##*/fakes/}} $*" >> "$LOG"
[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
case "$*" in *"${{BROKEN:-nothing}}"*) exit 1 ;; esac
exit 0
"""
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
[ "$1" = venv ] && mkdir -p "$6/bin" && cp "$FAKES/python3" "$6/bin/python"
exit 0
"""


class Clone:
    """A folder with the Makefile and what it reads, in which make sees no programs but the fakes and a few tools."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fakes, self.log = folder / "clone", folder / "fakes", folder / "log"
        (self.folder / "recipes").mkdir(parents=True)
        self.fakes.mkdir()
        for name in ("Makefile", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder)
        for name in ("quickstart", "compare", "adapt"):
            (self.folder / "recipes" / f"{name}.sh").write_text(f'echo "{name} with $(command -v python)"\n')
        for name in TOOLS:
            (self.fakes / name).symlink_to(shutil.which(name))
        self.fake("python3", PYTHON)
        self.fake("nvidia-smi", "#!/bin/sh\nexit 9\n")
        self.fake("uname", "#!/bin/sh\necho Linux\n")

    def fake(self, name: str, script: str) -> None:
        (self.fakes / name).write_text(script)
        (self.fakes / name).chmod(0o755)

    def make(self, *arguments: str, code: int = 0, **environment: str) -> tuple[list[str], str]:
        """What make has called, and what it has printed."""
        self.log.write_text("")
        environment |= {"PATH": str(self.fakes), "LOG": str(self.log), "FAKES": str(self.fakes), "no_proxy": "*"}
        done = subprocess.run(
            ["make", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code or (code and done.returncode), done.stdout + done.stderr
        calls = self.log.read_text().replace(f"{self.folder}/", "").splitlines()
        return [re.sub(r"^\S*/bin/python", "venv-python", call) for call in calls], done.stdout + done.stderr


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path)


@pytest.fixture
def index(tmp_path):
    """An address that answers as an index does; it has the pinned version of torch."""
    page = tmp_path / "index" / "torch" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="{TORCH.replace("==", "-")}%2Bcpu-cp311-cp311-linux_x86_64.whl">a wheel</a>')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "index")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


VENV = "python3 -m venv .venv"
ALL = "venv-python -m pip install -r requirements.txt"


def cpu_build(index: str) -> str:
    return f"venv-python -m pip install {TORCH} --index-url {index}"


def test_without_a_gpu_the_cpu_build_as_pinned_is_installed_first(clone, index):
    calls, said = clone.make("install", f"TORCH_INDEX={index}")
    assert calls == [VENV, cpu_build(index), ALL]
    assert f"{TORCH}, the CPU build: there is no NVIDIA GPU" in said


def test_with_a_gpu_the_usual_build_is(clone, index):
    clone.fake("nvidia-smi", "#!/bin/sh\nexit 0\n")
    calls, said = clone.make("install", f"TORCH_INDEX={index}")
    assert calls == [VENV, ALL]
    assert f"{TORCH} with CUDA: there is an NVIDIA GPU" in said


def test_on_a_mac_the_usual_build_is_the_one_without_cuda(clone, index):
    clone.fake("uname", "#!/bin/sh\necho Darwin\n")
    assert clone.make("install", f"TORCH_INDEX={index}")[0] == [VENV, ALL]


def test_a_machine_without_nvidia_smi_has_no_gpu(clone, index):
    (clone.fakes / "nvidia-smi").unlink()
    assert clone.make("install", f"TORCH_INDEX={index}")[0] == [VENV, cpu_build(index), ALL]


@pytest.mark.parametrize("why", ["no such port", "no such version"])
def test_an_index_that_does_not_help_is_passed_over_with_a_line(clone, index, why):
    if why == "no such version":
        (clone.folder / "requirements.txt").write_text("torch==0.0.1\n")
        name, torch = index, "torch==0.0.1"
    else:
        name, torch = "http://127.0.0.1:9", TORCH
    calls, said = clone.make("install", f"TORCH_INDEX={name}")
    assert calls == [VENV, ALL]
    assert f"{torch} from the usual index: {name} does not answer, or lacks it" in said


def test_an_empty_index_means_the_usual_one(clone):
    assert clone.make("install", "TORCH_INDEX=")[0] == [VENV, ALL]


def test_python_the_folder_and_the_index_can_be_set(clone, index):
    clone.fake("python9", PYTHON)
    settings = (f"TORCH_INDEX={index}", "PYTHON=python9", "VENV=elsewhere", "INDEX=http://mirror/simple")
    calls, _ = clone.make("install", *settings)
    assert calls == [
        "python9 -m venv elsewhere",
        cpu_build(index),
        "venv-python -m pip install --index-url http://mirror/simple -r requirements.txt",
    ]
    assert (clone.folder / "elsewhere" / "installed").exists() and not (clone.folder / ".venv").exists()


def test_a_python_that_is_too_old_is_refused_before_anything_is_made(clone):
    clone.fake("python3", PYTHON.replace(f"exec {sys.executable}", "exit 1 #"))
    calls, said = clone.make("install", code=2)
    assert calls == [] and "error: python3 is not Python 3.11 or newer" in said


def test_uv_is_used_where_it_is_installed(clone, index):
    clone.fake("uv", UV)
    calls, _ = clone.make("test", f"TORCH_INDEX={index}", "INDEX=http://mirror/simple")
    python = "uv pip install --python .venv/bin/python"
    assert calls == [
        "uv venv --seed --allow-existing --python python3 .venv",
        f"{python} {TORCH} --index-url {index}",
        f"{python} --index-url http://mirror/simple -r requirements.txt",
        f"{python} --index-url http://mirror/simple -e .[test]",
        "venv-python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder",
    ]


def test_a_finished_install_is_not_repeated_until_the_requirements_change(clone, index):
    clone.make("install", f"TORCH_INDEX={index}")
    calls, said = clone.make("quickstart", f"TORCH_INDEX={index}")
    assert calls == [] and f"quickstart with {clone.folder}/.venv/bin/python" in said
    changed = (clone.folder / ".venv" / "installed").stat().st_mtime + 2
    os.utime(clone.folder / "requirements.txt", (changed, changed))
    assert clone.make("install", f"TORCH_INDEX={index}")[0] == [cpu_build(index), ALL]


def test_to_adapt_a_model_its_extras_are_installed_once(clone, index):
    calls, said = clone.make("adapt", f"TORCH_INDEX={index}", "INDEX=http://mirror/simple")
    assert calls[-1] == "venv-python -m pip install --index-url http://mirror/simple -e .[documents,serving]"
    assert f"adapt with {clone.folder}/.venv/bin/python" in said
    assert clone.make("adapt")[0] == []


def test_for_the_pages_gradio_is_installed_once(clone, index):
    calls, _ = clone.make("chat", f"TORCH_INDEX={index}")
    chat, folder = "venv-python -m eval.chat_page --model", "runs/quickstart"
    models = f"{folder}/base {folder}/sft {folder}/ppo --reward_model {folder}/reward"
    page = f"{chat} {models} --save_to {folder}/chats.jsonl"
    assert calls[-2:] == ["venv-python -m pip install -e .[pages]", page]
    assert clone.make("chat")[0] == [page]


@pytest.mark.parametrize("broken", [TORCH, "-r requirements.txt"])
def test_a_failed_install_is_repeated(clone, index, broken):
    clone.make("quickstart", f"TORCH_INDEX={index}", code=2, BROKEN=broken)
    assert clone.make("compare", f"TORCH_INDEX={index}")[0] == [cpu_build(index), ALL]


def test_help_names_every_target_and_setting(clone):
    calls, said = clone.make()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)", makefile, flags=re.M).group(1).split()) - {"help"}
    assert calls == [] and targets == set(re.findall(r"^make (\w+)", said, flags=re.M))
    assert set(re.findall(r"^(\w+) \?=", makefile, flags=re.M)) == set(re.findall(r"^  ([A-Z_]+) ", said, flags=re.M))
