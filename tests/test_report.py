"""The report page in a real browser: it is heard, sorted, filtered and driven by keys; small, quick, the same bytes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from tests.browsing import PHONE, browser, is_too_wide, opened, seconds_of, until
from tests.evaluations import make_evaluation
from valle2.cli import app
from valle2.errors import EvaluationError
from valle2.evaluation import report_cases
from valle2.evaluation.evaluation_folder import read_evaluation
from valle2.evaluation.report import make_page, report_digest
from valle2.evaluation.report_tables import comparison, confusions
from valle2.evaluation.statistics import paired
from valle2.stage import write_json, write_text

__all__ = ["browser"]
NUM_UNSEEN, NUM_HARD = 9, 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two systems on the same cases; the second has but the unseen ones."""
    folder = tmp_path_factory.mktemp("evaluations")
    first = make_evaluation(folder / "first", NUM_UNSEEN, num_hard=NUM_HARD)
    return first, make_evaluation(folder / "second", NUM_UNSEEN, system=1)


@pytest.fixture(scope="module")
def page(folders: tuple[Path, Path]) -> Path:
    """The page of both, by the command."""
    out = folders[0].parent / "page.html"
    arguments = ["report", str(folders[0]), "--against", str(folders[1]), "--out", str(out), "--against-name", "Rival"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert report_digest(out) in done.output
    return out


def shown(tab: Page) -> list[str]:
    """Ids of the cases that are shown, in their order."""
    found: list[str] = tab.evaluate("[...document.querySelectorAll('.case:not([hidden])')].map((one) => one.id)")
    return [name.removeprefix("case-") for name in found]


def opened_case(tab: Page) -> list[str]:
    return [
        name.removeprefix("case-")
        for name in tab.evaluate("[...document.querySelectorAll('.case[open]')].map((one) => one.id)")
    ]


def test_the_page_needs_nothing_but_itself_and_is_byte_stable(folders, page, tmp_path):
    text = page.read_text()
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert make_page(read_evaluation(folders[0]), read_evaluation(folders[1], "Rival")) == text
    moved = shutil.copytree(folders[0], tmp_path / "elsewhere")
    assert make_page(read_evaluation(moved)) == make_page(read_evaluation(folders[0]))


def test_every_sound_can_be_heard_and_lasts_as_long_as_its_sample(browser: Browser, folders, page):
    first, second = folders
    with opened(browser, page) as tab:
        for name in ("case-000", "hard.case-010"):
            tab.evaluate(f"document.getElementById('case-{name}').open = true")
            found = seconds_of(tab, f'[id="case-{name}"] audio')
            files = [
                first / "samples" / f"{name}.{row}.wav" for row in ("model", "prompt", "ground_truth", "reconstruction")
            ]
            files = [file for file in files if file.is_file()]
            if not name.startswith("hard"):
                files.insert(1, second / "samples" / f"{name}.model.wav")
            assert found == pytest.approx([soundfile.info(file).duration for file in files], abs=0.05)
        assert tab.locator("audio:not([aria-label])").count() == tab.locator("img:not([alt])").count() == 0
        images = '[id="case-case-000"] img'
        assert tab.evaluate(f"[...document.querySelectorAll('{images}')].every((one) => one.naturalWidth > 20)")


def test_the_worst_come_first_and_the_order_can_be_chosen(browser: Browser, folders, page):
    cases = {case["id"]: case["rows"]["model"] for case in json.loads((folders[0] / "cases.json").read_text())}
    with opened(browser, page) as tab:
        first = shown(tab)
        assert len(first) == NUM_UNSEEN + NUM_HARD and first[0] == "case-000"
        wer = [report_cases.word_error_rate(cases[name]) for name in first[1:]]
        assert wer == sorted(wer, reverse=True) and wer[0] > 0
        for key, sign, field in (("sim", 1, "sim_own"), ("dnsmos", -1, "dnsmos"), ("seconds", -1, "seconds")):
            tab.select_option("#order", f"{key}:{sign}")
            figures = [sign * cases[name][field] for name in shown(tab)]
            assert figures == sorted(figures)
        tab.select_option("#order", "")
        assert shown(tab) == first


def test_filters_leave_what_was_asked_for(browser: Browser, page):
    with opened(browser, page) as tab:
        everything = shown(tab)
        tab.select_option("#protocol", "hard")
        assert len(shown(tab)) == NUM_HARD and all(name.startswith("hard.") for name in shown(tab))
        tab.select_option("#category", "numbers")
        assert len(shown(tab)) == NUM_HARD / 3
        tab.locator("#search").fill("no such words anywhere")
        assert not shown(tab) and tab.locator("#none").is_visible()
        tab.locator("#reset").click()
        assert shown(tab) == everything
        tab.locator("#wrong").check()
        wrong = shown(tab)
        assert 0 < len(wrong) < len(everything)
        assert tab.locator("#count").inner_text() == f"{len(wrong)} of {len(everything)} cases"
        assert all(tab.locator(f"[id='case-{name}'] summary .bad").count() for name in wrong)
        tab.locator("#wrong").uncheck()
        tab.select_option("#figure", "ending")
        assert shown(tab) == ["case-000"]
        tab.select_option("#figure", "sim")
        lowest = [float(tab.locator(f"[id='case-{name}']").get_attribute("data-sim")) for name in shown(tab)]
        assert len(lowest) == 4
        tab.select_option("#figure", "loss")
        assert set(shown(tab)) <= set(wrong) and "case-001" in shown(tab)
        tab.select_option("#figure", "")
        tab.locator("#search").fill("VOICE-3")
        assert shown(tab) and all(
            "voice-3" in tab.locator(f"[id='case-{name}']").get_attribute("data-search") for name in shown(tab)
        )


def test_keys_move_play_search_and_help(browser: Browser, page):
    with opened(browser, page) as tab:
        order = shown(tab)
        for _ in range(3):
            tab.keyboard.press("j")
        tab.keyboard.press("k")
        assert opened_case(tab) == [order[2]]
        paused = f"[...document.querySelectorAll(`[id='case-{order[2]}'] audio`)].map((one) => one.paused).join()"
        tab.keyboard.press("Space")
        until(tab, f"{paused}.startsWith('false,true')")
        tab.keyboard.press("2")
        until(tab, f"{paused}.startsWith('true,false')")
        tab.keyboard.press("Space")
        until(tab, f"!{paused}.includes('false')")
        tab.keyboard.press("?")
        assert tab.locator("dialog#help").is_visible()
        tab.keyboard.press("Escape")
        assert not tab.locator("dialog#help").is_visible()
        tab.keyboard.press("/")
        tab.keyboard.type("jw?1 ")
        assert tab.locator("#search").input_value() == "jw?1 "
        tab.keyboard.press("Escape")
        tab.keyboard.press("w")
        assert tab.locator("#wrong").is_checked()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it_without_moving_sideways(browser: Browser, page, dark, tmp_path):
    with opened(browser, page, PHONE, dark) as tab:
        tab.evaluate("for (const one of document.querySelectorAll('.case')) one.open = true")
        assert not is_too_wide(tab)
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        tab.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
        assert (tmp_path / "phone.png").stat().st_size > 50_000


def test_differences_are_marked_by_more_than_colour(browser: Browser, page):
    with opened(browser, page) as tab:
        heard = tab.locator("[id='case-case-001'] dd.diff").first
        tab.evaluate("document.getElementById('case-case-001').open = true")
        assert "instead of:" in heard.text_content() and "→" in heard.inner_text()
        decoration = "getComputedStyle(document.querySelector('.diff {}')).{}"
        assert "line-through" in tab.evaluate(decoration.format("del", "textDecorationLine"))
        assert tab.evaluate(decoration.format("ins", "borderBottomWidth")) != "0px"


def test_the_comparison_is_the_paired_test(folders, page):
    one, other = (json.loads((folder / "cases.json").read_text()) for folder in folders)
    [(protocol, rows)] = comparison(one, other)
    assert protocol == "unseen" and {row["pairs"] for row in rows} == {NUM_UNSEEN}
    found = paired(one, other, "sim_own")
    [row] = [row for row in rows if row["metric"] == "SIM to own prompt"]
    assert row["difference"].lstrip("+−") == f"{abs(found.difference):.3f}" and row["p"] == f"{found.p_value:.3f}"
    assert "Rival" in page.read_text()


def test_a_clear_difference_is_called_better_or_worse(folders):
    one = json.loads((folders[0] / "cases.json").read_text())[:NUM_UNSEEN]
    other = json.loads(json.dumps(one))
    for place, case in enumerate(other):
        case["rows"]["model"]["sim_own"] += 0.1 + place / 1000
        case["rows"]["model"]["errors"]["deletions"] += 3 + place
    verdicts = {row["metric"]: row["verdict"] for row in comparison(one, other)[0][1]}
    assert verdicts["SIM to own prompt"] == "worse" and verdicts["WER"] == "better"
    assert verdicts["DNSMOS P.808"] == "not told apart"


def test_words_that_go_wrong_are_counted():
    def case(*diff):
        return {"rows": {"model": {"errors": {"diff": diff}}}}

    cases = [case(("substitute", "red boat", "bed coat"), ("equal", "a", "a")), case(("substitute", "red", "bed"))]
    assert confusions([*cases, case(("delete", "two", "")), case(("insert", "", "so"))]) == [
        ("red", "bed", 2), ("", "so", 1), ("boat", "coat", 1), ("two", "", 1),
    ]  # fmt: skip


def test_cases_beyond_the_pages_room_are_there_without_sound(folders, monkeypatch):
    monkeypatch.setattr(report_cases, "MAX_BYTES", 210_000)
    text = make_page(read_evaluation(folders[0]))
    assert len(text) < 500_000 and text.count('class="case"') == NUM_UNSEEN + NUM_HARD
    assert 0 < text.count("This page is full") < NUM_UNSEEN + NUM_HARD
    worst = text.index('id="case-case-000"')
    assert "data-sound" in text[worst : text.index("</details>", worst)]


@pytest.mark.slow
def test_a_page_of_a_hundred_cases_is_small_and_quick(browser: Browser, tmp_path):
    first, second = (make_evaluation(tmp_path / str(system), 100, system) for system in (0, 1))
    write_text(tmp_path / "page.html", make_page(read_evaluation(first), read_evaluation(second)))
    assert (tmp_path / "page.html").stat().st_size < 15_000_000
    times = []
    for _ in range(3):  # other tests run beside this one: the quickest time is the page's own
        with opened(browser, tmp_path / "page.html") as tab:
            times += tab.evaluate("performance.getEntriesByType('navigation').map((one) => one.loadEventEnd)")
            assert len(shown(tab)) == 100
    print(f"{(tmp_path / 'page.html').stat().st_size / 1e6:.1f} MB, {min(times):.0f} ms")
    assert min(times) < 2000


def test_mistakes_are_one_sentence_each(folders, tmp_path):
    def refused(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["report", *map(str, arguments), "--out", str(tmp_path / "page.html")])
        assert isinstance(done.exception, EvaluationError) and not (tmp_path / "page.html").exists()
        return str(done.exception)

    assert "no folder" in refused(tmp_path / "nowhere")
    assert "no metrics.json" in refused(tmp_path)
    broken = shutil.copytree(folders[0], tmp_path / "broken")
    (broken / "cases.json").write_text("[{")
    assert "is no JSON" in refused(broken)
    write_json(broken / "cases.json", [])
    assert "no case in" in refused(broken)
    write_json(broken / "cases.json", {"a": 1})
    assert "did not write" in refused(broken)
    others = json.loads((folders[1] / "cases.json").read_text())
    write_json(broken / "cases.json", [{**case, "seed": case["seed"] + 1} for case in others])
    assert "share no case" in refused(folders[0], "--against", broken)
    with pytest.raises(EvaluationError, match="no report page"):
        report_digest(tmp_path)
