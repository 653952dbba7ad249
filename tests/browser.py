"""A headless Chromium for the tests of pages: Debian's `chromium` and `chromium-driver`, driven by
Selenium, cut off from the network."""

import contextlib
import json
import shutil

import pytest

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@contextlib.contextmanager
def chromium():
    """A driver with an empty profile; skips the test, and says why, where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("this test needs a browser: apt-get install chromium chromium-driver")
    selenium = pytest.importorskip(
        "selenium.webdriver", reason="this test needs Selenium: pip install -r requirements/dev.txt"
    )
    options = selenium.ChromeOptions()
    options.binary_location = program
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = selenium.Chrome(service=selenium.ChromeService(driver), options=options)
    try:
        yield browser
    finally:
        browser.quit()


def view(browser, width: int, height: int = 900, scheme: str = "light") -> None:
    """The size of the window in CSS pixels, and whether the reader prefers light or dark."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )


def requested(browser) -> list[str]:
    """Every address that was asked for since the last call; `data:` and what the page's policy
    stopped are left out."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    failed = [
        message["params"] for message in messages if message["method"] == "Network.loadingFailed"
    ]
    stopped = {params["requestId"] for params in failed if params.get("blockedReason") == "csp"}
    sent = [
        message["params"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    urls = [params["request"]["url"] for params in sent if params["requestId"] not in stopped]
    return [url for url in urls if not url.startswith(("data:", "blob:"))]


CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const behind = node => { for (; node; node = node.parentElement) {
  const colour = rgb(getComputedStyle(node).backgroundColor);
  if (colour.length < 4 || colour[3] > 0) return colour; } return [255, 255, 255]; };
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !node.checkVisibility() || ["SCRIPT", "STYLE", "OPTION"].includes(node.tagName)) continue;
  const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
  const what = node.tagName + "." + node.className + ": " + walk.currentNode.data.slice(0, 30);
  found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), what]);
}
return found.sort((x, y) => x[0] - y[0]);
"""  # noqa: E501


def contrasts(browser) -> list[tuple[float, str]]:
    """The contrast (WCAG 2) of every visible text with what is behind it, the worst first."""
    return [tuple(pair) for pair in browser.execute_script(CONTRAST)]


def violations(browser) -> list[str]:
    """What axe-core finds against WCAG 2 A and AA and its best practices; skips the test where it
    is not installed.

    Scripts of a test run beside the page's policy, so that its answer is that of the page as it is.
    """
    axe = pytest.importorskip(
        "axe_core_python.selenium",
        reason="this test needs axe: pip install -r requirements/dev.txt",
    )
    return [
        f"{found['id']}: {found['help']}: {node['html'][:100]}"
        for found in axe.Axe().run(browser)["violations"]
        for node in found["nodes"]
    ]
