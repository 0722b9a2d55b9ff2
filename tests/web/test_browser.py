"""The pages in a real browser: what a reader sees, live, and what no script of a model's can do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import NAMELESS, PHONE, WIDE, Browser, served
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from web_runs import append, group, made_run, other_lines, record_step, sample, step_line

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
KEY = "correct horse"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits_model: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    live = made_run(root / "live", steps=4, model=digits_model)
    (live / "config.toml").write_text((live / "config.toml").read_text().replace("num_steps = 4", "num_steps = 9"))
    tokens = [5, 6, 7]
    record_step(live, 1, group("0-1-0", sample(0, tokens, [0, 0, 0], reward=0.25), sample(1, [5], [0], reward=1.0)))
    hostile = made_run(root / "hostile", steps=2, model="/nowhere")
    record_step(hostile, 1, group("0-1-0", sample(0, tokens, [0, 1, 1], text=HOSTILE, masked=1)))
    append(hostile / "events.jsonl", {"actor": HOSTILE, "kind": HOSTILE, "time": 1.0, "data": {"cause": HOSTILE}})
    made_run(root / "ended", steps=6, finished=True, config="[staleness]\nmax_lag = 3\n")
    damaged = made_run(root / "damaged", steps=2)
    (damaged / "supervisor.json").write_text("{")
    (damaged / "launch.lock").write_text("")
    with (damaged / "metrics.jsonl").open("ab") as file:
        file.write(b"no json\n")
    return root


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with served(runs) as found:
        yield found


@pytest.fixture(autouse=True)
def as_it_was(browser: Browser) -> Iterator[None]:
    browser.resize(WIDE)
    yield
    assert browser.complaints() == []


def test_the_list_shows_each_run_and_two_of_them_can_be_compared(browser: Browser, address: str) -> None:
    browser.open(address)
    text = browser.wait("hostile", "main")
    assert all(word in text for word in ("live", "ended", "finished", "damaged", "dead"))
    for name in ("live", "ended"):
        browser.driver.find_element(By.CSS_SELECTOR, f"input[aria-label='compare {name}']").send_keys(Keys.SPACE)
    browser.driver.find_element(By.XPATH, "//button[text()='Compare 2 runs']").send_keys(Keys.ENTER)
    text = browser.wait("staleness.max_lag", "main")
    assert "samples/s" in text and "reward at 4 steps" in text
    assert len(browser.all("svg.chart path.line")) == 8  # two runs in four pictures


def test_a_step_appears_while_one_looks(browser: Browser, address: str, runs: Path) -> None:
    browser.open(f"{address}/#/run/live")
    browser.wait("step 4 of 9", "#steps")
    browser.wait_for("svg.chart path.line")
    append(runs / "live" / "metrics.jsonl", step_line(5, reward=0.875), *other_lines(5))
    browser.wait("step 5 of 9", "#steps")
    chart = browser.wait_for("svg.chart")
    chart.send_keys(Keys.END)
    assert "to 5: at last 0.875" in browser.wait_for("svg.chart[aria-label*='to 5']").get_attribute("aria-label")
    assert "step 5: 0.875" in browser.says(".reading")
    engines = browser.says("[aria-label='Engines']")
    assert all(word in engines for word in ("engine-0", "24", "1,234", "75 %"))


def test_an_ended_run_shows_its_figures_and_its_ledger(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#/run/ended")
    assert "finished" in browser.wait("step 6 of 6", ".state")
    assert "trained" in browser.wait("12", "[aria-label='Ledger']")
    assert "nobody is at work" in browser.says("main") and not browser.all(".trouble")


def test_a_damaged_run_and_one_that_is_not_there_are_one_line(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#/run/damaged")
    assert "metrics.jsonl line 8 cannot be read" in browser.wait("cannot be read", ".trouble")
    browser.wait("step 2", "#steps")
    browser.open(f"{address}/#/run/nowhere")
    browser.wait('There is no run "nowhere" here', ".trouble")
    browser.complaints()  # the browser's own line of the 404


def test_what_a_model_wrote_is_text(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#/run/hostile/samples")
    browser.wait(HOSTILE, "article")
    browser.open(f"{address}/#/run/hostile")
    browser.wait(HOSTILE, "[aria-label='Events']")
    assert browser.all("main img, main script") == [] and browser.driver.title != "taken"


def test_samples_are_searched_sorted_and_told_token_by_token(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#/run/live/samples?sort=reward&descending=true")
    browser.wait("2 of the 2 samples of step 1")
    assert [node.get_attribute("aria-label") for node in browser.all("article")] == [
        "group 0-1-0, sample 1",
        "group 0-1-0, sample 0",
    ]
    browser.driver.find_element(By.NAME, "reward_max").send_keys("0.5")
    browser.wait("1 of the 2 samples of step 1")
    browser.wait_for("article button").send_keys(Keys.ENTER)
    tokens = browser.wait_for(".tokens")
    assert len(browser.all(".tokens span.age0")) == 3
    tokens.send_keys(Keys.ARROW_RIGHT)
    assert "version 0, log-prob 0, trained on" in browser.says("article .reading")
    browser.driver.find_element(By.CSS_SELECTOR, "article select").send_keys("trained on")
    browser.wait_for(".tokens span.kept")


def test_the_timeline_zooms_by_keyboard_and_says_the_same_in_words(browser: Browser, address: str) -> None:
    browser.open(f"{address}/#/run/live/timeline")
    browser.wait("train", "[aria-label='Shares of the window']")
    before = browser.says("main h2")
    browser.wait_for("canvas").send_keys("+")
    browser.wait_until(lambda: browser.says("main h2") != before, "the window did not change")
    picture = "const at = document.querySelector('canvas'); return at.getContext('2d')"
    assert browser.run(f"{picture}.getImageData(0, 0, at.width, at.height).data.some(value => value !== 0)")
    assert browser.wait_for("a[download]").get_attribute("href") == f"{address}/api/runs/live/trace"


def test_no_run_at_all_is_one_line(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path) as address:
        browser.open(address)
        assert "There is no run in" in browser.wait("a launch makes one", ".trouble")
        browser.open("about:blank")


def test_a_key_opens_the_pages(browser: Browser, runs: Path) -> None:
    with served(runs, KEY) as address:
        browser.open(address)
        browser.wait_for("input[name=key]").send_keys(KEY, Keys.ENTER)
        browser.wait("ended", "main")
        browser.open("about:blank")


@pytest.mark.parametrize(
    "view", ["", "#/run/live", "#/run/live/samples", "#/run/live/timeline", "#/compare?run=live&run=ended"]
)
def test_a_page_fits_a_phone_in_light_and_dark_and_all_of_it_has_names(
    browser: Browser, address: str, view: str
) -> None:
    browser.resize(PHONE)
    browser.prefer("dark")
    browser.open(f"{address}/{view}")
    browser.wait("live", "main")
    browser.wait_for("table, article, canvas")
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.run(NAMELESS) == []
    ground = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(ground)
    browser.prefer("light")
    assert dark != browser.run(ground)
