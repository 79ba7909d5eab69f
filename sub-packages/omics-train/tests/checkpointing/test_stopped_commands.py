"""The command itself, stopped by signals and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import torch
from process_parts import process_server
from run_parts import SMALL

from omics.models import Bundle
from omics.train.checkpointing.checkpoint_folder import checkpoint_steps, newest_checkpoint
from omics.train.cli import main


def _command(arguments, said):
    """Be the command, whose libraries are imported already."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stdout.fileno())
    sys.argv = ["omics-train", "pretrain", *arguments]
    main()


def begun(folder, *arguments):
    """Return the process of a command; `said.txt` beside its folder is what it prints."""
    arguments = [*arguments, f"working_dir={folder}"]
    said = folder.parent / "said.txt"
    process = process_server().Process(target=_command, args=(arguments, said))
    process.start()
    return process


def wait_for_steps(folder, number, has_ended):
    """Wait until a run has saved so many steps."""
    until = time.monotonic() + 200
    while time.monotonic() < until and not has_ended():
        if (checkpoint_steps(folder) or [0])[-1] >= number:
            return
        time.sleep(0.01)
    raise AssertionError(checkpoint_steps(folder))


def finished(folder, *arguments):
    """Run the command to its end; return what it printed."""
    process = begun(folder, *arguments)
    process.join()
    assert process.exitcode == 0
    return (folder.parent / "said.txt").read_text()


def test_a_command_stopped_by_signals_goes_on_to_the_same_bundle(atlas, tmp_path):
    """SIGTERM, which it saves after, then SIGKILL, which it does not.

    Every part runs in a process of its own, as it does for users: what tests before this one did to
    that of the tests has no part in the last bits. The first one is started as users start it.
    """
    settings = [*atlas.cells, *SMALL, "data_module.batch_size=2", "trainer.max_epochs=2"]
    settings += ["trainer.checkpoint.every_steps=4", "model.dropout=0.2"]
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "from omics.train.cli import main; main()", "pretrain"]
    first = subprocess.Popen(
        [*command, *settings, f"working_dir={folder}"],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(folder, 4, lambda: first.poll() is not None)
    first.send_signal(signal.SIGTERM)
    said, told = first.communicate()
    assert first.returncode == 75
    saved = newest_checkpoint(folder)
    assert told.splitlines()[-1] == (
        f"Stopped by SIGTERM after step {saved.step}; saved in {saved.path}. Run the same command "
        "with resume=true to go on."
    )
    assert "Traceback" not in said + told
    assert not (folder / "bundle").exists()
    second = begun(folder, *settings, "resume=true")
    wait_for_steps(folder, saved.step + 8, lambda: not second.is_alive())
    second.kill()
    second.join()
    before = newest_checkpoint(folder).step
    assert 0 < before < 140
    assert f"after step {before} of 140" in finished(folder, *settings, "resume=auto")
    finished(tmp_path / "whole", *settings)
    weights = [Bundle.load(tmp_path / n / "bundle").model.state_dict() for n in ("run", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    histories = [(tmp_path / n / "history.csv").read_bytes() for n in ("run", "whole")]
    assert histories[0] == histories[1]
