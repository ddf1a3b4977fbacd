"""Augmentation of events for training, drawn by the generator of the example's address."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_modules._events.recording import Recording, Sensor
from lrnnx_app.errors import RecipeError


@dataclass
class Augment:
    """Random changes of each training example. Each is off at 0."""

    time_jitter: float = 0.0  # ms, standard deviation of what is added to each time; then sorted again
    space_jitter: float = 0.0  # pixels, standard deviation of a shift of each event
    shift: int = 0  # pixels, the largest shift of the whole recording
    drop: float = 0.0  # largest share of single events that are left out
    chunk_drop: float = 0.0  # largest share of events, in one run, that are left out
    skew: float = 0.0  # the whole is slower or faster by a factor of 1 ± up to this
    cut_mix: float = 0.0  # largest span, as a share, that another recording takes; below ½, the label stays

    def __post_init__(self) -> None:
        for name in ("drop", "chunk_drop", "skew"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(
                    f"augment.{name}: expected at least 0 and below 1, not {getattr(self, name)}"
                )
        if not 0 <= self.cut_mix < 0.5:
            raise RecipeError(f"augment.cut_mix: expected at least 0 and below 0.5, not {self.cut_mix}")
        if min(self.time_jitter, self.space_jitter, self.shift) < 0:
            raise RecipeError("augment.time_jitter, space_jitter and shift: expected at least 0")


def augmented(
    own: Recording,
    options: Augment,
    sensor: Sensor,
    rng: np.random.Generator,
    other: Callable[[], Recording],
) -> Recording:
    """A changed recording with at least one event, sorted; `other` draws the partner of a mixture."""
    t, token = own.t.astype(np.float64), own.token
    if options.cut_mix:
        t, token = _mixed(t, token, other(), rng.uniform(0, options.cut_mix), rng)
    keep = rng.uniform(size=len(t)) >= rng.uniform(0, options.drop) if options.drop else np.ones(len(t), bool)
    if options.chunk_drop:
        size = int(rng.uniform(0, options.chunk_drop) * len(t))
        start = int(rng.integers(0, len(t) - size + 1))
        keep[start : start + size] = False
    keep[int(rng.integers(len(t)))] = True
    t, token = t[keep], token[keep]
    if options.skew:
        t = t * (1 + rng.uniform(-options.skew, options.skew))
    if options.time_jitter:
        t = t + rng.normal(0, 1000 * options.time_jitter, len(t))
    if options.space_jitter or options.shift:
        t, token = _moved(t, token, options, sensor, rng)
    order = np.argsort(t, kind="stable")
    t = t[order]
    return own._replace(t=np.round(t - t[0]).astype(np.int64), token=token[order])


def _mixed(
    t: np.ndarray, token: np.ndarray, other: Recording, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The events of `other` in place of one's own within a span of time."""
    size = share * t[-1]
    start = rng.uniform(0, t[-1] - size)
    keep, taken = (t < start) | (t >= start + size), (other.t >= start) & (other.t < start + size)
    if not keep.any():
        return t, token
    t, token = np.concatenate((t[keep], other.t[taken])), np.concatenate((token[keep], other.token[taken]))
    order = np.argsort(t, kind="stable")
    return t[order], token[order]


def _moved(
    t: np.ndarray, token: np.ndarray, options: Augment, sensor: Sensor, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Events moved along the axes that the sensor has; those that leave it are gone, unless all would be."""
    plane, x = np.divmod(token, sensor.width)
    p, y = np.divmod(plane, sensor.height)
    moves = []
    for size in (sensor.width, sensor.height):
        whole = int(rng.integers(-options.shift, options.shift + 1))
        single = np.rint(rng.normal(0, options.space_jitter, len(t))).astype(np.int64)
        moves.append(whole + single if size > 1 else np.zeros_like(single))
    x, y = x + moves[0], y + moves[1]
    inside = (x >= 0) & (x < sensor.width) & (y >= 0) & (y < sensor.height)
    if not inside.any():
        return t, token
    return t[inside], ((p * sensor.height + y) * sensor.width + x)[inside]
