"""A machine that does other work, as one that times models meets it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.engine.contracts.facts import Probe

Load = Callable[[float, random.Random], float]
"""By what a machine is slowed down, at a time."""


def noise(sd: float) -> Load:
    return lambda now_s, rng: math.exp(rng.gauss(0, sd))


def busy(*moments: float) -> Load:
    """Twice as slow between the first and the second, the third and the fourth, and so on."""
    return lambda now_s, rng: 1 + sum(moment <= now_s for moment in moments) % 2


def times(*loads: Load) -> Load:
    return lambda now_s, rng: math.prod(load(now_s, rng) for load in loads)


def tails(now_s: float, rng: random.Random) -> float:
    """One turn in eight is interrupted, for up to ten times as long as it takes."""
    return 1.0 if rng.random() > 0.125 else rng.uniform(1, 11)


LOADS: dict[str, Load] = {
    "quiet": noise(0.01),
    "noisy": noise(0.1),
    "drifts": times(noise(0.02), lambda now_s, rng: 1 + min(now_s, 4) / 2),
    "a step in the middle": times(noise(0.02), busy(0.6)),
    "a loop starts and stops": times(noise(0.03), busy(*(k * 0.31 for k in range(400)))),
    "heavy tails": times(noise(0.02), tails),
}


@dataclass
class Machine:
    """Where time passes as work is done, more of it the busier the machine is."""

    load: Load
    random: random.Random
    now_s: float = 0.0
    work_s: float = 0.05
    read: list[float] = field(default_factory=list)
    """Requests to it, in order."""

    def probe(self, speed: float, readings: int = 24) -> Probe:
        def read() -> float:
            took_s = self.work_s / speed * self.load(self.now_s, self.random)
            self.now_s += took_s
            self.read.append(speed)
            return 1 / took_s

        return Probe("generation_speed/decode", "tokens/s", True, 0.05, readings, "", read)
