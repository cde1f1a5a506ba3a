"""Programs that read the text in a picture: each takes [H, W, 3] uint8 and returns lines, or None when it failed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from rewards.pictures import as_png
from rewards.weights import require
from studio.errors import MissingError

if TYPE_CHECKING:
    from numpy import ndarray

Engine = Callable[["ndarray"], list[str] | None]
TIMEOUT = 60  # seconds that tesseract may spend on a picture


@lru_cache(maxsize=1)
def rapidocr() -> Engine:
    """PP-OCR on the CPU through onnxruntime; its models come with the package."""
    package = require("rapidocr", "ocr", "ocr")
    require("onnxruntime", "ocr", "ocr")
    engine = package.RapidOCR(params={"Global.log_level": "error"})

    def read(picture: ndarray) -> list[str] | None:
        try:
            found = engine(picture[..., ::-1].copy())  # arrays are BGR to it
        except Exception:  # whatever a picture does to the engine, the other pictures still have scores
            return None
        return list(found.txts or ())

    return read


def tesseract() -> Engine:
    """The command of that name, once per picture."""
    command = shutil.which("tesseract")
    if command is None:
        raise MissingError(
            "reward 'ocr': expected the command tesseract, got none on the PATH. Install the system package tesseract-ocr, "
            "or use engine=rapidocr."
        )

    def read(picture: ndarray) -> list[str] | None:
        from PIL import Image

        ask = [command, "stdin", "stdout", "-l", "eng"]
        try:
            done = subprocess.run(ask, input=as_png(Image.fromarray(picture)), capture_output=True, check=True, timeout=TIMEOUT)
        except subprocess.SubprocessError:
            return None
        return done.stdout.decode("utf-8", "replace").split("\n")

    return read


ENGINES: dict[str, Callable[[], Engine]] = {"rapidocr": rapidocr, "tesseract": tesseract}
