"""The pages in a real browser, headless: by mouse, by keyboard, on a phone, in the dark, with axe looking on."""
import shutil

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium chromium-driver")


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for o in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"): options.add_argument(o)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def live_page(server, built):
    """A page about live traffic that has drifted, in the shared server's gallery."""
    from health_predict.bundle import Bundle
    from health_predict.settings import load_settings
    from health_predict.stage import encounters
    from health_predict.storage import Tree, champion
    from health_predict.traffic import answerable, live_drift, publish_traffic
    shutil.copy(built.storage / "runs" / "0" / "encounters.parquet", server.storage / "runs" / "0")
    settings = load_settings(storage={"root": str(server.storage)})
    lead = champion(Tree(settings))
    frame = answerable(encounters(settings, [0])).head(1500).assign(insulin="Up", payer_code=None)
    drift = live_drift(settings, Bundle(Tree(settings).models / lead["path"]), lead["version"], frame)
    about = {"since": "2030-01-01T00:00:00", "until": "2030-02-01T00:00:00", "requests": 1500, "encounters": 1500, "versions": {"1": 1500}}
    performance = {"answers": 1500, "outcomes": 3, "coverage": .002, "targets": {}}
    publish_traffic(settings, {**about, "champion": 1, "digest": lead["digest"], "synthetic": True, "drift": drift, "performance": performance})


def look(browser, width: int = 1100, dark: bool = False):
    """Be a desktop or a phone, in the light or in the dark."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})


def find(browser, css: str): return browser.find_element("css selector", css)


def submit(browser):
    """Press the button and wait for the next page."""
    from selenium.webdriver.support.expected_conditions import staleness_of
    from selenium.webdriver.support.wait import WebDriverWait
    button = find(browser, "button[type=submit]")
    button.click()
    WebDriverWait(browser, 20).until(staleness_of(button))


def submit_fault(browser, server):
    """Send days in hospital that the browser itself would not let through."""
    browser.get(server.url + "/")
    browser.execute_script("document.querySelector('form').noValidate = true; document.querySelector('#time_in_hospital').value = '99'")
    submit(browser)


def axe(browser) -> list[str]:
    """What axe finds wrong with the page as it stands."""
    from axe_selenium_python import Axe
    tool = Axe(browser)
    tool.inject()
    return [f"{o['id']}: {n['html'][:120]}" for o in tool.run()["violations"] for n in o["nodes"]]


def predicted(browser, server, example: str = "frequent"):
    browser.get(f"{server.url}/?example={example}")
    submit(browser)
    return find(browser, "#result").text


@pytest.mark.parametrize("width, dark", [(1100, False), (390, False), (390, True)], ids=["desktop", "phone", "phone in the dark"])
def test_every_page_is_accessible_and_fits(browser, server, live_page, width, dark):
    look(browser, width, dark)
    for path in ("/", "result", "fault", "/docs", "/reports/", "/reports/live.html"):
        if path == "result": predicted(browser, server)
        elif path == "fault": submit_fault(browser, server)
        else: browser.get(server.url + path)
        assert axe(browser) == [], path
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, path
        assert find(browser, "html").get_attribute("lang") == "en" and browser.title.endswith("health-predict")
    look(browser)


def test_form_predicts_and_explains(browser, server):
    often, planned = predicted(browser, server), predicted(browser, server, "planned")
    for text in (often, planned): assert "Readmitted at any time:" in text and "Of 100 patients like this one" in text and "prior inpatient visits" in text
    assert often != planned
    assert find(browser, "#number_inpatient").get_attribute("value") == "0"    # the form keeps what was sent
    body = find(browser, "main").text
    assert "Not a medical device" in body and "SYNTHETIC" in body and "AUROC" in body


def test_faults_are_said_at_the_field(browser, server):
    submit_fault(browser, server)
    field = find(browser, "#time_in_hospital")
    assert field.get_attribute("aria-invalid") == "true" and field.get_attribute("value") == "99"
    assert "99 is not between 1 and 14" in find(browser, f"#{field.get_attribute('aria-describedby')}").text
    assert "Please correct" in find(browser, "[role=alert]").text


def test_by_keyboard_alone(browser, server):
    from selenium.webdriver.common.keys import Keys
    browser.get(server.url + "/")
    reached = []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element.tag_name)
        if reached[-1] == "button": break
    assert reached[-1] == "button" and {"a", "select", "input", "summary"} <= set(reached)
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    browser.implicitly_wait(20)
    assert "Readmitted within 30 days:" in find(browser, "#result").text
    browser.implicitly_wait(0)


def test_links_lead_somewhere_and_nothing_comes_from_elsewhere(browser, server):
    import json
    browser.get(server.url + "/")
    seen, waiting = set(), [server.url + "/"]
    browser.get_log("performance"), browser.get_log("browser")
    while waiting:
        url = waiting.pop()
        browser.get(url)
        seen.add(url)
        for o in browser.find_elements("css selector", "a"):
            to = (o.get_attribute("href") or "").partition("#")[0]
            if to.startswith(server.url) and to not in seen and to not in waiting and "openapi" not in to and "model-info" not in to: waiting.append(to)
    assert {server.url + o for o in ("/", "/docs", "/reports/", "/reports/0/evaluate.html")} <= seen
    events = [json.loads(o["message"])["message"] for o in browser.get_log("performance")]
    asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert all(o["request"]["url"].startswith((server.url, "data:", "chrome")) for o in asked), asked
    codes = {e["params"]["response"]["url"]: e["params"]["response"]["status"] for e in events if e["method"] == "Network.responseReceived"}
    assert {u: c for u, c in codes.items() if c != 200 and "favicon" not in u} == {}
    assert not [o for o in browser.get_log("browser") if o["level"] == "SEVERE" and "favicon" not in o["message"]]


def test_model_card_is_there(browser, server):
    browser.get(server.url + "/")
    card = find(browser, "details.card")
    find(browser, "details.card summary").click()
    assert "Intended use" in card.text and card.find_elements("css selector", "table")


def test_codes_are_explained(browser, server):
    browser.get(server.url + "/docs")
    codes = browser.find_element("xpath", "//tr[td/code='admission_type_id']//details")
    assert codes.get_attribute("open") is None
    codes.find_element("css selector", "summary").click()
    assert codes.get_attribute("open") and "1: emergency; 2: urgent; 3: elective" in codes.text
