"""The picture of the README: part of a run's report, as a headless Chromium draws it.

    tadvae report run --out report.html
    python scripts/report_picture.py report.html docs/images/report.png

It takes the first row of the scatter plots, and the heat map. Needs Chromium and its driver (Debian:
`apt-get install chromium chromium-driver`) and the package `selenium`.
"""

import argparse
import os
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTH = 1000
KEEP = """
for (const section of document.querySelectorAll("section")) {
  const title = section.querySelector("h2").textContent;
  section.hidden = !title.startsWith("Predicted and observed") && !title.startsWith("Pathway activity");
}
for (const part of document.querySelectorAll("h1, .note, .answer, .csv")) part.hidden = true;
for (const part of document.querySelectorAll("details")) part.hidden = true;
[...document.querySelectorAll("figure")].forEach((figure, i) => { figure.hidden = i >= 3; });
for (const heading of document.querySelectorAll("h2")) heading.style.marginTop = ".6rem";
document.body.style.margin = "0 auto";
"""


def main() -> None:
    """Draw the page and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--height", type=int, default=1000, help="pixels")
    given = parser.parse_args()
    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(word)
    options.add_argument(f"--window-size={WIDTH},{given.height}")
    options.binary_location = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    browser = webdriver.Chrome(options, Service(os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver")))
    try:
        browser.get(given.report.resolve().as_uri())
        browser.execute_script(KEEP)
        given.picture.parent.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(given.picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
