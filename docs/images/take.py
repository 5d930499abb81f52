"""Pictures of a board's page for the docs: light, dark and at a phone's width.

    python docs/images/take.py leaderboards/arithmetic/board.html docs/images

Needs playwright and a Chromium on the path.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = {
    # name: (width, height, colour scheme)
    "board-light": (1280, 1800, "light"),
    "board-dark": (1280, 1800, "dark"),
    "board-phone": (390, 1800, "light"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scheme) in PICTURES.items():
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab.goto(arguments.page.resolve().as_uri())
            tab.wait_for_selector("#heatmap *")
            tab.screenshot(path=arguments.folder / f"{name}.png")
            print(arguments.folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
