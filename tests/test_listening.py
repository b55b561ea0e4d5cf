"""A listening test in a real browser, blind and in each rater's own order; its results say what the raters think."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from tests.browsing import PHONE, browser, is_too_wide, opened, seconds_of, until
from tests.evaluations import make_evaluation
from valle2.cli import app
from valle2.errors import EvaluationError
from valle2.evaluation.listening import GROUND_TRUTH, LEVEL, levelled
from valle2.evaluation.listening_results import crossed_interval, summarise_opinions
from valle2.stage import write_json

__all__ = ["browser"]
NAMES = ("Zebra", "Quagga")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two systems on ten cases."""
    folder = tmp_path_factory.mktemp("systems")
    return make_evaluation(folder / "zebra", 10), make_evaluation(folder / "quagga", 10, system=1)


def listen(folders: tuple[Path, Path], page: Path, *more: str) -> dict[str, Any]:
    """The key of a test of four cases."""
    arguments = ["listen", str(folders[0]), "--against", str(folders[1]), "--out", str(page), "--cases", "4"]
    arguments += ["--name", NAMES[0], "--against-name", NAMES[1], "--ground-truth", *more]
    done = CliRunner().invoke(app, arguments)
    if done.exception:
        raise done.exception
    key: dict[str, Any] = json.loads(page.with_suffix(".key.json").read_text())
    return key


@pytest.fixture(scope="module")
def page(folders: tuple[Path, Path]) -> Path:
    path = folders[0].parent / "test.html"
    listen(folders, path)
    return path


@pytest.fixture(scope="module")
def key(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.with_suffix(".key.json").read_text())
    return found


def begin(tab: Page, rater: str) -> None:
    tab.locator("#rater").fill(rater)
    tab.locator("text=Begin").click()


def hear(tab: Page) -> None:
    """Both sounds to their ends."""
    seconds_of(tab, "#sounds audio")
    for place in (0, 1):
        audio = f"document.querySelectorAll('#sounds audio')[{place}]"
        # Its last tenth of a second may be over before the browser says that it began.
        tab.evaluate(f"{{ {audio}.currentTime = {audio}.duration - 0.1; {audio}.play().catch(() => 0); }}")
        until(tab, f"{audio}.parentElement.classList.contains('done')")


def answer(tab: Page, score: str) -> None:
    hear(tab)
    tab.locator(f"#choices input[value='{score}']").check()
    tab.locator("#next").click()


def order(tab: Page) -> list[str]:
    """What is heard now."""
    found: list[str] = tab.evaluate("[...document.querySelectorAll('#sounds audio')].map((one) => one.dataset.sound)")
    return found


