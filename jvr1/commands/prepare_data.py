"""Data ready to train on: jvr1 prepare-data ROOT [FILE ...] [--download] [--config FILE]

Of Video-R1's published set, or of question FILEs of your own under ROOT. Fetches the set from the Hugging Face hub
(--download), unpacks each zip where it lies, checks that the media of every record are there, prints what is missing,
and indexes the rest. Every step goes on where an earlier run stopped. The
published set needs 310 GB of zips on disk and about as much again unpacked; with --remove-zips, which deletes each zip
once it is unpacked, little more than 310 GB.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from tqdm import tqdm

from jvr1.command_line import Parser
from jvr1.commands.index import add_config_options, fields_of, load_own_kinds, with_overrides
from jvr1.data.records import load_records, media_path
from jvr1.data.rows import FieldMap
from jvr1.errors import UserError, run_main

REPOSITORY = "Video-R1/Video-R1-data"
RECORDS = ("Video-R1-260k.json", "Video-R1-COT-165k.json")
MAX_RATIO = 100
"""Media hardly shrink: a zip that unpacks to more than this many times its size is a trap."""
_T = TypeVar("_T")
_GB = 1e9


@dataclass(frozen=True)
class Remote:
    """A file of the published set: its path in the set, its size in bytes."""

    path: str
    size: int


def main(arguments: list[str] | None = None) -> None:
    flags = with_overrides(options(), arguments)
    root, fields = Path(flags.root), fields_of(flags)
    load_own_kinds(flags)
    if flags.download:
        root.mkdir(parents=True, exist_ok=True)
        files = published_files(flags.parts)
        print(plan(files, root, flags.remove_zips))
        check_space(files, root, flags.remove_zips)
        for remote in files:
            if not is_unpacked(root / remote.path):
                fetch(remote, root)
                if remote.path.endswith(".zip"):
                    unpack(root / remote.path, flags.remove_zips)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; name one with the published files, or fetch them with --download")
    archives = [archive for archive in sorted(root.rglob("*.zip")) if not is_unpacked(archive)]
    if archives and not flags.download:
        for name in flags.files:
            load_records(root / name, fields)  # a mistake in them is told before hours of unpacking
    for archive in archives:
        unpack(archive, flags.remove_zips)
    found = [root / name for name in flags.files or RECORDS if flags.files or (root / name).exists()]
    if not found:
        raise UserError(
            f"{root} has neither {' nor '.join(RECORDS)}; name question files of your own, or fetch the set with "
            "--download"
        )
    for file in found:
        print(what_is_there(file, root, fields), flush=True)
        if not flags.skip_index:
            command: list[str | Path] = [sys.executable, "-m", "jvr1", "index", file.resolve(), "--root", root]
            if flags.config:
                command += ["--config", flags.config, *flags.overrides]
                command += ["--model", flags.model] if flags.model else []
                command += ["--sft"] if flags.sft or "COT" in file.name else []
            command += [f"--field={pair}" for pair in flags.field]
            if subprocess.run(command, check=False).returncode:
                raise UserError(f"{file} was not indexed; see above")


def options() -> Parser:
    parser = Parser(prog="jvr1 prepare-data", description=__doc__)
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"under ROOT; default: {' and '.join(RECORDS)}")
    parser.add_argument("--download", action="store_true", help=f"fetch {REPOSITORY} from the hub")
    parser.add_argument("--parts", nargs="+", metavar="FOLDER", help="fetch only these folders, such as CLEVRER Math")
    parser.add_argument("--remove-zips", action="store_true", help="delete each zip once it is unpacked")
    add_config_options(parser)
    parser.add_argument("--skip-index", action="store_true", help="do not index the records")
    return parser


# -------------------------------------------------------------------------------------------------- fetching


def published_files(parts: Sequence[str] | None) -> list[Remote]:
    """The zips and record files of the published set. Raises UserError without a network and for unknown parts."""
    from huggingface_hub import HfApi

    info = reached(lambda: HfApi().dataset_info(REPOSITORY, files_metadata=True))
    files = [Remote(f.rfilename, f.size or 0) for f in info.siblings or () if f.rfilename.endswith((".zip", *RECORDS))]
    folders = sorted({PurePosixPath(f.path).parts[0] for f in files if "/" in f.path})
    for part in parts or ():
        if part not in folders:
            raise UserError(f"the published set has no folder {part!r}; it has {', '.join(folders)}")
    return [f for f in files if not parts or f.path in RECORDS or PurePosixPath(f.path).parts[0] in parts]


def fetch(file: Remote, root: Path) -> None:
    """Downloads a file to its place under the root; the hub's client resumes and checks it."""
    from huggingface_hub import hf_hub_download

    reached(lambda: hf_hub_download(REPOSITORY, file.path, repo_type="dataset", local_dir=root))


def reached(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except Exception as error:  # the client's errors come from several libraries
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot fetch {REPOSITORY} from the hub ({reason}); check the network, or copy the published files to "
            "ROOT and run this without --download"
        ) from None


