"""kill -9 at any moment costs the steps since the last checkpoint and nothing else.

`LRNNX_KILLS=20 pytest tests/train/test_kill.py -s` is the long version.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from lrnnx_app.recipe import FORMS
from tests.helpers import digits, latest, same, started, trained, wait_for_progress

KILLS = int(os.environ.get("LRNNX_KILLS", "3"))
EPOCHS = 3 + KILLS // 2


@pytest.mark.parametrize("form", FORMS)
def test_killed_again_and_again_ends_with_the_very_same_weights(
    form: str, folder: Path, tmp_path: Path
) -> None:
    words, run = [*digits(EPOCHS), "data.workers=2", f"trainer.checkpoints={form}"], tmp_path / "run"
    chance = random.Random(KILLS)
    lives: list[int] = []
    while len(lives) < KILLS:
        place = ("--resume", run) if run.exists() else ("-o", run)
        process = started(*words, *place)
        wait_for_progress(run, process, latest(run))
        time.sleep(chance.uniform(0, 0.2))
        if len(lives) % 2:
            os.killpg(process.pid, signal.SIGKILL)  # those that prepare batches too
        else:
            process.kill()
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, error
        lives.append(latest(run))
    print(f"killed after steps {lives} of {4 * EPOCHS}")
    process = started("--resume", run)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    same(run, trained(folder, f"uninterrupted_{EPOCHS}_{form}", words))
    assert not list(run.rglob(".*.part*")) + list(run.glob("metrics.earlier.csv"))
