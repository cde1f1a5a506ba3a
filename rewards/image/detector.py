"""Objects in pictures by a detector of transformers: boxes, or instance masks with their boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rewards.pictures import as_pil
from rewards.weights import device_of, fetch, split_revision
from studio.errors import MissingError

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 0.05  # confidence below which nothing is an object for anyone
MASKS = ("mask2former", "maskformer")  # families of instance segmentation


@dataclass(frozen=True)
class Found:
    """An object in a picture."""

    kind: str  # the detector's name of the class
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    confidence: float
    mask: Tensor | None = None  # [H, W] bool; None for a detector of boxes


class Detector:
    """A frozen network with its image processor."""

    def __init__(self, network: Any, processor: Any, family: str) -> None:
        self.network, self.processor = network, processor
        self.read = _masks if family in MASKS else _boxes
        self.kinds = frozenset(network.config.id2label.values())  # what it can find

    def __call__(self, images: Tensor) -> list[list[Found]]:
        """The objects of every picture [B, 3, H, W] in [0, 1]."""
        import torch

        inputs = self.processor(images=as_pil(images), return_tensors="pt").to(self.network.device)
        sizes = [tuple(images.shape[-2:])] * len(images)
        with torch.no_grad():
            return self.read(self.processor, self.network(**inputs), sizes, self.network.config.id2label)


@lru_cache(maxsize=2)
def load_detector(model: str, device: str) -> Detector:
    """A frozen detector from the Hub, its cache or a folder."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, AutoModelForUniversalSegmentation

    place, revision = split_revision(model)
    try:
        family = AutoConfig.from_pretrained(place, revision=revision).model_type
        kind = AutoModelForUniversalSegmentation if family in MASKS else AutoModelForObjectDetection
        network = kind.from_pretrained(place, revision=revision, use_safetensors=True)
        processor = AutoImageProcessor.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as problem:
        first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise MissingError(
            f"detector {model!r}: expected an object detector of transformers, got {first} {fetch(place)}"
        ) from problem
    return Detector(network.to(device_of(device)).eval().requires_grad_(False), processor, family)


def _boxes(processor: Any, output: Any, sizes: list, names: dict[int, str]) -> list[list[Found]]:
    pages = processor.post_process_object_detection(output, threshold=FLOOR, target_sizes=sizes)
    return [
        [
            Found(names[label], tuple(box), score)
            for label, box, score in zip(page["labels"].tolist(), page["boxes"].tolist(), page["scores"].tolist(), strict=True)
        ]
        for page in pages
    ]


def _masks(processor: Any, output: Any, sizes: list, names: dict[int, str]) -> list[list[Found]]:
    pages = processor.post_process_instance_segmentation(output, threshold=FLOOR, target_sizes=sizes, return_binary_maps=True)
    found = []
    for page in pages:
        objects = page["segments_info"]
        masks = page["segmentation"].bool().cpu() if objects else ()  # without objects it is no stack of masks
        pairs = zip(masks, objects, strict=True)
        found.append([Found(names[one["label_id"]], box_of(mask), one["score"], mask) for mask, one in pairs if mask.any()])
    return found


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """The smallest box around a mask [H, W]."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1
