"""The README's pictures from the demo's real run: `python -m benchmarks.pictures` writes docs/images/.

Runs the demo where its folder holds no verdict yet. Figures are those of the report, as SVG files for light and dark
pages; the report and its label browser are photographed in a headless Chromium where there is one.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semievol_api.cli.demo import run_demo
from semievol_api.report.figures import Figure, figures
from semievol_api.report.page import write_report
from semievol_api.report.read_run import read_report_data
from semievol_api.store.run_store import stages_done

ROOT = Path(__file__).resolve().parents[1]
STYLE = (
    "<style>svg{--ink:#16191d;--muted:#55606c;--line:#d4d9df;--first:#1f5fbf;--second:#b3470b;--paper:#ffffff;"
    "font-family:system-ui,sans-serif}@media(prefers-color-scheme:dark){svg{--ink:#e9edf2;--muted:#a3afbc;"
    "--line:#363e48;--first:#7db2ff;--second:#ffa066;--paper:#12151a}}</style>"
)
DRAWN = ("accuracy", "gains", "precision-coverage")
COLOURS = 96
WIDTH, HEIGHT = 1200, 838


def main() -> None:
    """Make every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/demo", help="the demo's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    chosen = parser.parse_args()
    run = chosen.folder / "run"
    if "verdict" not in stages_done(run):
        run_demo(chosen.folder, quick=False, as_json=False)
    chosen.out.mkdir(parents=True, exist_ok=True)
    written = [*draw(run, chosen.out), *photograph(run, chosen.out)]
    for path in written:
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def draw(run: Path, out: Path) -> Iterator[Path]:
    """The report's figures as files of their own."""
    made = figures(read_report_data(run))
    for name in DRAWN:
        if name in made:
            path = out / f"{name}.svg"
            path.write_text(standalone(made[name]), "utf-8")
            yield path


def standalone(figure: Figure) -> str:
    """A figure with its colours and a name for those who can't see it."""
    opening = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img"'
    title = f"<title>{figure.description}</title>"
    return re.sub(r"<svg ([^>]*?)aria-hidden=\"true\">", rf"{opening} \1>{title}{STYLE}", figure.svg, count=1)


def photograph(run: Path, out: Path) -> Iterator[Path]:
    """The report's top and its label browser; nothing without Chromium."""
    with tempfile.TemporaryDirectory() as folder, _browser(Path(folder)) as driver:
        if driver is None:
            print("No chromium with chromedriver and selenium: the pictures of the report stay as they are.")
            return
        page = write_report(run, Path(folder) / "report.html")
        for theme in ("light", "dark"):
            driver.get(page.as_uri())
            _ready(driver)
            if driver.execute_script("return document.documentElement.dataset.theme") != theme:
                driver.find_element("id", "theme").click()
            yield _shot(driver, out / f"report-{theme}.png")
        driver.find_element("id", "theme").click()
        driver.execute_script("document.getElementById('search').scrollIntoView({block: 'start'}); scrollBy(0, -90)")
        driver.find_element("css selector", "#rows .row").click()
        yield _shot(driver, out / "label-browser.png")


@contextmanager
def _browser(folder: Path) -> Iterator[Any]:
    import shutil

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        chromium = None
    if chromium is None or driver is None:
        yield None
        return
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def _ready(driver: Any) -> None:
    deadline = time.monotonic() + 30
    while not driver.execute_script("return document.getElementById('grid').dataset.ready"):
        if time.monotonic() > deadline:
            raise RuntimeError("the report's rows did not appear")
        time.sleep(0.05)


def _shot(driver: Any, path: Path) -> Path:
    """What the window shows, in few colours so that the file stays small."""
    from PIL import Image

    time.sleep(0.3)
    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    main()
