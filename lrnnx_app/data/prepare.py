"""Clips to train a denoiser on, or to judge it by, from Debian's packages and the user's folders."""

import csv
import io
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import soundfile

from lrnnx_app.console.terminal import say
from lrnnx_app.data import cutting
from lrnnx_app.data.archives import ARCHIVES
from lrnnx_app.data.audio_io import SUFFIXES
from lrnnx_app.disk import atomic
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError, UserError

HERE = Path(__file__).parent
AUDIO = (*SUFFIXES, ".oga", ".mp3", ".au", ".g722")
PLACES = {"speech": "speech", "noise": "noise/sounds", "music": "noise/music"}  # of the roles of sounds
COPYRIGHT = re.compile(r"usr/share/doc/[^/]+/copyright|[^/]+\.dist-info/(METADATA|licenses/.*|LICENSE.*)")
JUDGED = 6  # clips of a speaker that judge
COLUMNS = ("file", "role", "package", "version", "licence", "language", "speaker", "seconds")


class Source(NamedTuple):
    """A line of denoise.csv. `path` has * and {language} and {speaker}; or it is a synthesizer's command."""

    set: str
    role: str
    package: str
    path: str
    but: str  # a regular expression: paths with it are left out
    language: str
    speaker: str
    seconds: float

    @property
    def synthetic(self) -> bool:
        return " FILE" in self.path


class Sounds(NamedTuple):
    """Files of one speaker, or of one package."""

    role: str
    language: str
    speaker: str
    seconds: float
    paths: list[Path]


def sources(judge: bool, file: Path = HERE / "denoise.csv") -> dict[str, list[Source]]:
    """The lines of a manifest by package, of the set that trains or of the one that judges."""
    found = defaultdict(list)
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["set"] == ("judge" if judge else "train"):
                source = Source(**{**row, "seconds": float(row["seconds"])})
                found[source.package].append(source)
    return found


def denoise(
    out: Path,
    manifest: Mapping[str, Sequence[Source]],
    packages: Path | None = None,
    own: Mapping[str, Sequence[Path]] | None = None,
    judge: bool = False,
) -> list[dict[str, str]]:
    """Write `out`/speech/<language>-<speaker>, noise/{sounds,music}/<package>, index.csv and LICENCES.md.

    A package is done whole: the same call goes on after the last one that was. Training gets OGG/Opus,
    judging FLAC. What cannot be had is left out, with a line. Returns the rows of index.csv.

    Args:
        packages: a folder of .deb and .whl files; by default each is fetched by `apt-get download`.
        own: folders by role; a folder in a folder of speech is a speaker.

    Raises:
        UserError: there is neither a folder nor apt-get, or nothing was found.
    """
    if packages is not None and not packages.is_dir():
        raise DataError(f"{packages}: no such folder; expected one of .deb and .whl files")
    if packages is None and manifest and shutil.which("apt-get") is None:
        raise UserError("no apt-get here: expected --packages FOLDER of .deb files from another machine")
    folders = [(role, folder) for role, some in (own or {}).items() for folder in some]
    names = [folder.resolve().name for _, folder in folders]
    if len({*names, *manifest}) < len(names) + len(manifest):
        raise UserError(f"folders {', '.join(names)}: expected different names, and none of a package")
    writer = _Writer(out, judge)
    missing = []
    for name, lines in manifest.items():
        if name in writer.done:
            continue
        with tempfile.TemporaryDirectory(prefix=".", dir=out) as scratch:
            if lines[0].synthetic:
                if shutil.which(lines[0].path.split()[0]) is None:
                    missing.append(f"{name} (not installed)")
                    continue
                writer.package(name, "", "synthetic", "", spoken(lines, Path(scratch)))
                continue
            file = _fetched(name, packages, Path(scratch))
            if file is None:
                missing.append(name)
                continue
            found, words = unpacked(file, lines, Path(scratch))
            version = re.split(r"[_-]", file.name[len(name) + 1 :])[0].replace("%3a", ":")
            writer.package(name, version, licence(words), words, found)
    for name, (role, folder) in zip(names, folders, strict=True):
        if name not in writer.done:
            writer.package(name, "", "the user's", "", _own(folder, role))
    if missing:
        say(f"left out, not to be had here: {', '.join(missing)}", aside=True)
    if not writer.rows:
        raise DataError(f"{out}: no clip was written; expected packages or folders with sound")
    return writer.rows


