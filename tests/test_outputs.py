"""Files that appear whole or not at all, and what must not be harmed by them."""

import json
import os
import shutil
import stat
import sys
import threading
from contextlib import suppress

import pytest

from rheidae.exceptions import OutputError
from rheidae.system import commands, outputs
from tests.streams import STREAMS


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("before")
    for name in ("file", "new"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
        outputs.write_text(tmp_path / name, "after")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "real" / name).read_text() == "after"
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["file", "new"]


def test_pipes_and_devices_are_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    outputs.write_text(pipe, "through the pipe")
    reader.join()
    assert read == [b"through the pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    master, slave = os.openpty()
    (tmp_path / "link").symlink_to(os.ttyname(slave))
    outputs.write_text(tmp_path / "link", "to the terminal")
    assert os.read(master, 100) == b"to the terminal"
    assert stat.S_ISCHR((tmp_path / "link").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_an_error_sends_nothing_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with suppress(ValueError), outputs.Outputs() as files:
        files.write(tmp_path / "pipe", b"half")
        raise ValueError
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reading, 10) == b""
    os.close(reading)


def test_what_the_process_prints_to_is_not_replaced(tmp_path):
    """``command --json out.txt > out.txt``, and ``--json /dev/stdout``."""
    printed = tmp_path / "out.txt"
    before = os.dup(1)
    try:
        os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY), 1)
        os.write(1, b"first\n")
        outputs.write_text("/dev/stdout", "second\n")
        outputs.write_text(printed, "third\n")
        os.write(1, b"last\n")
    finally:
        os.dup2(before, 1)
    assert printed.read_text() == "first\nsecond\nthird\nlast\n"


def test_lock_and_temporary_files_lead_nowhere_else(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("of somebody else")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".rheidae.lock").symlink_to(victim)
    with pytest.raises(OutputError, match="cannot be written"), outputs.only_writer(folder):
        pass
    assert victim.read_text() == "of somebody else"


def test_new_folders_are_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(outputs, "sync", synced.append)
    outputs.write_text(tmp_path / "a" / "b" / "file", "text")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)


def test_a_folder_that_goes_away_names_the_file(tmp_path):
    written = outputs.Outputs()
    written.write(tmp_path / "gone" / "a", b"x")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(OutputError, match="gone/a: cannot be written"):
        written.__exit__(None)


def test_a_full_disk_names_the_file(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"big: cannot be written \(File too large\)"):
            outputs.write_text(tmp_path / "big", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# --- commands ------------------------------------------------------------------------------------------------


def test_outputs_that_would_destroy_something(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    data.write_text("rows")
    (tmp_path / "link").symlink_to(data)
    os.link(data, tmp_path / "hard")
    for name in ("data", "link", "hard", "../" + tmp_path.name + "/data"):
        with pytest.raises(OutputError, match=r"is an input .* and would be overwritten; .*--json"):
            commands.require_harmless({"--json": tmp_path / name}, [data])
    with pytest.raises(OutputError, match=r"is --json already .*--markdown"):
        commands.require_harmless({"--json": other, "--markdown": tmp_path / "." / "other"}, [data])
    with pytest.raises(OutputError, match="is a folder; name a file"):
        commands.require_harmless({"--json": tmp_path}, [data])
    null = type(data)("/dev/null")
    commands.require_harmless({"--json": null, "--markdown": null, "--figure": other, "--none": None}, [data, None])


def three_lines():
    commands.show("skill 0.79 ± 0.01")
    commands.show()
    commands.show(json.dumps({"third": "line"}))


@pytest.mark.parametrize("name", STREAMS)
def test_printing_never_fails(name, monkeypatch, capsys):
    make, status = STREAMS[name]
    with make() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert commands.run(three_lines) == status
        if name == "ascii":
            assert stream.buffer.getvalue() == b'skill 0.79 \\xb1 0.01\n\n{"third": "line"}\n'
    if name == "full":
        assert "standard output: cannot be written (No space left on device)" in capsys.readouterr().err
