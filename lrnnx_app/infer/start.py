"""`lrnnx infer`: the task of a run decides which kind of inference is used."""

from collections.abc import Sequence
from pathlib import Path

from lrnnx_app.errors import RunError, UserError
from lrnnx_app.infer import text
from lrnnx_app.infer.audio import AudioJob
from lrnnx_app.infer.job import Job, Options
from lrnnx_app.infer.meaning import MeaningJob
from lrnnx_app.runs.run import Run

JOBS: dict[str, type[Job]] = {"audio": AudioJob, "meaning": MeaningJob}
ERRORS = "errors"


def infer(run: Run, inputs: Sequence[Path], options: Options) -> int:
    """Run on every input, and print results and a report. Returns the exit code.

    Raises:
        RunError: the run's task has no inference.
        UserError: an input, the output or an option cannot be used; files that are done are kept.
    """
    options.check(inputs)
    task = run.task()
    name = run.recipe.task.name
    if task.inference == ERRORS:
        if options != Options(as_json=options.as_json):
            raise UserError(f"a run of the task {name} is judged by whole files; expected --json or --prompt")
        text.score_files(run, task, inputs, options.as_json)
        return 0
    if task.inference not in JOBS:
        raise RunError(f"{run.path}: the task {name} has no inference; `lrnnx evaluate` measures the run")
    return JOBS[task.inference](run, task, inputs, options).go()
