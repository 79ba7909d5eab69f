from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import warnings

import pytest
import typer

from omics.data import command_line
from omics.data.command_line import Verbosity, duration, make_app, print_json, progress, run, say
from omics.data.errors import (
    ConfigError,
    CorruptStoreError,
    InputDataError,
    MissingPathError,
    OmicsWarning,
    ResourceError,
    StoppedError,
    UnknownNameError,
    UsageError,
    nearest,
)


def command_that(action, monkeypatch, *arguments):
    """Run a command with one verb `go`; return its exit code."""
    app = make_app("omics-data", "A command.")

    @app.command()
    def go() -> None:
        """Go."""
        action()

    monkeypatch.setattr(sys, "argv", ["omics-data", *arguments])
    with pytest.raises(SystemExit) as caught:
        run(app)
    return caught.value.code


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "builtin"),
    [
        (UsageError("m"), 2, ValueError),
        (ConfigError("m"), 2, ValueError),
        (UnknownNameError("m"), 2, KeyError),
        (MissingPathError("m"), 2, FileNotFoundError),
        (InputDataError("m"), 3, ValueError),
        (CorruptStoreError("m"), 4, ValueError),
        (ResourceError("m"), 5, OSError),
    ],
)
def test_errors_end_with_their_code_and_one_line(monkeypatch, capsys, error, code, builtin):
    assert isinstance(error, builtin)
    assert command_that(raising(error), monkeypatch, "go") == code
    assert capsys.readouterr().err == "error: m\n"


def test_what_was_asked_to_stop_is_no_error(monkeypatch, capsys):
    assert command_that(raising(StoppedError("saved in x")), monkeypatch, "go") == 75
    assert capsys.readouterr().err == "saved in x\n"
    assert isinstance(StoppedError("m"), RuntimeError)


def test_a_message_of_several_lines_becomes_one_paragraph(monkeypatch, capsys):
    command_that(raising(UsageError("first\n  second")), monkeypatch, "go")
    assert capsys.readouterr().err == "error: first second\n"


def test_verbose_shows_the_traceback_too(monkeypatch, capsys):
    assert command_that(raising(UsageError("m")), monkeypatch, "-v", "go") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: m\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full", "/data/x"), OSError(errno.EDQUOT, "quota", "/data/x")]
)
def test_a_full_disk_ends_with_code_5_and_names_the_file(monkeypatch, capsys, error):
    assert command_that(raising(error), monkeypatch, "go") == 5
    assert "/data/x" in capsys.readouterr().err


def test_out_of_memory_ends_with_code_5(monkeypatch, capsys):
    assert command_that(raising(MemoryError()), monkeypatch, "go") == 5
    assert "Out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory", "/data/x"),
        RuntimeError("can't start new thread"),
        ImportError("x.so: failed to map segment from shared object"),
    ],
)
def test_memory_that_the_system_refuses_ends_with_code_5(monkeypatch, capsys, error):
    assert command_that(raising(error), monkeypatch, "go") == 5
    assert "Out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ImportError("no module x")])
def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch, error):
    with pytest.raises(type(error), match=str(error)):
        command_that(raising(error), monkeypatch, "go")


@pytest.mark.parametrize(("arguments", "shown"), [([], "warning: one two\n"), (["--quiet"], "")])
def test_a_warning_of_ours_is_one_line(monkeypatch, capsys, arguments, shown):
    def action():
        warnings.warn("one\n  two", OmicsWarning, stacklevel=1)

    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert command_that(action, monkeypatch, *arguments, "go") == 0
    assert capsys.readouterr().err == shown
    assert warnings.showwarning is before


def test_other_warnings_are_shown_as_python_does(monkeypatch):
    def action():
        warnings.warn("theirs", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command_that(action, monkeypatch, "go")
    assert [str(each.message) for each in caught] == ["theirs"]


def test_torch_finds_its_settings_unless_the_user_has_others(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    found = {}
    run(lambda: found.update(os.environ))
    assert (found["OMP_WAIT_POLICY"], found["THP_MEM_ALLOC_ENABLE"]) == ("ACTIVE", "1")


def test_an_interrupt_ends_with_code_130(monkeypatch):
    assert command_that(raising(KeyboardInterrupt()), monkeypatch, "go") == 130


def test_a_bug_keeps_its_traceback(monkeypatch):
    app = typer.Typer()

    @app.command()
    def go() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(ZeroDivisionError):
        run(app)


def test_an_unknown_verb_and_option_end_with_code_2(monkeypatch, capsys):
    assert command_that(lambda: None, monkeypatch, "gone") == 2
    assert command_that(lambda: None, monkeypatch, "go", "--bogus") == 2
    assert "--bogus" in capsys.readouterr().err


def test_version_and_help(monkeypatch, capsys):
    assert command_that(lambda: None, monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("omics-data 0.")
    assert command_that(lambda: None, monkeypatch, "--help") == 0
    assert "A command." in capsys.readouterr().out


def test_quiet_silences_people_s_lines_but_not_json(monkeypatch, capsys):
    def action():
        say("for people")
        print_json({"for": "machines"})

    assert command_that(action, monkeypatch, "--quiet", "go") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"for": "machines"}


def test_progress_without_a_terminal_is_a_line_every_few_seconds(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "PLAIN_LINE_EVERY_S", 0.0)
    with progress("converting", 10) as advance:
        time.sleep(0.001)
        advance(4)
    error = capsys.readouterr().err
    assert error.startswith("converting: 4/10 cells, ")
    assert error.endswith(" cells/s, 0 s left\n")


def test_progress_shows_what_it_is_given_beside_the_rate(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "PLAIN_LINE_EVERY_S", 0.0)
    with progress("training", None, "steps", detail=lambda: "fill 98%") as advance:
        time.sleep(0.2)
        advance(1)
    assert re.fullmatch(r"training: 1 steps, [0-9.]+ steps/s, fill 98%\n", capsys.readouterr().err)
    monkeypatch.setattr(command_line, "_DETAIL_EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("training", 4, "steps", detail=lambda: "fill 97%") as advance:
        advance(4)
    assert "fill 97%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (7200, "2.0 h")]
)
def test_durations_have_the_unit_that_people_use(seconds, text):
    assert duration(seconds) == text


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("converting", 10) as advance:
        advance(10)
    assert "10/10" in capsys.readouterr().err


def test_a_quiet_progress_says_nothing(capsys):
    Verbosity.quiet = True
    with progress("converting", None) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_the_nearest_name_is_named_or_all_of_them():
    assert nearest("cel_type", ["cell_type", "batch"]) == " Did you mean 'cell_type'?"
    assert nearest("zzz", ["a", "b"]) == " Known: 'a', 'b'."
    assert nearest("zzz", [f"n{i}" for i in range(12)]).endswith("'n9' and 2 more.")
    assert nearest("a", []) == " There are none."
