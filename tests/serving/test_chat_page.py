"""The chat page in a real Chromium: needs Debian's packages chromium and chromium-driver, or Chrome with its driver."""

import shutil

import pytest

from .conftest import Server, save_chat_model, wait_until

pytestmark = [pytest.mark.tensorflow, pytest.mark.browser]

NAMES = """
const all = [...document.querySelectorAll("button, select, input, textarea, summary, [tabindex]")];
const labels = e => [...(e.labels || [])].map(label => label.textContent).join(" ");
return all.filter(e => e.checkVisibility()).map(e => e.getAttribute("aria-label") || labels(e) || e.textContent.trim());
"""
TURNS = """
return [...document.querySelectorAll("#log > li")].map(e => [e.className, e.querySelector(".turn").textContent]);
"""


@pytest.fixture(scope="module")
def server(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_chat_model(tokenizer, folder / "model", 4000)
    # LiteRT would have written a text of so small a model before anybody could stop it.
    server = Server(folder, "--model", f"tiny={folder / 'model'}", "--api-key", "secret", "--engine", "keras")
    server.wait_ready()
    yield server
    server.end()


@pytest.fixture
def browser(server, tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
    for argument in f"--headless=new --no-sandbox --disable-gpu {quiet} --user-data-dir={tmp_path}".split():
        options.add_argument(argument)
    options.binary_location = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    browser.set_window_size(1000, 800)
    browser.get(f"http://127.0.0.1:{server.port}/")
    try:
        yield browser
        said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [message for message in said if "Failed to load resource" not in message]  # 401 and 400 are wanted
    finally:
        browser.quit()


def find(browser, css):
    return browser.find_element("css selector", css)


def fill(browser, css, value):
    from selenium.webdriver.common.keys import Keys

    field = find(browser, css)
    field.clear()
    field.send_keys(value, Keys.TAB)


def open_settings(browser, length=12):
    """With the key, which the page asks for."""
    wait_until(lambda: "asks for a key" in find(browser, "#problem").text, 20)
    assert find(browser, "details").get_attribute("open") is not None
    fill(browser, "#key", "secret")
    wait_until(lambda: find(browser, "#send").is_enabled(), 20)
    fill(browser, "#length", str(length))


def say(browser, text, done=True):
    find(browser, "#text").send_keys(text + "\n")
    if done:
        wait_until(lambda: find(browser, "#send").is_displayed() and turns(browser)[-1][0] == "assistant", 60)


def turns(browser):
    return browser.execute_script(TURNS)


def test_a_conversation(browser, server):
    open_settings(browser)
    fill(browser, "#temperature", "0")
    say(browser, "def <b>one</b>")
    first = turns(browser)
    assert first[0] == ["user", "def <b>one</b>"] and first[1][1]  # text is no HTML
    body = {"model": "tiny", "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": first[0][1]}]}
    answer = server.ask("POST", "/v1/chat/completions", body, {"Authorization": "Bearer secret"})[2]
    assert answer["choices"][0]["message"]["content"] == first[1][1]
    assert "Cut off" in find(browser, "#log .note").text
    find(browser, "#regenerate").click()
    wait_until(lambda: find(browser, "#send").is_displayed() and len(turns(browser)) == 2)
    assert turns(browser) == first
    say(browser, "again")
    assert len(turns(browser)) == 4
    browser.refresh()
    assert len(turns(browser)) == 4  # kept in the browser, with the settings, but for the key
    assert find(browser, "#length").get_attribute("value") == "12" and not find(browser, "#key").get_attribute("value")
    find(browser, "#new").click()
    assert turns(browser) == [] and len(browser.find_elements("css selector", "#conversation option")) == 2
    assert find(browser, "#conversation option:nth-child(2)").text.startswith("def")
    find(browser, "#conversation option:nth-child(2)").click()
    find(browser, "#delete").click()
    browser.switch_to.alert.accept()
    assert turns(browser) == [] and len(browser.find_elements("css selector", "#conversation option")) == 1


def test_stop_and_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    open_settings(browser, length=3900)
    fill(browser, "#temperature", "0")
    for stop in ("click", "escape"):
        say(browser, "def", done=False)
        wait_until(lambda: turns(browser) and len(turns(browser)[-1][1]) > 20)  # it streams
        assert find(browser, "#stop").is_displayed() and not find(browser, "#send").is_displayed()
        find(browser, "#stop").click() if stop == "click" else find(browser, "#text").send_keys(Keys.ESCAPE)
        wait_until(lambda: find(browser, "#send").is_displayed())
        assert browser.find_elements("css selector", "#log .note")[-1].text == "Stopped"
        assert browser.switch_to.active_element.get_attribute("id") == "text"
    find(browser, "#text").send_keys("two", Keys.SHIFT, Keys.ENTER, Keys.SHIFT, "lines")
    assert find(browser, "#text").get_attribute("value") == "two\nlines"


def test_names_sizes_and_sources(browser, server):
    open_settings(browser)
    say(browser, "x = [1]\n" * 3)
    assert all(browser.execute_script(NAMES))
    assert browser.execute_script("return document.documentElement.lang") == "en"
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(name.startswith(f"http://127.0.0.1:{server.port}/") for name in loaded)
    for width, scheme in ((320, "light"), (390, "dark"), (1200, "dark")):
        device = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
        assert page[0] <= width and page[1] <= 700  # the conversation scrolls, the page does not
        for css in ("#text", "#send", "#new", "details"):
            box = find(browser, css).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 700
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        dark = sum(map(int, ground[4:-1].split(","))) < 200
        assert dark == (scheme == "dark")


def test_a_failure_is_said_and_can_be_tried_again(browser):
    open_settings(browser)
    fill(browser, "#key", "wrong")
    wait_until(lambda: not find(browser, "#send").is_enabled())
    fill(browser, "#key", "secret")
    wait_until(lambda: find(browser, "#send").is_enabled())
    fill(browser, "#temperature", "9")
    say(browser, "def")
    assert "temperature" in find(browser, "#log .error").text
    fill(browser, "#temperature", "0")
    find(browser, "#regenerate").click()
    wait_until(lambda: find(browser, "#send").is_displayed() and turns(browser)[-1][1])
    assert not [note for note in browser.find_elements("css selector", ".error") if note.text]
