"""Pictures of every page of the interface over real runs -> docs/ui/NAME.png, and some at the width of a telephone.

Needs Debian's chromium and the extra `dev`.  The runs are named, so that each page shows one that has something to show.

    python -m experiments.screenshots --runs runs --image demo --other dance --text sums --control goals --prune smaller
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

OUT = Path("docs/ui")
COLORS = 256  # of a picture, so that it stays small
TALLEST = 1500  # pixels of a picture; pages may be longer
WIDTHS = {"": 1280, "-narrow": 390}
NARROW = ("runs", "run", "samples")  # pages that are also taken narrow
DARK = ("compare", "control")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=Path, default=Path("runs"))
    for kind in ("image", "other", "text", "control", "prune"):
        arguments.add_argument(f"--{kind}", required=True, help="name of a run")
    arguments.add_argument("--only", nargs="*", help="names of pictures")
    given = arguments.parse_args()

    from playwright.sync_api import sync_playwright

    from ui.app import build, launch

    app = build(given.runs)
    address = launch(app).rstrip("/")
    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (place, act) in pictures(given).items():
            for suffix, width in WIDTHS.items():
                if (given.only and name not in given.only) or (suffix and name not in NARROW):
                    continue
                page = chrome.new_page(
                    viewport={"width": width, "height": 900},
                    color_scheme="dark" if name in DARK else "light",
                    reduced_motion="reduce",
                )
                page.goto(f"{address}/{place}")
                page.wait_for_selector(".studio-header a")
                page.wait_for_timeout(3000)  # pages fill themselves in
                act(page)
                save(page.screenshot(full_page=True), OUT / f"{name}{suffix}.png")
                page.close()
        chrome.close()
    app.close()


def pictures(given: Any) -> dict[str, tuple[str, Callable[[Any], None]]]:
    """name -> address with its query, and what is done there first."""

    def scored(page: Any) -> None:
        steps = given.runs / given.image / "samples"
        files = sorted((max(steps.iterdir())).glob("p*.*"))[:8]
        page.set_input_files("input[type=file]", [*map(str, files), str(files[0].parent / "samples.jsonl")])
        page.wait_for_timeout(1500)
        page.get_by_role("button", name="Score", exact=True).click()
        page.wait_for_selector(".judged table", timeout=120_000)
        page.wait_for_timeout(15_000)

    def checked(page: Any) -> None:
        page.get_by_text("checking …").wait_for(state="hidden", timeout=120_000)
        page.wait_for_timeout(2000)

    return {
        "runs": ("", rest),
        "run": (f"run?run={given.image}&others={given.other}", rest),
        "samples": (f"samples?run={given.image}", rest),
        "groups": (f"samples?run={given.image}&view=groups", rest),
        "text": (f"samples?run={given.text}&view=groups", rest),
        "control": (f"samples?run={given.control}", rest),
        "compare": (f"compare?run={given.image}&other={given.other}", rest),
        "launch": ("launch?recipe=shapes/grpo-guard", checked),
        "rewards": ("rewards", scored),
        "prune": (f"prune?run={given.prune}", rest),
        "export": (f"export?run={given.image}", rest),
    }


def rest(page: Any) -> None:
    page.wait_for_timeout(500)


def save(png: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, TALLEST)))
    picture.quantize(COLORS, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