class _Writer:
    """Writes clips and the lists of them."""

    def __init__(self, out: Path, judge: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.judge, self.rows = out, judge, []
        if (out / "index.csv").exists():
            with (out / "index.csv").open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        self.done = {row["package"] for row in self.rows}

    def package(self, name: str, version: str, licence: str, words: str, found: Iterable[Sounds]) -> None:
        rows = []
        for sounds in found:
            speech = sounds.role == "speech"
            folder = f"{sounds.language or 'und'}-{sounds.speaker}" if speech else name
            for number, clip in self._clips(name, sounds):
                place = (
                    f"{PLACES[sounds.role]}/{folder}/{name}-{number:03d}.{'flac' if self.judge else 'ogg'}"
                )
                (self.out / place).parent.mkdir(parents=True, exist_ok=True)
                kind = {} if self.judge else {"format": "OGG", "subtype": "OPUS", "compression_level": 0.89}
                soundfile.write(self.out / place, clip, cutting.RATE, **kind)
                who = (sounds.language, sounds.speaker) if speech else ("", "")
                seconds = f"{len(clip) / cutting.RATE:.2f}"
                row = (place, sounds.role, name, version, licence, *who, seconds)
                rows.append(dict(zip(COLUMNS, row, strict=True)))
        say(f"{name}: {len(rows)} clips, {sum(float(row['seconds']) for row in rows):.0f} s", aside=True)
        self.rows += rows
        if rows:
            self._lists(name, words)

    def _clips(self, name: str, sounds: Sounds) -> Iterator:
        rng = random.Random(f"{name} {sounds.language} {sounds.speaker}")
        rng.shuffle(sounds.paths)
        shortest = (6.0 if self.judge else 1.5) if sounds.role == "speech" else 1.0
        cut = cutting.clips(sounds.paths, sounds.role, sounds.seconds, shortest, rng)
        try:
            yield from enumerate(islice(cut, JUDGED if self.judge and sounds.role == "speech" else None))
        except DataError as error:
            say(f"{name}: {error}", aside=True)

    def _lists(self, name: str, words: str) -> None:
        """The licences first: a package that index.csv has is done."""
        if words:
            (self.out / "licences").mkdir(exist_ok=True)
            atomic.write(self.out / "licences" / f"{name}.txt", words)
        each = {row["package"]: row for row in self.rows}
        lines = [f"| {key} | {row['version']} | {row['licence']} |" for key, row in each.items()]
        head = ["# Licences of the clips", "", "Authors and full texts: folder licences.", ""]
        table = ["| package | version | licence |", "|---|---|---|"]
        atomic.write(self.out / "LICENCES.md", "\n".join((*head, *table, *lines, "")))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(row.values() for row in self.rows)
        atomic.write(self.out / "index.csv", text.getvalue())


def _fetched(name: str, packages: Path | None, scratch: Path) -> Path | None:
    """The file of a package; None if it cannot be had."""
    if packages is None:
        command = ["apt-get", "download", "-q", name]
        subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    folder = packages or scratch
    found = sorted((*folder.glob(f"{name}_*.deb"), *folder.glob(f"{name.replace('-', '_')}-*.whl")))
    return found[-1] if found else None


def unpacked(file: Path, lines: Sequence[Source], scratch: Path) -> tuple[list[Sounds], str]:
    """The sounds of a package that its lines name, written to `scratch` under numbers, and its copyright.

    Raises:
        DataError: the file is no package, or damaged.
    """
    patterns = [(line, _pattern(line.path), re.compile(line.but or "(?!)", re.IGNORECASE)) for line in lines]
    found, words, count = {}, [], 0
    try:
        for name, content in _members(file):
            if COPYRIGHT.fullmatch(name):
                words.append(content().decode(errors="replace"))
            elif name.lower().endswith(AUDIO):
                for line, pattern, but in patterns:
                    if (match := pattern.fullmatch(name)) and not but.search(name):
                        parts = match.groupdict()
                        speaker = "-".join(filter(None, (line.speaker, parts.get("speaker"))))
                        key = (line.role, parts.get("language") or line.language, speaker)
                        path = scratch / f"{(count := count + 1):06d}{Path(name).suffix.lower()}"
                        path.write_bytes(content())
                        found.setdefault(key, Sounds(*key, line.seconds, [])).paths.append(path)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise DataError(f"{file}: not readable as a package ({error}); fetch it again") from error
    return [found[key] for key in sorted(found)], "\n\n".join(words)


def _pattern(path: str) -> re.Pattern:
    named = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+?)", re.escape(path))
    return re.compile(named.replace(r"\*", ".*"))


