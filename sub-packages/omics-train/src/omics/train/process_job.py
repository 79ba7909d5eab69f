"""One of the processes that `train_in_processes` starts: `python -m omics.train.process_job FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from omics.data.command_line import Verbosity
from omics.data.errors import OmicsError


def main() -> None:
    """Train as the job in the folder says; an error is left there for who started the process."""
    from omics.train.run_files import read_configuration
    from omics.train.train_run import train

    reports = Path(sys.argv[1])
    job = json.loads((reports / "job.json").read_text())
    rank = int(os.environ["RANK"])
    Verbosity.quiet = job["quiet"] or rank > 0
    try:
        train(read_configuration(reports), Path(job["folder"]))
    except OmicsError as error:
        told = {"message": str(error), "exit_code": error.exit_code}
        written = reports / f".error-{rank}"
        written.write_text(json.dumps(told))
        written.rename(reports / f"error-{rank}.json")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
