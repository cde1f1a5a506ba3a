"""The license a trained model inherits: from its base's own metadata, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class License:
    """As the front matter of a model card states it; `unknown` is what the Hub calls a license nobody has stated."""

    id: str = "unknown"
    name: str | None = None  # of a license that is not in the Hub's list; id is then "other"
    link: str | None = None

    @property
    def text(self) -> str:
        """One sentence for the card."""
        if self.id == "unknown":
            return "The base states no license that could be found here: find out before you share or use these weights."
        return f"{self.name or self.id}{f' ({self.link})' if self.link else ''}, as the base."


def _stability(model: str) -> License:
    return License("other", "stabilityai-ai-community", f"https://huggingface.co/{model}/blob/main/LICENSE.md")


# What the cards of the gated families state: their metadata cannot be read without accepting the terms.
STATED = {
    "shapes": License("apache-2.0"),  # bundled, trained from random weights by this project
    **{
        name: _stability(name)
        for name in (f"stabilityai/stable-diffusion-3.5-{size}" for size in ("medium", "large", "large-turbo"))
    },
    "stabilityai/stable-diffusion-3-medium-diffusers": License(
        "other", "stabilityai-ai-community", "https://huggingface.co/stabilityai/stable-diffusion-3-medium/blob/main/LICENSE.md"
    ),
    "black-forest-labs/FLUX.1-dev": License(
        "other",
        "flux-1-dev-non-commercial-license",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    ),
    "black-forest-labs/FLUX.1-schnell": License("apache-2.0"),
}


def base_license(model_id: str, folder: str | Path | None = None, *, revision: str | None = None) -> License:
    """The license in the base's card: in its folder or the Hub cache (nothing is fetched), else as STATED, else unknown."""
    card = Path(folder) / "README.md" if folder is not None and Path(folder).is_dir() else _cached_card(model_id, revision)
    found = front_matter(card.read_text(encoding="utf-8")) if card is not None and card.is_file() else {}
    if found.get("license"):
        return License(*(str(found[key]) if found.get(key) else None for key in ("license", "license_name", "license_link")))  # type: ignore[arg-type]
    return STATED.get(model_id, License())


def front_matter(text: str) -> dict:
    """The YAML block at the head of a card; empty when there is none that can be read."""
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        found = yaml.safe_load(text[4 : text.index("\n---", 3)])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def is_hub_id(model_id: str) -> bool:
    """`owner/name` as against a bundled name or a folder."""
    owner, _, name = model_id.partition("/")
    return bool(owner and name) and "/" not in name and not model_id.startswith((".", "~")) and not Path(model_id).exists()


def _cached_card(model_id: str, revision: str | None) -> Path | None:
    if not is_hub_id(model_id):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_id, "README.md", revision=revision)
    return Path(found) if isinstance(found, str) else None
