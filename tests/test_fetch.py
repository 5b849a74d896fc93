"""Fetching from a server on this machine that serves the real MNIST archives, or misbehaves as real mirrors do."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

from bsnn_cli.datasets import fetch
from bsnn_cli.errors import DataError
from tests.conftest import SHARED_DATA

MNIST = fetch.ARCHIVES["mnist"]
LABELS = MNIST[1]
DEAD = "http://127.0.0.1:9"
FAULTS = {
    "absent": "answers 404",
    "altered": r"is damaged \(28881 bytes",
    "shortened": r"is damaged \(28781 bytes",
    "broken_off": "breaks off",
    "silent": "no answer within|too slow, 0 bytes",
    "dripping": r"too slow, \d+ bytes",
}
"""What a mirror does, and the words a user reads."""


class Handler(BaseHTTPRequestHandler):
    """Serves SHARED_DATA below /<behaviour>/, behaving so."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        behaviour, path = self.path.lstrip("/").split("/", 1)
        self.server.asked.append(path)
        source = SHARED_DATA / path
        if behaviour == "absent" or not source.is_file():
            return self.send_error(404)
        content = source.read_bytes()
        if behaviour == "silent":
            self.server.stop.wait()
            return None
        if behaviour == "crowded":
            self.server.crowd()
        if behaviour == "altered":
            content = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        if behaviour == "shortened":
            content = content[:-100]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if behaviour == "broken_off":
            content = content[:-100]
        if behaviour == "dripping":
            with contextlib.suppress(OSError):
                while not self.server.stop.wait(0.02):
                    self.wfile.write(content[:1])
            return None
        self.wfile.write(content)
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A running server: `url`, `asked` (paths in the order of requests), `crowd` (called before a crowded answer)."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the MNIST archives in {SHARED_DATA}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.stop = [], threading.Event()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{running.server_port}", asked=running.asked, implementation=running
        )
        running.stop.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def mirrors(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`mirrors.use("altered", "good")` sets the mirrors that are asked, in this order; `mirrors.asked` is the log."""

    def use(*behaviours: str) -> None:
        urls = [DEAD if name == "dead" else f"{server.url}/{name}/" for name in behaviours]
        monkeypatch.setenv(fetch.MIRROR_VARIABLE, " ".join(urls))
        if {"silent", "dripping"} & set(behaviours):  # on a busy machine a good one may take long too
            monkeypatch.setattr(fetch, "PATIENCE_S", 1.0)

    return SimpleNamespace(use=use, asked=server.asked)


@pytest.fixture
def tiny() -> fetch.Archive:
    """An archive that no server has."""
    return fetch.Archive("tiny/a.gz", len(PACKED), md5(PACKED), {"tiny/a": md5(b"tiny content")}, (f"{DEAD}/a.gz",))


PACKED = gzip.compress(b"tiny content", mtime=0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def put(root: Path, **content: bytes) -> None:
    """Write tiny/a.gz (packed) and tiny/a (plain)."""
    (root / "tiny").mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (root / "tiny" / {"packed": "a.gz", "plain": "a"}[name]).write_bytes(data)


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Take away the right to write below `root`, from an administrator as well."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    administrator = os.getuid() == 0
    for ancestor in root.parents if administrator else ():
        if not ancestor.stat().st_mode & 0o001:  # nobody else may pass
            ancestor.chmod(0o755)
    for folder in folders:
        folder.chmod(0o555)
    if administrator:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if administrator:
            os.setresuid(0, 0, 0)
        for folder in folders:
            folder.chmod(0o755)


def test_real_archives_arrive_verified_and_unpacked_with_nothing_beside_them(
    mirrors: SimpleNamespace, tmp_path: Path
) -> None:
    mirrors.use("good")
    with fetch.unpacked(tmp_path / "new", MNIST) as folder:
        assert folder == tmp_path / "new"
    found = {name: md5(content) for name, content in tree(folder).items()}
    expected = {archive.path: archive.md5 for archive in MNIST}
    for archive in MNIST:
        expected |= archive.contents
    assert found == expected
    assert mirrors.asked == [archive.path for archive in MNIST]


@pytest.mark.parametrize("fault", [*FAULTS, "dead"])
def test_a_mirror_that_fails_is_passed_over(fault: str, mirrors: SimpleNamespace, tmp_path: Path) -> None:
    mirrors.use(fault, "good")
    with fetch.unpacked(tmp_path, [LABELS]):
        found = tree(tmp_path)
    assert {name: md5(content) for name, content in found.items()} == {LABELS.path: LABELS.md5, **LABELS.contents}
    assert mirrors.asked == [LABELS.path] * (1 if fault == "dead" else 2)


@pytest.mark.parametrize(("fault", "words"), [*FAULTS.items(), ("dead", "cannot be reached")])
def test_failure_of_all_mirrors_says_why_and_what_to_do_and_leaves_nothing(
    fault: str, words: str, mirrors: SimpleNamespace, tmp_path: Path
) -> None:
    mirrors.use(fault)
    root = tmp_path / "new" / "data"
    with pytest.raises(DataError, match=words) as caught, fetch.unpacked(root, [LABELS, MNIST[3]]):
        pass
    message = str(caught.value)
    assert f"dataset.root={root}" in message
    assert f"{root / LABELS.path}  28881 bytes  md5 {LABELS.md5}" in message
    assert f"{root / MNIST[3].path}  4542 bytes" in message
    assert "dataset=digits, which needs no network" in message
    assert not (tmp_path / "new").exists()


def test_built_in_mirrors_are_left_alone_where_the_variable_names_others(
    mirrors: SimpleNamespace, tmp_path: Path
) -> None:
    mirrors.use("absent")
    with pytest.raises(DataError) as caught, fetch.unpacked(tmp_path, [LABELS]):
        pass
    assert not any(url in str(caught.value) for url in LABELS.urls)


@pytest.mark.parametrize("there", [{"packed": PACKED}, {"plain": b"tiny content"}])
def test_files_already_there_need_no_network(there: dict[str, bytes], tiny: fetch.Archive, tmp_path: Path) -> None:
    put(tmp_path, **there)
    with fetch.unpacked(tmp_path, [tiny]) as folder:
        assert (folder / "tiny/a").read_bytes() == b"tiny content"
    if "plain" in there:
        assert tree(tmp_path) == {"tiny/a": b"tiny content"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tiny/a.gz", gzip.compress(b"tiny content", 1, mtime=7)),
        ("tiny/other.gz", gzip.compress(b"tiny content", 1, mtime=7)),
        ("a", b"tiny content"),
    ],
    ids=["packed again", "another name", "no folder"],
)
def test_another_packing_and_another_name_are_no_damage(
    name: str, content: bytes, tiny: fetch.Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = dataclasses.replace(tiny, others=("tiny/other.gz", "a"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert fetch.is_here(tmp_path, tiny)
    with read_only(tmp_path), fetch.unpacked(tmp_path, [tiny]) as folder:
        assert (folder / "tiny/a").read_bytes() == b"tiny content"
    with fetch.unpacked(tmp_path, [tiny]) as folder:
        assert folder == tmp_path
    assert tree(tmp_path) == {name: content, "tiny/a": b"tiny content"}
    said = f"{tmp_path / name}: is not packed as published, but its content is right\n"
    assert capsys.readouterr().err == 2 * said


@pytest.mark.parametrize("content", [b"tiny cont", gzip.compress(b"tiny cont"), b""], ids=["cut", "packed", "empty"])
def test_another_content_is_damage_in_any_packing(content: bytes, tiny: fetch.Archive, tmp_path: Path) -> None:
    tiny = dataclasses.replace(tiny, others=("tiny/other.gz", "a"))
    put(tmp_path, packed=content)
    for name in tiny.others:
        (tmp_path / name).write_bytes(content)
    assert not fetch.is_here(tmp_path, tiny)
    with pytest.raises(DataError, match=r"or, with the same content: tiny/a, tiny/other\.gz, a$"):
        fetch.unpacked(tmp_path, [tiny]).__enter__()


def test_a_folder_of_mnist_as_others_have_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed anew, with the names of another distribution, without folders."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the MNIST archives in {SHARED_DATA}")
    for archive in MNIST:
        content = gzip.decompress((SHARED_DATA / archive.path).read_bytes())
        name = Path(archive.path).name.replace("-idx", ".idx")
        (tmp_path / name).write_bytes(gzip.compress(content, 1))
    with fetch.unpacked(tmp_path, MNIST):
        pass
    assert len(capsys.readouterr().err.splitlines()) == 4
    with fetch.unpacked(tmp_path, MNIST):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "HTTPS_PROXY"])
def test_what_a_library_under_the_download_cannot_do_is_the_mirror_s_failure(
    variable: str, tiny: fetch.Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "nosuch://nowhere/at all")
    monkeypatch.setenv(fetch.MIRROR_VARIABLE, "https://127.0.0.1:9")
    with pytest.raises(DataError) as caught, fetch.unpacked(tmp_path, [tiny]):
        pass
    first, second, advice, *_ = str(caught.value).splitlines()
    assert first.endswith("tiny/a.gz is absent and could not be fetched:")
    assert second.startswith("  https://127.0.0.1:9/tiny/a.gz: ")
    assert "Put there by hand" in advice


def test_a_damaged_unpacked_file_is_restored_from_its_archive(tiny: fetch.Archive, tmp_path: Path) -> None:
    put(tmp_path, packed=PACKED, plain=b"tiny cont")
    with fetch.unpacked(tmp_path, [tiny]):
        assert (tmp_path / "tiny/a").read_bytes() == b"tiny content"


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ({"plain": b"tiny cont"}, "tiny/a is damaged (9 bytes"),
        ({"packed": PACKED[:-1]}, "tiny/a.gz is damaged"),
        ({"packed": PACKED[:15] + bytes([PACKED[15] ^ 1]) + PACKED[16:]}, "tiny/a.gz is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_kept_where_no_mirror_helps(
    there: dict[str, bytes], named: str, tiny: fetch.Archive, tmp_path: Path
) -> None:
    put(tmp_path, **there)
    before = tree(tmp_path)
    with pytest.raises(DataError) as caught, fetch.unpacked(tmp_path, [tiny]):
        pass
    assert f"{tmp_path}/{named}" in str(caught.value).splitlines()[0]
    assert tree(tmp_path) == before


def test_a_damaged_archive_is_replaced_by_a_good_one(mirrors: SimpleNamespace, tmp_path: Path) -> None:
    mirrors.use("good")
    path = tmp_path / LABELS.path
    path.parent.mkdir(parents=True)
    path.write_bytes((SHARED_DATA / LABELS.path).read_bytes()[:-1])
    with fetch.unpacked(tmp_path, [LABELS]):
        assert fetch.flaw(path, LABELS.md5) is None


def test_a_complete_read_only_folder_is_used_as_it_is(tiny: fetch.Archive, tmp_path: Path) -> None:
    put(tmp_path, plain=b"tiny content")
    with read_only(tmp_path), fetch.unpacked(tmp_path, [tiny]) as folder:
        assert folder == tmp_path
    assert tree(tmp_path) == {"tiny/a": b"tiny content"}


def test_a_read_only_folder_with_archives_is_unpacked_elsewhere_for_the_moment(
    tiny: fetch.Archive, tmp_path: Path
) -> None:
    plain = fetch.Archive("tiny/b.gz", 1, "0", {"tiny/b": md5(b"plain")}, ())
    put(tmp_path, packed=PACKED)
    (tmp_path / "tiny/b").write_bytes(b"plain")
    before = tree(tmp_path)
    with read_only(tmp_path), fetch.unpacked(tmp_path, [tiny, plain]) as folder:
        assert folder != tmp_path
        assert tree(folder) == {"tiny/a": b"tiny content", "tiny/b": b"plain"}
    assert not folder.exists()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("there", [{}, {"plain": b"tiny cont"}])
def test_an_incomplete_read_only_folder_is_refused(
    there: dict[str, bytes], tiny: fetch.Archive, tmp_path: Path
) -> None:
    put(tmp_path, **there)
    with (
        read_only(tmp_path),
        pytest.raises(DataError, match=rf"dataset.root={tmp_path}: cannot be read or written: .*ermission denied"),
        fetch.unpacked(tmp_path, [tiny]),
    ):
        pass


FETCH = """
import sys
from pathlib import Path
from bsnn_cli.datasets import fetch
Path(sys.argv[2]).touch()
with fetch.unpacked(Path(sys.argv[1]), fetch.ARCHIVES["mnist"], progress=False):
    pass
"""


def start(root: Path, started: Path, url: str) -> subprocess.Popen[str]:
    """Fetch MNIST in a process of its own, which makes the file `started` first."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(root), str(started)],
        env=os.environ | {fetch.MIRROR_VARIABLE: url},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_four_processes_at_once_download_each_file_once(server: SimpleNamespace, tmp_path: Path) -> None:
    started = [tmp_path / f"started{index}" for index in range(4)]
    server.implementation.crowd = lambda: wait_until(lambda: all(path.exists() for path in started))
    root = tmp_path / "data"
    processes = [start(root, path, f"{server.url}/crowded") for path in started]
    endings = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert endings == [("", 0)] * 4
    assert sorted(server.asked) == sorted(archive.path for archive in MNIST)
    assert len(tree(root)) == 8


def test_a_download_killed_half_way_leaves_no_file_and_no_lock_behind(server: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    process = start(root, tmp_path / "started", f"{server.url}/dripping")
    wait_until(lambda: server.asked)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not any((root / archive.path).exists() for archive in MNIST)
    process = start(root, tmp_path / "started", f"{server.url}/good")
    assert process.communicate(timeout=60)[1] == ""
    assert len(tree(root)) == 8


def test_waiting_for_another_process_is_said_and_its_work_is_used(tiny: fetch.Archive, tmp_path: Path) -> None:
    put(tmp_path)
    done = threading.Event()

    def wait() -> None:
        with fetch.unpacked(tmp_path, [tiny]):
            done.set()

    with contextlib.redirect_stderr(io.StringIO()) as said, filelock.FileLock(tmp_path / "tiny/.a.gz.lock"):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: "\n" in said.getvalue())
        put(tmp_path, plain=b"tiny content")
        assert not done.is_set()
    thread.join()
    assert said.getvalue() == f"another process is fetching {tmp_path}/tiny/a.gz: waiting for it\n"
    assert done.is_set()
    assert tree(tmp_path) == {"tiny/a": b"tiny content"}
