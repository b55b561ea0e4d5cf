"""A whole repository at a size for tests: five voices, a few seconds each, models of two thin layers, three updates."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from demo.corpus import SAMPLE_RATE, make_voice, record
from demo.grammar import sentence

ROOT = Path(__file__).resolve().parents[1]
SPEAKERS = ("train-00", "train-01", "train-02", "train-03", "unseen-04")
SENTENCES = 5
COPIED = (
    "valle2", "flows", "infra", "demo", "dvc.yaml", ".dvcignore", ".gitignore", "requirements.lock", "pyproject.toml",
    "prefect.yaml", ".dvc/config", ".dvc/.gitignore",
)  # fmt: skip


def tiny_params() -> dict[str, Any]:
    """The demo's parameters, made tiny."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    transformer = {"num_layers": 2, "dim": 32, "num_heads": 2, "ffn_dim": 64, "max_text_tokens": 128}
    train = {
        "num_steps": 3, "batch_frames": 600, "learning_rate": 1e-3, "warmup_steps": 1, "checkpoint_every": 1,
        "validate_every": 3, "log_every": 1, "warm_start": "",
    }  # fmt: skip
    params["runtime"]["num_threads"] = 1
    params["curate"] |= {
        "min_dnsmos": 1.0, "test_speakers": ["unseen-04"], "dev_speakers": ["train-00"], "vocab_size": 64, "bpe": "",
    }  # fmt: skip
    params["model"] = {"group_size": 2, "ar": transformer, "nar": transformer}
    params |= {"train_ar": train, "train_nar": train}
    params["evaluate"] |= {"num_cases": 2, "min_target_seconds": 0.5, "prompt_seconds": 1.0}
    params["evaluate"]["sampling"] = {"max_seconds": 2.0}
    return params


def write_data(folder: Path) -> None:
    """A data folder: one short recording a speaker, with licence and consent."""
    rng = random.Random(1)
    audio = folder / "tiny" / "audio"
    for index, speaker in enumerate(SPEAKERS):
        texts = [sentence(rng) for _ in range(SENTENCES)]
        recording = record(make_voice(index), texts, np.random.default_rng(index))
        path = audio / speaker / f"{speaker}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, recording.samples, SAMPLE_RATE, subtype="PCM_16")
    source = {
        "name": "tiny", "kind": "folder", "path": "tiny/audio", "language": "en", "licence": "CC0-1.0",
        "attribution": "Valle2's tests, spoken by espeak-ng", "speaker_from": "folder",
        "consent": {"basis": "synthetic", "record": "espeak-ng; no person's voice"},
    }  # fmt: skip
    (folder / "sources.yaml").write_text(yaml.safe_dump({"sources": [source]}))


def make_repository(folder: Path) -> Path:
    """A clone-like copy of this project with tiny data and parameters, committed."""
    copy_project(folder, COPIED)
    (folder / "demo" / "champion").mkdir(exist_ok=True)
    (folder / "demo" / "champion" / "README.md").touch()
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params(), sort_keys=False))
    write_data(folder / "data")
    commit_all(folder)
    return folder


def copy_project(folder: Path, names: tuple[str, ...]) -> None:
    """Copy files and folders of this project."""
    for name in names:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "recipes"))
        else:
            shutil.copyfile(source, target)


def commit_all(folder: Path) -> None:
    """Track the data and commit everything."""
    for command in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        ["dvc", "add", "--quiet", "data"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "start"],
    ):
        subprocess.run(command, cwd=folder, check=True)
