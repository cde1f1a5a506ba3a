"""How the bundled models were made: an autoencoder, a flow-matching pipeline and a contrastive scorer, from one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flows.shapes import models, world
from flows.shapes.card import write_card

Report = Callable[[str], None]


@dataclass(frozen=True)
class Pretrain:
    """Settings of the three stages; the defaults made the shipped weights on two CPU cores."""

    seed: int = 0
    scenes: int = 40_000  # drawn once; the flow stage revisits their latents
    vae_steps: int = 3_000
    vae_batch: int = 64
    vae_learning_rate: float = 2e-3
    kl: float = 1e-4  # weight of the latent prior per pixel of reconstruction error
    flow_steps: int = 4_500
    flow_batch: int = 96
    flow_learning_rate: float = 1.5e-3
    empty_share: float = 0.1  # captions replaced by "", for classifier-free guidance
    long_share: float = 0.05  # batches with the 256 silent T5 tokens of a default diffusers call
    scorer_steps: int = 1_600
    scorer_batch: int = 128
    scorer_learning_rate: float = 1e-3
    shift: float = 3.0  # of the shipped scheduler, as SD3


def pretrain(folder: Path, settings: Pretrain, report: Report = print) -> None:
    """Train and write `pipeline/` and `scorer/` under `folder`; a finished stage is not repeated."""
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    pictures, captions = draw_many(settings.seed, settings.scenes)
    report(f"drew {len(captions)} scenes in {time.monotonic() - started:.0f} s")
    vae = models.build_vae()
    train_vae(vae, pictures, settings, report)
    pipeline = models.build_pipeline(vae, settings.shift)
    train_flow(pipeline, pictures, captions, settings, report)
    pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    report(f"pipeline written after {time.monotonic() - started:.0f} s")
    scorer = models.build_scorer(pipeline.tokenizer)
    train_scorer(scorer, vae, pipeline.tokenizer, pictures, captions, settings, report)
    save_scorer(scorer, pipeline.tokenizer, folder / "scorer")
    write_card(folder, settings, seconds=time.monotonic() - started)
    report(f"done in {time.monotonic() - started:.0f} s")


def draw_many(seed: int, count: int) -> tuple[Tensor, list[str]]:
    """Pictures [count, 3, 32, 32] in [-1, 1] of training scenes, and their captions."""
    rng = np.random.default_rng(seed)
    chosen = list(islice(world.scenes(seed), count))
    pictures = np.stack([world.draw(scene, rng) for scene in chosen])
    return torch.from_numpy(pictures) * 2 - 1, [world.caption(scene) for scene in chosen]


def train_vae(vae, pictures: Tensor, settings: Pretrain, report: Report) -> None:
    """Reconstruction plus a light KL; afterwards latents are shifted and scaled to mean 0 and variance 1."""
    optimizer, schedule = _optimizer(vae.parameters(), settings.vae_learning_rate, settings.vae_steps)
    for step, index in enumerate(_batches(len(pictures), settings.vae_batch, settings.vae_steps)):
        x = pictures[index]
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        error = F.mse_loss(decoded, x) + 0.2 * F.l1_loss(decoded, x)
        loss = error + settings.kl * posterior.kl().mean() / x[0].numel()
        _step(loss, optimizer, schedule, vae.parameters())
        _tell(report, "vae", step, settings.vae_steps, loss)
    vae.eval().requires_grad_(False)
    latents = encode(vae, pictures[:4096], raw=True)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def train_flow(pipeline, pictures: Tensor, captions: list[str], settings: Pretrain, report: Report) -> None:
    """Rectified flow: the network at x_t = (1-t) x0 + t e answers e - x0; t is logit-normal. Ships the EMA weights."""
    from diffusers.training_utils import EMAModel

    network, encoders = pipeline.transformer, (pipeline.text_encoder, pipeline.text_encoder_2)
    parts = torch.nn.ModuleList([network, *encoders])
    latents = encode(pipeline.vae, pictures)
    tokens = pipeline.tokenizer([*captions, ""], padding="max_length", return_tensors="pt").input_ids
    optimizer, schedule = _optimizer(parts.parameters(), settings.flow_learning_rate, settings.flow_steps)
    average = EMAModel(parts.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    for step, index in enumerate(_batches(len(latents), settings.flow_batch, settings.flow_steps)):
        long = torch.rand((), generator=draws) < settings.long_share
        index = index[: len(index) // 4] if long else index
        x0, ids = latents[index], tokens[index].clone()
        ids[torch.rand(len(index), generator=draws) < settings.empty_share] = tokens[-1]
        noise = torch.randn(x0.shape, generator=draws)
        t = torch.sigmoid(0.3 + 1.1 * torch.randn(len(index), generator=draws))[:, None, None, None]
        embeds, pooled = embed(encoders, ids, silent=256 if long else 1)
        velocity = network(
            (1 - t) * x0 + t * noise,
            timestep=t.flatten() * 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        loss = F.mse_loss(velocity, noise - x0)
        _step(loss, optimizer, schedule, parts.parameters())
        average.step(parts.parameters())
        _tell(report, "flow", step, settings.flow_steps, loss)
    average.copy_to(parts.parameters())
    parts.eval().requires_grad_(False)


def train_scorer(scorer, vae, tokenizer, pictures: Tensor, captions: list[str], settings: Pretrain, report: Report):
    """Contrastive (CLIP) on drawn and reconstructed pictures, with one wrong caption per picture as a hard negative."""
    rng = np.random.default_rng(settings.seed + 2)
    optimizer, schedule = _optimizer(scorer.parameters(), settings.scorer_learning_rate, settings.scorer_steps)
    for step, index in enumerate(_batches(len(pictures), settings.scorer_batch, settings.scorer_steps)):
        x = pictures[index]
        if step % 2:  # generated pictures come through the decoder, so half of what the scorer sees does too
            with torch.no_grad():
                x = vae.decode(vae.encode(x).latent_dist.sample()).sample.clamp(-1, 1)
        right = [captions[i] for i in index.tolist()]
        wrong = [world.caption(alter(world.parse(text), rng)) for text in right]
        ids = tokenizer([*right, *wrong], padding="max_length", return_tensors="pt").input_ids
        out = scorer(input_ids=ids, pixel_values=x + 0.02 * torch.randn_like(x))
        by_image, by_text = out.logits_per_image, out.logits_per_text[: len(right)]
        same = torch.tensor([[a == b and i != j for j, b in enumerate([*right, *wrong])] for i, a in enumerate(right)])
        by_image = by_image.masked_fill(same, -torch.inf)  # an equal caption is no negative
        by_text = by_text.masked_fill(same[:, : len(right)], -torch.inf)
        target = torch.arange(len(right))
        loss = (F.cross_entropy(by_image, target) + F.cross_entropy(by_text, target)) / 2
        _step(loss, optimizer, schedule, scorer.parameters())
        _tell(report, "scorer", step, settings.scorer_steps, loss)
    scorer.eval().requires_grad_(False)


def alter(scene: world.Scene, rng: np.random.Generator) -> world.Scene:
    """A scene that differs in one attribute: a count, a color, a shape, or the relation."""
    groups, which = list(scene.groups), int(rng.integers(len(scene.groups)))
    group, kind = groups[which], rng.integers(4 if scene.relation else 3)
    if kind == 3:
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        return world.Scene(scene.groups, opposite[scene.relation or ""])
    count = [n for n in world.COUNTS if n != group.count]
    color = [name for name in world.COLORS if name != group.color]
    shape = [name for name in world.SHAPES if name != group.shape]
    groups[which] = world.Group(
        int(rng.choice(count)) if kind == 0 else group.count,
        str(rng.choice(color)) if kind == 1 else group.color,
        str(rng.choice(shape)) if kind == 2 else group.shape,
    )
    return world.Scene(tuple(groups), scene.relation)


def embed(encoders, ids: Tensor, *, silent: int) -> tuple[Tensor, Tensor]:
    """What StableDiffusion3Pipeline.encode_prompt makes of these tokens, with gradients: [B, L + silent, D], [B, D]."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    embeds = torch.cat([hidden, hidden.new_zeros(len(ids), silent, hidden.shape[-1])], dim=1)
    return embeds, torch.cat([out.text_embeds for out in outputs], dim=-1)