def saved(tab: Page, path: Path, button: str = "#save") -> dict[str, Any]:
    with tab.expect_download() as download:
        tab.locator(button).click()
    download.value.save_as(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_page_tells_nothing_of_the_systems(folders, page, key):
    text = page.read_text()
    readable = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.S)
    assert not re.search(r"https?://|@import|url\(", readable)
    cases = {trial["case"] for trial in key["trials"].values()}
    for word in (*NAMES, GROUND_TRUTH, "ground_truth", "reconstruction", "model", key["secret"], *cases):
        assert word.casefold() not in readable.casefold(), word
    shown = json.loads(re.search(r'id="about">(.*?)</script>', text, re.S)[1])["trials"]
    assert shown == sorted(shown, key=lambda trial: trial["trial"])
    first = [key["trials"][trial["trial"]]["stimuli"][trial["stimuli"][0]["id"]] for trial in shown]
    assert len(set(first[: len(first) // 2])) > 1
    assert len(shown) == 4 * 3 + 4


def test_the_same_test_is_the_same_bytes_and_another_does_not_take_its_key(folders, page):
    before = page.read_bytes()
    listen(folders, page)
    assert page.read_bytes() == before
    with pytest.raises(EvaluationError, match="is the key of another test"):
        listen(folders, page, "--seed", "1")
    assert page.read_bytes() == before


def test_sounds_are_lossless_at_one_level(browser: Browser, folders, page, key):
    with opened(browser, page) as tab:
        begin(tab, "Ann")
        lengths = seconds_of(tab, "#sounds audio")
        trials = json.loads(re.search(r'id="about">(.*?)</script>', page.read_text(), re.S)[1])["trials"]
        now = next(one for one in trials if one["stimuli"][0]["sound"] == order(tab)[1] and one["kind"] == "smos")
        about = key["trials"][now["trial"]]
    [system] = about["stimuli"].values()
    row = "ground_truth" if system == GROUND_TRUTH else "model"
    folder = folders[1] if system == NAMES[1] else folders[0]
    files = [folders[0] / "samples" / f"{about['case']}.prompt.wav", folder / "samples" / f"{about['case']}.{row}.wav"]
    assert lengths == pytest.approx([soundfile.info(file).duration for file in files], abs=1e-3)


def test_a_rater_answers_stops_goes_on_and_saves(browser: Browser, page, key, tmp_path):
    with opened(browser, page) as tab:
        begin(tab, "Ann Other")
        first = order(tab)
        assert tab.locator("#next").is_disabled() and tab.locator("#choices input").first.is_disabled()
        assert tab.locator("#choices input").count() == 9
        answer(tab, "3.5")
        answer(tab, "2")
        third = order(tab)
        tab.reload()
        begin(tab, "ann  other")
        assert order(tab) == third and tab.locator("#place").inner_text() == "3 of 16"
        tab.locator("#back").click()
        tab.locator("#back").click()
        assert order(tab) == first and tab.locator("#choices input:checked").get_attribute("value") == "3.5"
        tab.locator("#choices input[value='4.5']").check()
        tab.keyboard.press("Enter")
        part = saved(tab, tmp_path / "part.json", "#partial")
        assert len(part["answers"]) == 2 and part["answers"][0]["score"] == 4.5 and part["num_trials"] == 16
        tab.locator("#next").click()
        for _ in range(10):
            answer(tab, "5")
        assert tab.locator("#choices input").count() == 7 and "natural" in tab.locator("#question").inner_text()
        for _ in range(4):
            answer(tab, "-2")
        assert tab.locator("#tally").inner_text().endswith("has answered 16 of 16.")
        result = saved(tab, tmp_path / "ann.json")
    assert result["test"] == key["test"] and {one["trial"] for one in result["answers"]} == set(key["trials"])
    table = {(one.measure, one.system): one for one in summarise_opinions(key, [tmp_path / "ann.json"])}
    assert {one.num_answers for one in table.values()} == {4}
    told = CliRunner().invoke(app, ["listen-results", str(page.with_suffix(".key.json")), str(tmp_path / "ann.json")])
    assert NAMES[0] in told.output and "One rater alone" in told.output


def test_every_rater_has_an_order_of_their_own(browser: Browser, page):
    with opened(browser, page) as tab:
        orders = set()
        for rater in ("Ann", "Bob", "Cid", "Dee"):
            tab.reload()
            begin(tab, rater)
            seen = []
            for _ in range(3):
                seen.append(tuple(order(tab)))
                answer(tab, "1")
            orders.add(tuple(seen))
        assert len(orders) == 4


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_a_question_without_moving_sideways(browser: Browser, page, dark, tmp_path):
    with opened(browser, page, PHONE, dark) as tab:
        assert not is_too_wide(tab)
        begin(tab, "a rater with a name of many words so that it is as long as a name can possibly be")
        assert not is_too_wide(tab)
        assert tab.locator("audio:not([aria-label])").count() == 0
        tab.screenshot(path=str(tmp_path / "phone.png"))
        assert (tmp_path / "phone.png").stat().st_size > 10_000


def test_silence_stays_silence_and_speech_has_one_level():
    rng = np.random.default_rng(0)
    for gain in (0.001, 0.1):
        wave = levelled((gain * rng.standard_normal(24_000)).astype(np.float32))
        assert np.sqrt(np.mean(wave**2)) == pytest.approx(LEVEL, rel=1e-3)
    click = np.zeros(24_000, np.float32)
    click[100] = 0.5
    assert np.abs(levelled(click)).max() <= 0.99
    assert not levelled(np.zeros(10, np.float32)).any() and not len(levelled(np.zeros(0, np.float32)))


def results(key: dict[str, Any], rater: str, score: Callable[[dict[str, Any], list[str]], float]) -> dict[str, Any]:
    """A rater's file; `score` knows kind and case, and the systems in the order in which they are heard."""
    answers = []
    for place, (name, trial) in enumerate(sorted(key["trials"].items())):
        order = sorted(trial["stimuli"], reverse=place % 2 == 0)
        heard = [trial["stimuli"][one] for one in order]
        answers.append({"trial": name, "order": order, "score": score(trial, heard)})
    return {"format": 1, "test": key["test"], "rater": rater, "answers": answers}


def test_means_and_comparisons_are_those_of_the_raters(key, tmp_path):
    worth = {NAMES[0]: 4.0, NAMES[1]: 3.0, GROUND_TRUTH: 5.0}

    def honest(trial: dict[str, Any], heard: list[str]) -> float:
        return worth[heard[0]] if trial["kind"] == "smos" else worth[heard[1]] - worth[heard[0]]

    files = []
    for rater in ("Ann", "Bob"):
        files.append(tmp_path / f"{rater}.json")
        write_json(files[-1], results(key, rater, honest))
    found = {(one.measure, one.system, one.against): one for one in summarise_opinions(key, files)}
    assert {name: found["SMOS", name, None].mean for name in worth} == worth
    assert found["SMOS", NAMES[0], None].num_answers == 8 and found["SMOS", NAMES[0], None].num_raters == 2
    assert found["SMOS difference", *NAMES].mean == 1.0
    assert found["CMOS", *NAMES].mean == 1.0 and found["CMOS", *NAMES].num_cases == 4
    assert found["CMOS", *NAMES].p_value == pytest.approx(2 / 2**4)


def test_the_interval_covers_the_truth_where_raters_and_cases_vary():
    """Simulated: 8 raters and 12 cases, each with a taste or a difficulty of its own."""
    rng, covered, narrow = np.random.default_rng(5), 0, 0
    for trial in range(100):
        scores = 3 + rng.normal(0, 0.5, (8, 1)) + rng.normal(0, 0.4, (1, 12)) + rng.normal(0, 0.5, (8, 12))
        rater, case = np.indices(scores.shape)
        table = pandas.DataFrame({"rater": rater.ravel(), "case": case.ravel(), "score": scores.ravel()})
        low, high = crossed_interval(table, trial)
        covered += low < 3 < high
        half = 1.96 * scores.std() / np.sqrt(scores.size)
        narrow += abs(scores.mean() - 3) < half
    assert 86 <= covered <= 100
    assert narrow < covered


def test_mistakes_are_one_sentence_each(folders, page, key, tmp_path):
    key_file = page.with_suffix(".key.json")
    good = results(key, "Ann", lambda trial, heard: 1)

    def refused(*contents: Any) -> str:
        files = []
        for place, content in enumerate(contents):
            files.append(tmp_path / f"{place}.json")
            write_json(files[-1], content)
        done = CliRunner().invoke(app, ["listen-results", str(key_file), *map(str, files)])
        assert isinstance(done.exception, EvaluationError), done.output
        return str(done.exception)

    assert "is of rater ann, as is" in refused(good, good | {"rater": " ann "})
    assert "answers to test 123" in refused(good, good | {"test": "123", "rater": "Bob"})
    assert "no answers to a listening test" in refused([1])
    assert "no answer in the results" in refused(good | {"answers": []})
    for wrong in ({"score": 9}, {"trial": "unknown"}, {"order": ["x"]}):
        assert "cannot have got" in refused(good | {"answers": [good["answers"][0] | wrong]})
    assert "cannot have got" in refused(good | {"answers": [good["answers"][0]] * 2})

    def told(*arguments: object) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert isinstance(done.exception, EvaluationError), done.output
        return str(done.exception)

    assert "cannot read" in told("listen-results", key_file, tmp_path / "nobody.json")
    assert "cannot read the key" in told("listen-results", tmp_path / "nokey.json", tmp_path / "0.json")
    write_json(tmp_path / "nokey.json", {"a": 1})
    assert "no key of a listening test" in told("listen-results", tmp_path / "nokey.json", tmp_path / "0.json")
    out = ("--out", tmp_path / "page.html")
    assert "systems of the same name" in told(
        "listen", folders[0], "--against", folders[1], "--against-name", "VALL-E 2", *out
    )
    mute = shutil.copytree(folders[0], tmp_path / "mute")
    shutil.rmtree(mute / "samples")
    assert "no case can be heard" in told("listen", mute, *out)
    assert not (tmp_path / "page.html").exists()
