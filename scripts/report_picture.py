"""The picture of the README: part of a run's report, as a headless Chromium draws it.

    make demo
    .venv/bin/python scripts/report_picture.py demo/report.html docs/images/report.png

It takes the first row of the scatter plots, and the head of the heat map. Needs chromium and chromedriver.
"""

import argparse
from pathlib import Path

from selenium import webdriver

WIDTH = 1100
KEEP = """
for (const section of document.querySelectorAll("section")) {
  const title = section.querySelector("h2").textContent;
  section.hidden = !title.startsWith("Predicted and observed") && !title.startsWith("Pathway activity");
}
for (const part of document.querySelectorAll("h1, .note")) part.hidden = true;
[...document.querySelectorAll("figure")].forEach((figure, i) => { figure.hidden = i >= 4; });
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
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},{given.height}"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options)
    try:
        browser.get(given.report.resolve().as_uri())
        browser.execute_script(KEEP)
        given.picture.parent.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(given.picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