@torch.no_grad()
def encode(vae, pictures: Tensor, *, raw: bool = False) -> Tensor:
    """Latents [B, C, 8, 8] of pictures in [-1, 1]; normalized by the autoencoder's shift and scale unless raw."""
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(256)])
    return latents if raw else (latents - vae.config.shift_factor) * vae.config.scaling_factor


def save_scorer(scorer, tokenizer, folder: Path) -> None:
    """The scorer with tokenizer and image processor, as any CLIP folder."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": world.SIZE},
        crop_size={"height": world.SIZE, "width": world.SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    for part in (scorer, tokenizer, processor):
        part.save_pretrained(folder)


def _batches(count: int, batch: int, steps: int) -> Iterator[Tensor]:
    """`steps` batches of indices, one shuffled pass after the other."""
    made, order = 0, torch.empty(0, dtype=torch.int64)
    while made < steps:
        if len(order) < batch:
            order = torch.randperm(count)
        yield order[:batch]
        order, made = order[batch:], made + 1


def _optimizer(parameters, learning_rate: float, steps: int):
    from diffusers.optimization import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(list(parameters), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=min(150, steps // 10), num_training_steps=steps)


def _step(loss: Tensor, optimizer, schedule, parameters) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def _tell(report: Report, stage: str, step: int, steps: int, loss: Tensor) -> None:
    if step % 100 == 0 or step + 1 == steps:
        report(f"{stage} {step + 1}/{steps} loss {loss.item():.4f}")