def _members(file: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names and contents of a package's files, one after the other; of an archive, those inside."""
    for name, content in _packed(file):
        inside = ARCHIVES.get(Path(name).name)
        if inside is None:
            yield name, content
            continue
        for part, held in inside(content()):
            yield f"{name}/{part}", lambda held=held: held


def _packed(file: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for name in wheel.namelist():
                yield name, lambda name=name: wheel.read(name)
        return
    with file.open("rb") as deb:
        if deb.read(8) != b"!<arch>\n":
            raise ValueError("no .deb")
        while not (head := deb.read(60)).startswith(b"data.tar"):
            if len(head) < 60:
                raise ValueError("cut short")
            size = int(head[48:58])
            deb.seek(size + size % 2, io.SEEK_CUR)
        with tarfile.open(fileobj=deb, mode="r|*") as tar:
            for member in tar:
                if member.isfile():
                    yield member.name.removeprefix("./"), lambda it=member: _content(tar, it)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def licence(words: str) -> str:
    """Short names of the licences in a copyright file, the most frequent first."""
    names = [name.strip() for name in re.findall(r"^License(?:-Expression)?:[ \t]*(\S.*)$", words, re.M)]
    return "; ".join(sorted(set(names), key=names.index)[:6]) or "see the folder licences"


def spoken(lines: Sequence[Source], scratch: Path) -> Iterator[Sounds]:
    """Sentences as said by the voices of a synthesizer. A command has TEXT, or is told it, and FILE."""
    sentences = defaultdict(list)
    for entry in (HERE / "sentences.tsv").read_text("utf-8").splitlines():
        language, sentence = entry.split("\t")
        sentences[language].append(sentence)
    for line in lines:
        paths = [scratch / f"{line.speaker}-{n}.wav" for n in range(len(sentences[line.language]))]
        for path, text in zip(paths, sentences[line.language], strict=True):
            put = {"TEXT": text, "FILE": str(path)}
            command = [put.get(word, word) for word in line.path.split()]
            subprocess.run(command, input=text.encode(), capture_output=True, timeout=60, check=False)
        yield Sounds("speech", line.language, line.speaker, line.seconds, [p for p in paths if p.exists()])


def _own(folder: Path, role: str) -> Iterator[Sounds]:
    """The sounds of a user's folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {role}")
    speakers = defaultdict(list)
    for path in below(folder, AUDIO):
        parts = path.relative_to(folder).parts
        speakers[parts[0] if role == "speech" and len(parts) > 1 else folder.resolve().name].append(path)
    for speaker, paths in speakers.items():
        yield Sounds(role, "", speaker, float("inf"), paths)