def plan(files: Sequence[Remote], root: Path, remove_zips: bool) -> str:
    """What will be fetched and how much room it takes."""
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[PurePosixPath(file.path).parts[0]] += file.size
    lines = [f"  {size / _GB:8.1f} GB  {name}" for name, size in sorted(sizes.items())]
    total, free = sum(sizes.values()), shutil.disk_usage(root).free
    lines.append(f"  {total / _GB:8.1f} GB  to fetch in {len(files)} files")
    lines.append(f"  {room_needed(files, root, remove_zips) / _GB:8.1f} GB  still needed, with the media about")
    lines.append(f"  {free / _GB:8.1f} GB  free at {root}")
    return "\n".join(lines)


def room_needed(files: Iterable[Remote], root: Path, remove_zips: bool) -> int:
    """Bytes still to be written: zips and, media not shrinking, about as much unpacked."""
    todo = [f for f in files if not is_unpacked(root / f.path)]
    unpacked = sum(f.size for f in todo if f.path.endswith(".zip"))
    absent = [f for f in todo if not (root / f.path).exists()]
    zips = [f.size for f in absent if f.path.endswith(".zip")]
    others = sum(f.size for f in absent) - sum(zips)
    return unpacked + others + (max(zips, default=0) if remove_zips else sum(zips))


def check_space(files: Sequence[Remote], root: Path, remove_zips: bool) -> None:
    wanted, free = room_needed(files, root, remove_zips), shutil.disk_usage(root).free
    if wanted > free:
        hint = "" if remove_zips else "; --remove-zips needs half as much"
        raise UserError(f"{root} has {free / _GB:.0f} GB free and about {wanted / _GB:.0f} GB are needed{hint}")


# ------------------------------------------------------------------------------------------------- unpacking


def marker(archive: Path) -> Path:
    """Its presence says that a zip was unpacked whole, also when the zip is gone."""
    return archive.with_name(f".{archive.name}.unpacked")


def is_unpacked(archive: Path) -> bool:
    return marker(archive).exists()


def unpack(archive: Path, remove: bool) -> None:
    """Unpacks a zip into its own folder, as the published record paths expect."""
    extract(archive, archive.parent)
    marker(archive).touch()
    if remove:
        archive.unlink()


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a zip, files that are there with the right size left alone.

    All members are looked at before the first is written. Raises UserError for a member that would land outside
    the folder, for links and other special files, for encrypted or damaged members, and for more bytes than the disk
    has free or than a zip of its size may hold.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [m for m in zipped.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
            for member in members:
                check_member(archive, member)
            check_amount(archive, members, folder)
            for member in tqdm(members, desc=archive.name, unit="file", mininterval=1.0):
                write_member(zipped, member, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive} is damaged ({error}); delete it and fetch it again") from None


def check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise UserError(f"{archive}: member {member.filename!r} is {what}; only plain files are unpacked")
    if member.flag_bits & 1:
        raise UserError(f"{archive}: member {member.filename!r} is encrypted")
    try:
        media_path(".", member.filename)
    except UserError:
        raise UserError(f"{archive}: member {member.filename!r} would be written outside the data folder") from None


def check_amount(archive: Path, members: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    declared = sum(m.file_size for m in members)
    if declared > MAX_RATIO * archive.stat().st_size:
        raise UserError(f"{archive} claims to hold {declared / _GB:.1f} GB, over {MAX_RATIO} times its size: a trap")
    there = sum(m.file_size for m in members if has_size(folder / m.filename, m.file_size))
    free = shutil.disk_usage(folder).free
    if declared - there > free:
        raise UserError(f"{archive} needs {(declared - there) / _GB:.1f} GB, {folder} has {free / _GB:.1f} GB free")


def has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def write_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """One file, whole or not at all; zipfile checks its length and checksum."""
    target = folder / member.filename
    if has_size(target, member.file_size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.partial")
    with zipped.open(member) as source, staged.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if staged.stat().st_size != member.file_size:
        raise zipfile.BadZipFile(f"member {member.filename!r} is not as long as declared")
    os.replace(staged, target)


# -------------------------------------------------------------------------------------------------- checking


def what_is_there(file: Path, root: Path, fields: FieldMap | None = None) -> str:
    """How many records have their media, and what is missing by folder and cause."""
    records = load_records(file, fields)
    state = {path: absence(root, path) for record in records for path in record.paths}
    lost = [next(filter(None, map(state.get, record.paths)), None) for record in records]
    faults = Counter((cause, PurePosixPath(path).parts[0]) for path, cause in state.items() if cause)
    lines = [f"{file.name}: {len(records)} records, {len(records) - sum(map(bool, lost))} with all their media"]
    lines += [f"  {count:>8} files {cause} under {name}/" for (cause, name), count in sorted(faults.items())]
    return "\n".join(lines)


def absence(root: Path, path: str) -> str | None:
    """Why a medium cannot be there for use; None when it is."""
    try:
        status = os.stat(media_path(root, path))
    except OSError:
        return "missing"
    if not stat.S_ISREG(status.st_mode):
        return "not plain files"
    return None if status.st_size else "empty"


if __name__ == "__main__":
    run_main(main)
