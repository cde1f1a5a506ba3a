"""Environments of one process: stretches of actions for training, with normalization and everything a resumed run needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.control.environment import Step
from flows.control.normalize import Normalizer
from studio.errors import ConfigError, RunError
from studio.settings import Acting
from studio.types import Evaluation, Prompts, Rollout
from studio.watch import Seen

SCALE = "observations.safetensors"


class Arena:
    """`acting.environments` copies in all, this process's share of them, and where they stand."""

    def __init__(self, options: Any, acting: Acting, seed: int, rank: int = 0, world: int = 1) -> None:
        self.options, self.acting, self.seed, self.rank, self.world = options, acting, seed, rank, world
        count = acting.environments // world
        self.first, self.env = rank * count, options.build(count, rank * count, seed)
        self.env_seed = seed
        self.space = self.env.space
        self.normalizer = Normalizer(acting, self.space.observation, count)
        self.together: Callable[[Tensor], Tensor] = lambda x: x  # sum over processes
        self.now = torch.zeros(0)  # observations to act on; none before the first stretch
        self.since = torch.zeros(2, count)  # return and length of the running episodes
        self._everywhere: list[Any] | None = None

    @torch.no_grad()
    def stretch(self, policy: Any, step: int) -> Rollout:
        """The next `acting.steps` actions of every copy, with their rewards and the values of the states they led to."""
        if not len(self.now):
            self.now = self.env.reset()
        policy.begin(step)
        steps, rows = self.acting.steps, self.acting.environments
        own = slice(self.first, self.first + self.env.count)
        draws = {name: draw[:, own] for name, draw in policy.draws(step, steps, rows).items()}
        records: list[dict[str, Tensor]] = []
        outcomes: list[Step] = []
        for t in range(steps):
            seen = self.normalizer.observation(self.now)
            action, record = policy.act(seen, {name: draw[t] for name, draw in draws.items()})
            outcome = self.env.step(action)
            records.append(record | {"observation": seen})
            outcomes.append(outcome)
            self.now = outcome.observation
        record = {name: torch.stack([each[name] for each in records], 1) for name in records[0]}
        index = (self.first + torch.arange(self.env.count))[:, None] * steps + torch.arange(steps)
        return self._rollout(policy, record | {"index": index}, outcomes)

    def _rollout(self, policy: Any, record: dict[str, Tensor], outcomes: list[Step]) -> Rollout:
        """The stretch as a rollout: scaled rewards, values now and after every action."""
        raw = torch.stack([each.reward for each in outcomes], 1)
        dead, cut = (torch.stack([getattr(each, name) for each in outcomes], 1) for name in ("terminated", "truncated"))
        reached = torch.stack([each.after for each in outcomes], 1)
        ends = dead | cut
        value = policy.value(record["observation"])
        after = torch.cat([value[:, 1:], policy.value(self.normalizer.observation(reached[:, -1:]))], 1)
        late = cut.clone()
        late[:, -1] = False
        if late.any():  # the state where a time limit cut an episode is not the one that follows in the stretch
            after[late] = policy.value(self.normalizer.observation(reached[late]))
        parts = self._episodes(raw, ends, outcomes)
        reward = self.normalizer.reward(raw, ends, self.together)
        self.normalizer.learn(torch.stack([each.observation for each in outcomes], 1), self.together)
        trace = policy.trace(record)
        return Rollout(
            Prompts([], [], []),
            None,
            trace,
            torch.ones(raw.shape, dtype=torch.bool),
            torch.arange(self.first, self.first + len(raw)),
            Evaluation(value=value, logp=trace.said.logp if trace.parts == 1 else None, post=trace.said.post),
            reward=reward,
            after=after.masked_fill(dead, 0.0),
            ends=ends,
            parts=parts,
        )

    def _episodes(self, reward: Tensor, ends: Tensor, outcomes: list[Step]) -> dict[str, Tensor]:
        """Mean return and length of the episodes that ended, and means of what the environment tells; [N], NaN where none ended."""
        found, count = torch.zeros(2, len(reward)), ends.sum(1)
        for t in range(reward.shape[1]):
            self.since = self.since + torch.stack([reward[:, t], torch.ones(len(reward))])
            found += self.since * ends[:, t]
            self.since = self.since * ~ends[:, t]
        parts = {"return": found[0] / count, "length": found[1] / count}
        for name in outcomes[0].info:
            told = torch.stack([each.info[name] for each in outcomes], 1).float()
            parts[name] = (told * ends).sum(1) / count  # at the end of an episode
        return parts

    def look(self, policy: Any, step: int, episodes: int, seed: int) -> Any:
        """Evaluation in copies of its own; none where a process can hold one simulator only."""
        if getattr(self.options, "alone", False):
            return Seen({}, torch.zeros(0), [])
        from flows.control.look import look

        return look(self, policy, step, episodes, seed)

    def measure(self, policy: Any, episodes: int, seed: int) -> dict[str, float]:
        """Figures of whole episodes: as trained, and as `noiseless.*` and `deterministic.*`."""
        if getattr(self.options, "alone", False):
            raise ConfigError(
                f"evaluate: expected an environment of which a process can hold several, got {type(self.options).__name__}. Read "
                "reward/return of the training run."
            )
        from flows.control.look import measure

        return measure(self, policy, episodes, seed)

    def film(self, policy: Any, file: Path, seed: int) -> Path:
        """Rollouts as a GIF."""
        from flows.control.film import film

        return film(self, policy, file, seed=seed)

    def save(self, folder: Path) -> None:
        """The scale of observations, which belongs to the weights; safetensors."""
        from safetensors.torch import save_file

        save_file(self.normalizer.observations.state_dict(), folder / SCALE)

    def load(self, folder: Path) -> None:
        """What `save` wrote beside the weights."""
        from safetensors.torch import load_file

        self.normalizer.observations.load_state_dict(load_file(folder / SCALE))

    def gather(self, collect: Callable[[Any], list[Any]]) -> None:
        """States of all copies, of all processes: the main one writes the checkpoint."""
        own = {"env": self.env.state_dict(), "now": self.now, "since": self.since, "returns": self.normalizer.returns}
        self._everywhere = collect(own)

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self._everywhere, "normalizer": self.normalizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["ranks"]) != self.world:
            raise RunError(
                f"environments: expected a checkpoint of {self.world} processes, got one of {len(state['ranks'])}. Resume with "
                "as many."
            )
        own = state["ranks"][self.rank]
        self.env.load_state_dict(own["env"])
        self.normalizer.load_state_dict(state["normalizer"])
        if getattr(self.env, "exact", True):
            self.now, self.since, self.normalizer.returns = own["now"], own["since"], own["returns"]
        else:  # a simulator that cannot be put back begins its episodes anew
            self.now = self.env.reset()

    def close(self) -> None:
        self.env.close()
