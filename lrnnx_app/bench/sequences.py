"""Times training on one long sequence: its time split over several devices, against one that takes it whole.

Every row is a job of its own, as in `lrnnx_app.bench.scaling`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from lrnnx_app.bench.scaling import BYTES, DIGITS, Case, chosen, fit, launched, main
from lrnnx_app.recipe import TrainerConfig
from lrnnx_app.train.sequence import Sequences

CASES = {
    "cuda": {
        "S6 language model": Case("predict", "s6", BYTES, "", 0, 768, 12, 1, 0.0003, "language"),
        "S5 classifier": Case("classify", "s5", DIGITS, "mean", 0, 256, 6, 1),
    },
    "cpu": {
        "S6 language model": Case("predict", "s6", BYTES, "", 0, 32, 2, 1, model="language"),
        "S5 classifier": Case("classify", "s5", DIGITS, "mean", 0, 32, 2, 1),
    },
}
WARM = 2  # steps before the clock starts
ERROR = re.compile(r"^(?:\[rank\d+\]: )?([\w.]+Error: .*)", re.MULTILINE)  # the end of a traceback


def rows(
    device: str,
    devices: Sequence[int],
    lengths: Sequence[int],
    steps: int,
    precision: str = "32-true",
    word: str = "",
    recompute: bool = False,
    limit: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One dictionary for each case, length and number of devices. One that fails says why; others follow.

    Args:
        device: "cpu" or "cuda".
        devices: how many; one, which the others are compared with, comes first in any case.
        lengths: of the sequence, in steps.
        steps: of the optimizer, to time.
        precision: of the training, as in a recipe.
        word: in the names of the cases.
        recompute: run each block again in the backward pass instead of keeping what that needs.
        limit: seconds for each row.
    """
    for case in chosen(CASES[device], word):
        for length in lengths:
            alone: dict[str, Any] = {}
            for count in (1, *(count for count in devices if count > 1)):
                words = case, device, count, length, steps, precision, int(recompute)
                found = launched(__name__, count, *words, limit=limit)
                alone = alone or found
                yield {"case": case, "time steps": length, "devices": count, **_columns(found, alone)}


def _columns(found: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    if "failed" in found:
        errors = ERROR.findall(found["failed"])
        return {"failed": errors[0] if errors else found["failed"].strip().splitlines()[-1]}
    row = {"s / step": found["seconds"], "peak MiB / device": found["peak MiB"], "loss": found["losses"][-1]}
    if found["bytes"]:
        row["KiB / layer"] = found["bytes"] / 1024
    if "failed" not in alone:
        curves = zip(found["losses"], alone["losses"], strict=True)
        row["ratio"] = alone["seconds"] / found["seconds"]
        row["largest difference"] = max(abs(ours - theirs) for ours, theirs in curves)
    return row


def job(
    name: str, device: str, devices: str, length: str, steps: str, precision: str, recompute: str
) -> dict[str, Any]:
    """Run in each process: losses, seconds of a step, the largest peak memory, and the bytes that pass each
    border between two devices in a step, both ways, for each layer.
    """
    case, count = replace(CASES[device][name], length=int(length)), int(devices)
    settings = TrainerConfig(
        accelerator=device,
        devices=count,
        sequence_parallel=count,
        precision=precision,
        recompute=recompute == "1",
    )
    sequences = Sequences(count) if count > 1 else None
    timed, peak, trainer = fit(
        case, settings, case.batch, WARM + int(steps), WARM, [sequences] if sequences else []
    )

    def reduced(value: Any, how: str) -> float:
        value = torch.as_tensor(value, dtype=torch.float32, device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(value, reduce_op=how))

    sent = sequences.relay.sent if sequences and sequences.relay else 0
    return {
        "losses": [reduced(loss, "mean") for loss in timed.losses],
        "seconds": timed.seconds / int(steps),
        "peak MiB": reduced(peak, "max"),
        "bytes": reduced(sent, "sum") / max(1, count - 1) / case.depth,
    }


if __name__ == "__main__":
    main(job)
