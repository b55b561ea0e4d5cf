"""`valle2 synthesize` with the bundled champion: the way of a user, from a prompt's file to a waveform's."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from demo.corpus import make_voice
from demo.espeak import SAMPLE_RATE, speak
from valle2.cli import app
from valle2.errors import ConfigError, ModelError, StorageError
from valle2.evaluation.best_of import Reading, choose
from valle2.speak import check_out, check_text, read_list

ROOT = Path(__file__).resolve().parents[1]
SAID = "Anna sees seven red boats."


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "anna.wav"
    soundfile.write(path, speak(SAID, make_voice(45)).samples, SAMPLE_RATE)
    return path


def say(*words: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["synthesize", "--model", "demo/champion", *words], input=given)


def test_a_sentence_becomes_a_file_and_the_seed_gives_it_again(prompt: Path, tmp_path: Path) -> None:
    common = ("--prompt", str(prompt), "--prompt-text", SAID, "--text", "Two old boats.")
    done = say(*common, "-o", str(tmp_path / "one.wav"))
    assert done.exit_code == 0, done.output
    assert "real-time factor" in done.stderr
    wave, rate = soundfile.read(tmp_path / "one.wav")
    assert rate == 24_000 and 0.3 < len(wave) / rate < 12 and np.abs(wave).max() > 0.05
    say(*common, "-o", str(tmp_path / "again.wav"))
    say(*common, "-o", str(tmp_path / "other.wav"), "--seed", "5")
    one, again, other = ((tmp_path / f"{name}.wav").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_the_prompts_text_is_recognised_where_nobody_says_it(prompt: Path, tmp_path: Path) -> None:
    done = say("--prompt", str(prompt), "--text", "-", "-o", str(tmp_path / "a.wav"), given="Two old boats.\n")
    assert done.exit_code == 0, done.output
    [said] = re.findall(r"prompt: '(.*)' \(recognised", done.stderr)
    assert "seven" in said and "boats" in said


def test_a_stream_says_the_same_codes_and_when_it_began(prompt: Path, tmp_path: Path) -> None:
    common = ("--prompt", str(prompt), "--prompt-text", SAID, "--text", "The captain sees two old boats.")
    whole, streamed = (
        say(*common, "-o", str(tmp_path / "a.wav")),
        say(*common, "--stream", "-o", str(tmp_path / "b.wav")),
    )
    assert whole.exit_code == streamed.exit_code == 0
    assert "first audio after" in streamed.stderr
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(tmp_path / "b.wav").frames
    piped = say(*common, "--stream", "-o", "-")
    assert len(piped.stdout_bytes) == 2 * soundfile.info(tmp_path / "a.wav").frames
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_the_best_of_several_readings_is_kept(prompt: Path, tmp_path: Path) -> None:
    common = ("--prompt", str(prompt), "--prompt-text", SAID, "--text", "Two old boats.")
    done = say(*common, "--best-of", "3", "--choice", "wer", "-o", str(tmp_path / "a.wav"))
    assert done.exit_code == 0, done.output
    assert "best of 3 (seed " in done.stderr


def test_a_list_becomes_a_folder_with_a_manifest(prompt: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "Two old boats.", "prompt": str(prompt), "prompt_text": SAID, "id": "boats"},
        {"text": "Anna sees it today. The captain sees it."},
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = say("--text", str(tmp_path / "texts.jsonl"), "--prompt", str(prompt), "--prompt-text", SAID,
               "-o", str(tmp_path / "out"))  # fmt: skip
    assert done.exit_code == 0, done.output
    listed = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [(row["id"], row["seed"], row["finish_reason"]) for row in listed] == [
        ("boats", 0, "eos"),
        ("0002", 1, "eos"),
    ]
    for row in listed:
        assert soundfile.info(tmp_path / "out" / row["file"]).duration == pytest.approx(row["seconds"], abs=1e-3)
        assert row["model"] == "demo/champion" and len(row["lineage"]) == 64


def test_a_text_that_does_not_end_is_written_and_the_exit_code_says_so(prompt: Path, tmp_path: Path) -> None:
    done = say("--prompt", str(prompt), "--prompt-text", SAID, "--text", "Two old boats.", "--max-seconds", "0.2",
               "-o", str(tmp_path / "a.wav"))  # fmt: skip
    assert done.exit_code == 3
    assert "finish_reason cap" in done.stderr
    assert soundfile.info(tmp_path / "a.wav").duration <= 0.22


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 1 of"),
        ('{"txt": "a"}', "line 1 of"),
        ('{"text": "a", "id": "../b"}', "has the id '../b'"),
        ('{"text": ""}', "nothing to say"),
        ('{"text": "a"}', "names no prompt"),
        ('{"text": "a", "seed": "b"}', "has the seed 'b'"),
        ('{"text": "a", "seed": -1}', "has the seed -1"),
        ("", "has no line"),
    ],
)
def test_a_list_with_a_mistake_names_it(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "texts.jsonl").write_text(line)
    with pytest.raises((ConfigError, ModelError), match=message):
        read_list(tmp_path / "texts.jsonl", None if "no prompt" in message else tmp_path / "a.wav", "", 0)


def test_the_documented_python_runs(prompt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "synthesis.md").read_text(), re.S)
    shutil.copyfile(prompt, tmp_path / "prompt.wav")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("valle2@champion", str(ROOT / "demo" / "champion")), {})
    assert soundfile.info("out.wav").frames == soundfile.info("stream.wav").frames > 0


@pytest.mark.parametrize(
    ("option", "value"), [("--top-p", "3"), ("--max-seconds", "-1"), ("--seed", "-1"), ("--seed", str(2**64))]
)
def test_an_option_out_of_its_range_is_a_sentence(option: str, value: str) -> None:
    done = say("--text", "Two old boats.", "--prompt", "none.wav", option, value)
    assert done.exit_code == 2 and f"Error: Invalid value for '{option}': Input should be" in done.stderr


def test_a_place_that_cannot_be_written_is_found_before_anything_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write to .*file.* give another place with --out"):
        check_out(tmp_path / "file" / "a.wav", folder=False, stream=False)
    with pytest.raises(ConfigError, match="is a folder; give a file with --out"):
        check_out(tmp_path, folder=False, stream=False)
    with pytest.raises(ConfigError, match="makes several files; give a folder"):
        check_out(tmp_path / "a.wav", folder=True, stream=False)
    with pytest.raises(ConfigError, match="give --stream with it"):
        check_out(Path("-"), folder=False, stream=False)
    check_out(Path("-"), folder=False, stream=True)
    check_out(tmp_path / "new" / "a.wav", folder=False, stream=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == []


def test_texts_are_neither_empty_nor_endless() -> None:
    with pytest.raises(ModelError, match="the text is empty"):
        check_text(" \n")
    with pytest.raises(ModelError, match="10,001 characters, expected 10,000 at most"):
        check_text("a" * 10_001)


def test_the_papers_choice_counts_similarity_up_to_a_ceiling() -> None:
    readings = [Reading(None, seed, sim, wer) for seed, (sim, wer) in enumerate([(0.2, 0.0), (0.9, 0.5), (0.31, 0.1)])]  # type: ignore[arg-type]
    assert [choose(readings, by).seed for by in ("sort", "sim", "wer")] == [2, 1, 0]
