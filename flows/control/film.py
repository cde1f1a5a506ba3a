"""Rollouts of a control policy as moving pictures: flat worlds are drawn here, others by their environment's renderer."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flows.control.environment import Mode
from flows.control.look import play
from flows.control.pictures import HUES, Scene, world
from studio.errors import MissingError

WIDTH, PATHS, LONGEST = 320, 60, 400  # pixels, episodes in one picture of a flat world, frames
SHORT, COLORS, SECONDS = 20, 64, 3.0  # of a film that training keeps: frames, colors, how long it takes


def film(arena: Any, policy: Any, file: Path, *, seed: int, mode: Mode = "stochastic") -> Path:
    """One GIF: many episodes at once in a flat world, else one episode as its environment shows it."""
    options = arena.options
    if hasattr(options, "scene"):
        path = play(options, policy, arena.normalizer, PATHS, seed, mode, getattr(options, "start", None)).path
        frames = list(_drawn(options.scene(), path))
    else:
        frames = _rendered(options, policy, arena.normalizer, seed, mode)
    first, *rest = frames[:: max(1, len(frames) // LONGEST)]
    file.parent.mkdir(parents=True, exist_ok=True)
    first.save(file, save_all=True, append_images=rest, duration=60, loop=0)
    return file


def short_film(scene: Scene, path: Tensor) -> bytes:
    """A small GIF of episodes in a flat world.  path [L, copies, n], the first two numbers are the place; NaN after an end"""
    every = -(-len(path) // SHORT)
    first, *rest = [frame.quantize(COLORS, Image.Quantize.FASTOCTREE) for frame in _drawn(scene, path[:, :PATHS], every)]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 * SECONDS / (1 + len(rest))), loop=0)
    return file.getvalue()


def _drawn(scene: Scene, path: Tensor, every: int = 1):
    """A picture of every so many steps: where the episodes are, and where they came from.  path [L, copies, n]"""
    place = path[:, :, :2].numpy()
    for t in range(0, len(place), every):
        canvas = world(scene, f"step {t}")
        for k in range(place.shape[1]):
            own = place[: t + 1, k][~np.isnan(place[: t + 1, k, 0])]
            if len(own) > 1:
                canvas.pen.line(canvas.at(own[-8 * every :]), fill=(*HUES[k % len(HUES)], 110), width=3)
        canvas.dots(place[t][~np.isnan(place[t, :, 0])], HUES[0], 200, 2.5)
        pixels = (canvas.picture().permute(1, 2, 0) * 255).byte().numpy()
        yield Image.fromarray(pixels).resize((WIDTH, WIDTH))


@torch.no_grad()
def _rendered(options: Any, policy: Any, normalizer: Any, seed: int, mode: Mode) -> list[Image.Image]:
    gym = options.gym() if hasattr(options, "gym") else options
    if not hasattr(gym, "kwargs"):
        raise MissingError(
            f"sample: expected an environment that can be shown, got {type(options).__name__}. Record pictures in its own "
            "simulator."
        )
    env = replace(gym, asynchronous=False, kwargs={**gym.kwargs, "render_mode": "rgb_array"}).build(1, 0, seed)
    frames, over, t = [], False, 0
    try:
        now = env.reset()
        while not over:
            frames.append(_frame(env))
            draw = {name: value[0] for name, value in policy.draws(-1 - t, 1, 1).items()}
            step = env.step(policy.decide(normalizer.observation(now), draw, mode))
            now, over, t = step.observation, bool(step.terminated | step.truncated), t + 1
    finally:
        env.close()
    return frames


def _frame(env: Any) -> Image.Image:
    """What the environment shows now; MissingError when it cannot, e.g. without a display or its drawing library."""
    try:
        pixels = env.vector.envs[0].env.render()
        picture = Image.fromarray(np.asarray(pixels))
    except Exception as error:  # whatever a renderer raises: it has nothing to do with the policy
        raise MissingError(
            f"sample: expected a picture of {env.options.id!r}, got {type(error).__name__}: {error}. Install what its renderer "
            "needs; MuJoCo without a display needs MUJOCO_GL=egl or osmesa."
        ) from error
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)))
