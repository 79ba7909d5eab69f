"""What a foreign file does to the process that reads it first is an error here, and no more."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from omics.data import check_file, convert, synthesize
from omics.data.errors import CorruptStoreError, InputDataError, ResourceError
from omics.data.sources import guarded_reading, hdf5_safety
from omics.data.sources.guarded_reading import Limits, guarded
from omics.data.sources.hdf5_safety import limited_text, open_safely, text_read

QUICK = Limits(cpu_s=0.5, wall_s=10.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content")
    return path


@pytest.fixture(params=["fork", "helper"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Use one of the two kinds of child, with the tasks of this folder at hand."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(guarded_reading, "_passed", {})
    monkeypatch.setattr(guarded_reading, "_refused", {})
    guarded_reading._stop_helper()
    forks = request.param == "fork"
    if forks and sys.platform != "linux":
        pytest.skip("forks are used on Linux only")
    monkeypatch.setattr(guarded_reading, "_may_fork", lambda: forks)
    yield request.param
    guarded_reading._stop_helper()


def run(task: str, path: Path, *, limits: Limits = QUICK, **options: Any) -> dict[str, Any]:
    return guarded(
        f"reading_tasks:{task}", path, library="the library", options=options, limits=limits
    )


def refusal(task: str, path: Path, **options: Any) -> str:
    with pytest.raises(InputDataError) as raised:
        run(task, path, **options)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_the_result_of_a_child_comes_back_and_is_remembered(way: str, file: Path) -> None:
    first = run("describe", file, word="Zürich")
    assert (first["text"], first["word"]) == ("content", "Zürich")
    assert first["pid"] != os.getpid()
    assert run("describe", file, word="Zürich") is first
    assert run("describe", file, word="Bern")["word"] == "Bern"
    file.write_text("changed content")
    assert run("describe", file, word="Zürich")["text"] == "changed content"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL])
def test_a_crash_is_an_error_that_names_the_signal(
    way: str, number: signal.Signals, file: Path
) -> None:
    message = refusal("die", file, number=int(number))
    assert f"the library crashed ({number.name}). The file is damaged" in message
    assert "fetch it again" in message
    assert run("describe", file)["text"] == "content"


def test_an_endless_loop_is_an_error(way: str, file: Path) -> None:
    started = time.monotonic()
    assert "did not come back within" in refusal("loop", file)
    assert time.monotonic() - started < 8


def test_a_child_that_waits_for_ever_is_ended(way: str, file: Path) -> None:
    limits = Limits(cpu_s=5.0, wall_s=0.3)
    assert "the library did not come back within 0.3 s" in refusal("wait", file, limits=limits)


def test_a_child_that_leaves_without_a_word_is_an_error(way: str, file: Path) -> None:
    assert "ended its process (exit code 3)" in refusal("leave", file)


def test_memory_is_limited(way: str, file: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("no limit of address space without /proc")
    limits = Limits(cpu_s=5.0, wall_s=20.0, memory_bytes=2**26)
    message = refusal("fill_memory", file, limits=limits, num_bytes=2**27)
    assert "needs more than 67,108,864 bytes of memory" in message
    assert run("fill_memory", file, limits=limits, num_bytes=2**20) == {"length": 2**20}


def test_errors_raised_on_purpose_arrive_as_the_same_class(way: str, file: Path) -> None:
    assert refusal("refuse", file) == f"{file} is not wanted."
    with pytest.raises(CorruptStoreError, match=r"^a chunk is wrong$"):
        run("find_damage", file)
    with pytest.raises(RuntimeError, match="TypeError: a fault of ours"):
        run("stumble", file)


def test_a_file_that_ended_its_child_is_refused_at_once_for_a_while(
    way: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal("refuse", file)
    assert guarded_reading._passed == guarded_reading._refused == {}
    first = refusal("leave", file)
    with monkeypatch.context() as patch:
        patch.setattr(guarded_reading, "_run", None)
        assert refusal("leave", file) == first
        later = time.monotonic() + guarded_reading.REFUSED_S + 1
        patch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(TypeError):
            run("leave", file)
    file.write_text("mended, and longer")
    assert run("describe", file)["text"] == "mended, and longer"


def test_an_interrupt_ends_the_child(way: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            run("wait", file, limits=Limits(cpu_s=5.0, wall_s=60.0))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert run("describe", file)["text"] == "content"


def test_limits_grow_with_the_file() -> None:
    assert Limits.for_size(0) == Limits(cpu_s=5.0, wall_s=60.0)
    assert Limits.for_size(10**10).cpu_s == pytest.approx(1005)
    assert Limits.for_size(10**10).wall_s == pytest.approx(3015)


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_reading, "_passed", {})
    monkeypatch.setattr(guarded_reading, "MAX_REMEMBERED", 3)
    for number in range(5):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as handle:
            handle["x"] = number
        text_read(path)
    assert len(guarded_reading._passed) == 3


def test_only_a_process_of_one_thread_forks() -> None:
    alone = guarded_reading._may_fork()
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert not guarded_reading._may_fork()
    end.set()
    thread.join()
    assert guarded_reading._may_fork() == alone


@pytest.mark.parametrize("way", ["helper"], indirect=True)
def test_many_threads_share_one_helper(way: str, tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(12)]
    for path in paths:
        path.write_text(path.name)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda path: run("describe", path), paths))
    assert [each["text"] for each in found] == [path.name for path in paths]
    assert len({each["pid"] for each in found}) == 1


@pytest.mark.parametrize("way", ["helper"], indirect=True)
def test_a_helper_that_has_gone_is_replaced(way: str, tmp_path: Path, file: Path) -> None:
    first = run("describe", file, word="1")["pid"]
    helper = guarded_reading._helpers[os.getpid()]
    assert helper.process is not None
    helper.process.kill()
    helper.process.wait()
    second = run("describe", file, word="2")["pid"]
    assert second != first
    # It may also go, in peace, while a request is on its way.
    helper.stop(kill=True)
    helper.process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.3)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert run("describe", file, word="3")["text"] == "content"


@pytest.mark.parametrize("way", ["helper"], indirect=True)
def test_a_forked_worker_gets_a_helper_of_its_own(way: str, file: Path) -> None:
    ours = run("describe", file)["pid"]

    def work(queue: Any) -> None:
        queue.put(run("describe", file, word="worker")["pid"])
        guarded_reading._stop_helper()

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=work, args=(queue,))
    worker.start()
    theirs = queue.get()
    worker.join()
    assert worker.exitcode == 0
    assert theirs not in {ours, os.getpid()}
    assert run("describe", file, word="again")["pid"] == ours


@pytest.mark.parametrize("way", ["helper"], indirect=True)
def test_no_child_can_be_started(way: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_room)
    with pytest.raises(ResourceError, match=r"No child process .* \(Resource temporarily"):
        run("describe", file)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ResourceError, match=r"sys\.executable is empty"):
        run("describe", file)


@pytest.mark.parametrize("way", ["fork"], indirect=True)
def test_where_no_fork_is_possible_the_helper_reads(
    way: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room() -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", no_room)
        assert run("describe", file)["text"] == "content"
    assert os.getpid() in guarded_reading._helpers


def test_a_process_that_has_read_ends_without_a_word(tmp_path: Path) -> None:
    """Neither a fork nor a helper leaves a warning, a child or a wait behind."""
    path = tmp_path / "a.h5ad"
    synthesize(12, 10, seed=2, num_types=2).write_h5ad(path)
    script = (
        "import threading, sys\n"
        "from omics.data.sources.hdf5_safety import text_read\n"
        "print(text_read(sys.argv[1]).unread)\n"
        "thread = threading.Thread(target=lambda: print(text_read(sys.argv[2]).unread))\n"
        "thread.start(); thread.join()\n"
    )
    other = tmp_path / "b.h5ad"
    other.write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path), str(other)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("()\n()\n", "")


# --- HDF5 files ----------------------------------------------------------------------------------


def looping_file(path: Path) -> None:
    """Make a sound .h5ad, then zero the head of the first text in its heap.

    libhdf5 takes the empty head for free space of no bytes and never gets past it. Random damage
    does the like to some 3 % of copies.
    """
    synthesize(12, 10, seed=2, num_types=2).write_h5ad(path)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(data)


def test_a_real_file_that_libhdf5_never_gets_through_is_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loops.h5ad"
    looping_file(path)
    monkeypatch.setattr(guarded_reading, "MIN_CPU_S", 0.5)
    for read in (check_file, lambda file: convert(file, tmp_path / "s")):
        with pytest.raises(InputDataError) as raised:
            read(path)
        message = str(raised.value)
        assert str(path) in message
        assert "the HDF5 library did not come back within" in message
    assert not (tmp_path / "s").exists()


def test_a_crash_in_the_walk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("forks are used on Linux only")
    path = tmp_path / "a.h5ad"
    synthesize(12, 10, seed=2, num_types=2).write_h5ad(path)
    monkeypatch.setattr(guarded_reading, "_passed", {})
    monkeypatch.setattr(guarded_reading, "_may_fork", lambda: True)

    class Crash(hdf5_safety._Walk):
        def check(self) -> None:
            os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(hdf5_safety, "_Walk", Crash)
    with pytest.raises(InputDataError, match=r"the HDF5 library crashed \(SIGSEGV\)"):
        check_file(path)


def test_the_guard_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as handle:
        handle["x"] = 1
    monkeypatch.setattr(hdf5_safety, "guarded", None)
    with open_safely(path, guard=False) as handle:
        assert handle["x"][()] == 1


def test_all_text_is_read_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    names = [f"cell {number}" for number in range(3000)]
    with h5py.File(path, "w") as handle:
        handle["obs/names"] = names
        handle.create_dataset("obs/packed", data=np.array(names, object), compression="gzip")
        handle["obs/one"] = "x" * 1000
        handle["obs/square"] = np.array([["ab", "c"], ["", "d"]], object)
        kind = np.dtype([("n", "i4"), ("t", h5py.string_dtype())])
        handle["obs/pairs"] = np.array([(1, "abc"), (2, "de")], dtype=kind)
        lists = handle.create_dataset("obs/lists", (2,), h5py.vlen_dtype(np.int32))
        lists[0], lists[1] = [1, 2, 3], [4]
        handle["obs/number"] = 3
        handle["obs/nothing"] = h5py.Empty("f4")
        handle["obs/reference"] = handle["obs"].ref
        handle["uns/notes"] = ["y" * 50] * 10
    sizes = [2 * sum(map(len, names)), 1000, 4, 8 + 5, 16, 8]
    with open_safely(path):
        assert text_read(path).num_bytes == sum(sizes) + 500
    assert text_read(path).unread == ()
    # With 16 bytes for the reference to each text the tables come to 148,000 bytes.
    for limit, unread in ((148_200, {"/uns/notes"}), (100_000, {"/obs/names"})):
        with limited_text(limit):
            limited = text_read(path)
        assert unread <= set(limited.unread)
        assert limited.num_bytes < sum(sizes) + 500
    with limited_text(200_000):
        assert text_read(path).unread == ()


def test_text_that_repeats_the_same_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand names that are one text of 1 MB would fill a gigabyte."""
    path = tmp_path / "bomb.h5ad"
    with h5py.File(path, "w") as handle:
        handle["obs/_index"] = ["x" * 2**20] + ["y"] * 999
        offset = handle["obs/_index"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset : offset + 16_000] = data[offset : offset + 16] * 1000
    path.write_bytes(data)
    with pytest.raises(InputDataError, match="bytes of text, more than fit into its") as raised:
        text_read(path)
    assert "/obs/_index" in str(raised.value)


def test_a_list_of_damaged_chunks_is_left_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as handle:
        handle.create_dataset("x", data=np.arange(1000), chunks=(100,), compression="gzip")
        where = handle["x"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[where : where + 8] = bytes(8)
    path.write_bytes(data)
    with open_safely(path) as handle:
        assert handle["x"][999] == 999
