"""A run folder belongs to one training, which makes and locks it; and it is whole wherever it is moved."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lrnnx_app.errors import RecipeError, RunError
from lrnnx_app.runs import folder as folders
from lrnnx_app.train import checkpoints, grid

HOLDER = (
    "import sys\nfrom pathlib import Path\nfrom lrnnx_app.runs import folder as folders\n"
    "with folders.locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


def test_folders_of_one_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def make(_: int) -> Path:
        with folders.new("name", None) as folder:
            (folder / "recipe.yaml").touch()
            return folder

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(16)))
    assert len(set(made)) == 16
    assert all([p.name for p in folder.iterdir()] == ["recipe.yaml"] for folder in made)


def test_a_folder_that_is_held_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for enter in (folders.locked(tmp_path), folders.new("name", tmp_path)):
            with pytest.raises(RunError, match=f"process {holder.pid} on .* trains there"), enter:
                raise AssertionError("two hold it")
        holder.kill()
        holder.wait()
    assert [p.name for p in tmp_path.iterdir()] == [folders.LOCK]
    again = pytest.raises(RunError, match="this process")
    with folders.new("name", tmp_path) as folder, again, folders.locked(folder):
        raise AssertionError("held twice")
    assert not list(tmp_path.iterdir())


def test_processes_that_it_forks_do_not_hold_it(tmp_path: Path) -> None:
    with folders.locked(tmp_path):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with folders.locked(tmp_path):
            assert (tmp_path / folders.LOCK).is_file()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folders.fcntl, "lockf", none)
    with folders.locked(tmp_path):
        pass


def test_a_link_at_the_lock_s_name_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    home = tmp_path / "run"
    home.mkdir()
    (home / folders.LOCK).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"), folders.locked(home):
        raise AssertionError("followed")
    assert precious.read_text() == "kept"


def test_nothing_is_left_of_a_folder_in_which_nothing_began(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyError), folders.new("name", out):
        raise KeyError
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(RunError, match="not an empty folder"), folders.new("name", out):
        raise AssertionError("taken")


def test_the_best_is_found_wherever_the_run_lies() -> None:
    state = {
        "best_model_path": "/old/run/checkpoints/best.ckpt",
        "kth_best_model_path": "/old/run/checkpoints/best.ckpt",
        "last_model_path": "",
        "best_k_models": {"/old/run/checkpoints/best.ckpt": torch.tensor(0.5)},
        "dirpath": "/old/run/checkpoints",
    }
    content = {"callbacks": {"Best": state, "Other": {"skipped": 1}}}
    checkpoints._locate_best(content, "")
    assert content["callbacks"]["Best"]["best_model_path"] == "best.ckpt"
    checkpoints._locate_best(content, "/new")
    found = content["callbacks"]["Best"]
    assert found["dirpath"] == "/new"
    assert found["best_model_path"] == found["kth_best_model_path"] == "/new/best.ckpt"
    assert found["last_model_path"] == ""
    assert found["best_k_models"] == {"/new/best.ckpt": 0.5}
    assert content["callbacks"]["Other"] == {"skipped": 1}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.snr_min=-5,5"],
        ["task.lr=.1,1.,1,0.1"],
        ["data.root=./a,a,a/b,a-b,../a,/a"],
        ["data.root='\"a,b\"','a'"],
        [f"data.root={'a' * 300},{'a' * 299}b"],
        ["model.layer=a,a_b", "data=b_c,c"],
        ["task.lr=1,2", "data.lr=1,2"],
    ],
)
def test_each_run_of_a_grid_has_a_folder_of_its_own(overrides: list[str]) -> None:
    cells = grid.cells(overrides)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert all("/" not in cell.folder and cell.folder[0] not in "-." for cell in cells)
    assert all(len(cell.folder) < 200 for cell in cells)
    if len(overrides) == 1:  # the others' folders do not depend on which alternatives there are
        key, _, value = overrides[0].partition("=")
        fewer = grid.cells([f"{key}={','.join([*grid.alternatives(value)[1:], 'new'])}"])
        assert [cell.folder for cell in fewer[:-1]] == [cell.folder for cell in cells[1:]]


def test_a_key_that_is_listed_is_given_once() -> None:
    with pytest.raises(RecipeError, match="given 2 times"):
        grid.cells(["task.lr=1,2", "task.lr=3"])
