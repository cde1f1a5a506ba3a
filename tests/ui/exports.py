"""Export folders as `studio export` leaves them, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from studio.run import Run

CARD = """---
license: {license}
base_model_relation: adapter
---

# image-run

A LoRA adapter for `shapes`, aligned with scene.

Same prompts, same seeds:

| prompt | before | after |
|---|---|---|
| two circles | ![before](images/000-before.png) | ![after](images/000-after.png) |

## Use with diffusers

```python
pipe.load_lora_weights("THIS-REPOSITORY")
```
"""


def make_export(run: Run, form: str = "lora", *, license: str = "apache-2.0", text: str = CARD, **facts: Any) -> Path:
    """Weights of 2,000 bytes, a card with two pictures, and export.json."""
    folder = run.folder / "export" / form
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for side in ("before", "after"):
        Image.new("RGB", (8, 8), "red" if side == "before" else "blue").save(folder / "images" / f"000-{side}.png")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"w" * 2000)
    (folder / "README.md").write_text(text.replace("{license}", license))
    (folder / "export.json").write_text(json.dumps({"format": form, "step": 20, "base": "shapes", "error": 0.0, **facts}))
    return folder


def add_checkpoint(run: Run, *steps: int) -> None:
    for step in steps:
        folder = run.folder / "checkpoints" / f"{step:06d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()
