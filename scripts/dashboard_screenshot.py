"""Open a Ray dashboard in a browser, check that the job and the training run are shown, and save pictures.

    python scripts/dashboard_screenshot.py http://127.0.0.1:8265 docs/images/dashboard.png --job raysubmit_…

Needs Chromium and its driver (Debian: `apt-get install chromium chromium-driver`) and the package `selenium`.
Ray 2.60 has no separate page for Ray Train: a run appears as its controller and workers among the actors.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

LOG_IN = """
const done = arguments[arguments.length - 1];
fetch("/api/authenticate", {method: "POST", headers: {Authorization: "Bearer " + arguments[0]}})
  .then(answer => done(answer.status), error => done(String(error)));
"""


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium."""
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(option)
    options.add_argument("--window-size=1600,1000")
    options.binary_location = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    driver = webdriver.Chrome(options, Service(os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver")))
    try:
        driver.set_page_load_timeout(120)
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def wait_for_text(page: webdriver.Chrome, words: list[str], seconds: float = 120) -> None:
    """Wait until the page shows all the words."""
    wait(lambda: all(word in page.find_element(By.TAG_NAME, "body").text for word in words), seconds, words)


def wait(condition: Callable[[], bool], seconds: float, what: object) -> None:
    """Wait until a condition holds; if it does not, a SystemExit says what is missing."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"the dashboard did not show {what} in {seconds:g} s")
        time.sleep(0.5)


def main() -> None:
    """Log in, open the jobs and the actors, and save a picture of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url", help="The dashboard's address.")
    parser.add_argument("out", type=Path, help="The picture; another of the actors is written beside it.")
    parser.add_argument("--job", required=True, help="The submission id that must be shown.")
    arguments = parser.parse_args()
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray/auth_token"))
    url = arguments.url.rstrip("/")
    with browser() as page:
        page.get(url)
        status = page.execute_async_script(LOG_IN, token_file.read_text().strip())
        if status != 200:
            sys.exit(f"{url}: the dashboard does not take the token of {token_file} ({status})")
        page.get(f"{url}/#/jobs")
        page.refresh()
        wait_for_text(page, [arguments.job])
        print(f"jobs: shows {arguments.job}")
        page.save_screenshot(str(arguments.out))
        page.get(f"{url}/#/actors")
        wait_for_text(page, ["TrainController", "RayTrainWorker"])
        print("actors: shows the run's controller and its workers")
        page.save_screenshot(str(arguments.out.with_stem(arguments.out.stem + "-actors")))


if __name__ == "__main__":
    main()
