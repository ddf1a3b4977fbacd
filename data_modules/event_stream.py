"""Events with their own times: from spiking audio, event cameras, and embedded simulations."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules._events import layouts
from data_modules._events.augment import Augment, augmented
from data_modules._events.recording import Recording, Sensor
from data_modules._events.store import Store
from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.spec import DataSpec, Example

EMBEDDED = ("digits", "spikes")


class EventStream(DataModule):
    """Recordings of events with a class: tokens (T,) = p·W·H + y·W + x, and dt (T,) in milliseconds.

    Event k has dt[k] = t[k] − t[k−1], the elapsed time since the event before it; dt[0] is 0. Two layouts are
    embedded: `digits`, a simulated line sensor past which digits move, and `spikes`, a simulated cochlea that
    hears the prompts forwards or backwards. Layouts shd, ssc, dvs128 and nmnist are published data sets.
    `folders` are the user's .csv, .npz, .bin or .aedat files, in a folder for each class, or in train, valid
    and test with such folders. All are read and checked once, into a cache that is mapped into memory.

    With `frame_events` or `frame_ms`, a step is not one event. It holds the counts (tokens,) of so many
    events, or of so much time; its dt is the time since the step before.
    """

    @dataclass
    class Config(DataModule.Config):
        layout: str = "digits"  # digits | spikes | shd | ssc | dvs128 | nmnist | folders
        width: int = 128  # pixels of the sensor of folders
        height: int = 128  # pixels of the sensor of folders, along the other axis
        polarities: int = 2  # 1 or 2: kinds of events of a pixel of folders
        scale: int = 1  # pixels along each axis that are joined into one
        timed: bool = True  # give dt, the elapsed time since the event before
        events: int = (
            0  # most events of an example: from a random one in training, else the middle ones; 0: all
        )
        frame_events: int = 0  # events that are counted in a step; 0: each event is a step
        frame_ms: float = 0.0  # ms whose events are counted in a step; 0: each event is a step
        augment: Augment = field(default_factory=Augment)  # what is drawn anew for each training example
        bucket: bool = True  # batches of examples of about one length

        def __post_init__(self) -> None:
            one_of("layout", self.layout, layouts.LAYOUTS)
            if min(self.width, self.height, self.scale) < 1 or self.polarities not in (1, 2):
                raise RecipeError("width, height and scale: expected at least 1, and polarities 1 or 2")
            if min(self.events, self.frame_events, self.frame_ms) < 0:
                raise RecipeError("events, frame_events and frame_ms: expected at least 0")
            if self.frame_events and self.frame_ms:
                raise RecipeError("frame_events and frame_ms: expected one of them")
            if self.layout in EMBEDDED and self.root:
                raise RecipeError(
                    f"root: the {self.layout} are embedded; expected a layout of files with a root"
                )

    @classmethod
    def small(cls, folder: Path) -> dict[str, Any]:
        return {"events": 32}

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        own = Sensor(config.width, config.height, config.polarities)
        self.layout = layouts.named(config.layout, own, config.split)
        self.sensor = scaled(self.layout.sensor, config.scale)
        self.tokens = not (config.frame_events or config.frame_ms)
        width, height, polarities = self.layout.sensor
        self.pixels = (width, height, polarities, config.scale) if self.tokens else None

    @cached_property
    def spec(self) -> DataSpec:  # pyright: ignore[reportIncompatibleVariableOverride]  (derived here)
        """The description of the data; reads the user's folders only for the names of classes."""
        classes = self.layout.classes or layouts.folder_classes(Path(self.config.root))
        return DataSpec(self.sensor.tokens, len(classes), tokens=self.tokens, classes=classes, target="class")

    def source(self, split: str) -> Source:
        store, rows = self.layout.stored(Path(self.config.root), split)
        return Events(store, rows, self, train=split == "train")

    def read(self, path: Path) -> Example:
        """A .csv, .npz, .bin or .aedat file of this sensor's events."""
        recording = layouts.read(path, self.layout.sensor)
        return self.example(recording._replace(t=recording.t - recording.t[0], name=path.name))

    def example(self, recording: Recording) -> Example:
        """The example that a model gets from a recording."""
        c, token = self.config, recording.token
        if c.scale > 1:
            plane, x = np.divmod(token, self.layout.sensor.width)
            p, y = np.divmod(plane, self.layout.sensor.height)
            token = (p * self.sensor.height + y // c.scale) * self.sensor.width + x // c.scale
        milliseconds = recording.t / 1000
        x = torch.from_numpy(token)
        if not self.tokens:
            index = (
                np.arange(len(token)) // c.frame_events
                if c.frame_events
                else ((milliseconds - milliseconds[0]) // c.frame_ms).astype(np.int64)
            )
            steps = int(index[-1]) + 1
            x = torch.bincount(
                torch.from_numpy(index * self.sensor.tokens) + x, minlength=steps * self.sensor.tokens
            )
            x = x.view(steps, -1).float()
            if c.frame_ms:
                milliseconds = milliseconds[0] + c.frame_ms * np.arange(1, steps + 1)
            else:
                milliseconds = milliseconds[np.append(np.flatnonzero(np.diff(index)), len(index) - 1)]
        dt = torch.from_numpy(np.diff(milliseconds, prepend=milliseconds[0])).float() if c.timed else None
        return Example(x, torch.tensor(recording.label), dt, recording.name)


def scaled(sensor: Sensor, scale: int) -> Sensor:
    """The sensor with `scale` × `scale` pixels joined into one."""
    return Sensor(-(-sensor.width // scale), -(-sensor.height // scale), sensor.polarities)


class Events:
    """The examples of one split.

    Attributes:
        lengths: number of steps of each example before augmentation, by which buckets sort. It is an estimate
            where an excerpt is cut into frames of time.
        labels: class of each example.
    """

    def __init__(self, store: Store, rows: np.ndarray, module: EventStream, train: bool) -> None:
        self.store, self.rows, self.module, self.train = store, rows, module, train
        c = module.config
        most = c.events or np.iinfo(np.int64).max
        self.lengths = np.minimum(store.lengths[rows], most)
        if c.frame_events:
            self.lengths = -(-self.lengths // c.frame_events)
        elif c.frame_ms:
            share = self.lengths / store.lengths[rows]
            self.lengths = (store.durations()[rows] * share / (1000 * c.frame_ms)).astype(np.int64) + 1
        self.labels = store.labels[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        recording = self.excerpt(self.store[int(self.rows[index])], rng)
        augment = self.module.config.augment
        if self.train and augment != Augment():
            recording = augmented(
                recording, augment, self.module.layout.sensor, rng, lambda: self._other(rng)
            )
        return self.module.example(recording)

    def excerpt(self, recording: Recording, rng: np.random.Generator) -> Recording:
        """At most `events` events of a recording, with time counted from the first of them."""
        most, spare = self.module.config.events, len(recording.t) - self.module.config.events
        if not most or spare <= 0:
            return recording
        start = int(rng.integers(0, spare + 1)) if self.train else spare // 2
        part = slice(start, start + most)
        return recording._replace(t=recording.t[part] - recording.t[start], token=recording.token[part])

    def _other(self, rng: np.random.Generator) -> Recording:
        return self.excerpt(self.store[int(self.rows[int(rng.integers(len(self.rows)))])], rng)
