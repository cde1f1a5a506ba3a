"""The card that lies beside the bundled weights and says how they were made."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "diffusers", "transformers")


def write_card(folder: Path, settings, seconds: float) -> None:
    """README.md of the weights: their making, settings, versions and limits. A pure function of its arguments."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in asdict(settings).items())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    (folder / "README.md").write_text(
        f"""# The bundled shapes models

`pipeline/` is a `StableDiffusion3Pipeline` of stock diffusers and transformers classes that draws 32x32 pictures of captioned
scenes ("two red circles left of a blue square"). `scorer/` is a small `CLIPModel` for the same world.

Both were trained from random weights by `studio pretrain shapes`, on scenes drawn by `flows/shapes/world.py`; no data and no
weights from elsewhere. Captions whose hash falls into the held-out eighth were never seen. Made in {seconds / 60:.0f} minutes on
two CPU cores with {versions}.

    from diffusers import StableDiffusion3Pipeline
    pipe = StableDiffusion3Pipeline.from_pretrained("flows/shapes/pipeline")
    pipe("two red circles left of a blue square", num_inference_steps=8, guidance_scale=1.0, max_sequence_length=1).images[0]

`max_sequence_length=1` leaves out the padding of the T5 encoder, which is silent here; the default of 256 works and is slower.

| setting | value |
|---|---|
{rows}

Limits: a toy world for tests, demonstrations and small experiments. License: Apache-2.0, as the project.
""",
        encoding="utf-8",
    )
