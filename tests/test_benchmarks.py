"""The benchmark for GPUs runs where there is nothing but torch, numpy and the repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BARE = """
import runpy, sys
from importlib.machinery import PathFinder

allowed = {"torch", "numpy", "benchmarks", "valle2", *ALLOWED}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top in sys.stdlib_module_names or top.startswith("_sysconfigdata"):
            return PathFinder.find_spec(name, path, target)
        return None

sys.meta_path = [finder for finder in sys.meta_path if finder is not PathFinder and isinstance(finder, type)] + [Bare]
sys.argv = ["gpu.py", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""
NEEDED_BY_TORCH = ["typing_extensions", "filelock", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
                   "triton", "functorch", "torchgen"]  # fmt: skip


def test_the_gpu_benchmark_needs_torch_and_numpy_alone(tmp_path: Path) -> None:
    script = BARE.replace("ALLOWED", repr(NEEDED_BY_TORCH))
    done = subprocess.run(
        [sys.executable, "-c", script, "--device", "cpu", "--layers", "1", "--dim", "64", "--seconds", "0.2",
         "--repeats", "1", "--frames", "100", "--largest", "200", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CXX": "no-such-compiler"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NAR is not compiled: `train_nar.compile` is true and there is no C++ compiler" in done.stdout
    assert "no plot: matplotlib is not installed" in done.stdout
    figures = {row["name"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["figures"]}
    assert figures["codes of the NAR model the same on both devices"]["value"] == 1
    assert figures["training NAR: frames a second"]["value"] > 0
    assert figures["training AR: largest batch"]["value"] > 100
    assert figures["G = 8, batch 64: real-time factor"]["value"] > 0
    assert all(row["reached"] in (True, None) for row in figures.values())


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--device", "cuda"], cwd=ROOT, capture_output=True,
                          text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""})  # fmt: skip
    assert done.returncode == 1 and "no CUDA device here" in done.stderr and "Traceback" not in done.stderr
