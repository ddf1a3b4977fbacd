"""Checkpoints in shards: folders into which each process writes its part, by torch.distributed.checkpoint.

The weights and the optimizer's states lie in files of that library. A sealed file beside them holds the rest,
and the digest of every other file. The folder has its name once all of it is on the disk.
"""

import hashlib
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError
from lrnnx_app.runs import sealed

INDEX = "index.ckpt"
SPREAD = ("state_dict", "optimizer_states")  # of a checkpoint's content: what shards hold
METADATA = ".metadata"  # torch's name
KNOWN = {  # what torch pickles there, beside types of numbers and paths
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
}


def begin(
    content: dict[str, Any], path: Path, group: Any = None, done: Callable[[], None] = lambda: None
) -> Future[Any]:
    """Copy a checkpoint's content to memory, then write it to the folder `path` while the caller goes on.

    Every process of a group calls it, with its part of the tensors that are spread. Wait by `finished`.

    Args:
        group: of all processes, of gloo, for this alone; None if there is one process.
        done: called in the first process once the folder is whole.
    """
    rest = {key: deepcopy(value) for key, value in content.items() if key not in SPREAD}
    leaves, form = tree_flatten({key: content[key] for key in SPREAD if key in content})
    tensors = {str(at): leaf for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    kept = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    rest |= tree_unflatten(kept, form)
    if group is None or torch.distributed.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.discard(atomic.part_of(path))
    if group is not None:
        torch.distributed.barrier(group)  # others may not have begun to write what is discarded
    _of_one_process()
    writer = _Writer(path, rest, done)
    with torch.no_grad():
        begun = async_save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    assert isinstance(begun, Future)
    return begun


def finished(begun: Future[Any], path: Path) -> None:
    """Wait until a checkpoint is written.

    Raises:
        RunError: the disk of one of the processes is full or cannot be written.
    """
    try:
        begun.result()
    except CheckpointException as error:
        cause = next(failure for failure, _ in error.failures.values())
        raise sealed.unwritten(path, cause) from error
    except (OSError, RuntimeError) as error:
        raise sealed.unwritten(path, error) from error


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint in shards, whole and on the CPU.

    Raises:
        RunError: a file of it is missing, incomplete or changed.
    """
    rest = sealed.read(path / INDEX)
    for name, digest in rest.pop("files").items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise RunError(f"{path / name}: damaged or missing; restore the checkpoint or retrain it")
    _of_one_process()
    reader = _Reader(path)
    found = reader.read_metadata().state_dict_metadata
    tensors = {
        at: torch.empty(one.size, dtype=one.properties.dtype)
        for at, one in found.items()
        if isinstance(one, TensorStorageMetadata)
    }
    load(tensors, storage_reader=reader, no_dist=True)
    leaves, form = tree_flatten({key: rest.pop(key) for key in SPREAD if key in rest})
    return rest | tree_unflatten([tensors.get(str(at), leaf) for at, leaf in enumerate(leaves)], form)


class _Writer(FileSystemWriter):
    """Writes under a hidden name, and gives the folder its own once every process has written its part."""

    def __init__(self, path: Path, rest: dict[str, Any], done: Callable[[], None]) -> None:
        super().__init__(atomic.part_of(path))
        self.target, self.rest, self.done = path, rest, done

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Torch calls it in the first process alone."""
        super().finish(metadata, results)
        part = Path(self.path)
        names = {one.storage_data.relative_path for each in results for one in each} | {METADATA}
        files = {name: _digest(part / name) for name in sorted(names)}
        sealed.write({**self.rest, "files": files}, part / INDEX)
        atomic.discard(self.target)  # of a run that was resumed before this step
        atomic.finish(part, self.target)
        self.done()


class _Reader(FileSystemReader):
    """Reads the metadata, which torch has pickled, and lets them run nothing."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        path = module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath")
        if number or path or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's metadata")


def _of_one_process() -> None:
    """Silence torch's remark that a single process writes or reads; it comes from another thread too."""
    warnings.filterwarnings("ignore", message="torch.distributed is .* single process")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
