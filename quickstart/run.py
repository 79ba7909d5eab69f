"""Run the main job on real cells: raw counts in; embeddings, annotation and a report out.

Each step is a public command, printed before it runs: type them by hand and get the same.
`--list` prints them without running.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
LABEL = "bulk_labels"


def commands(work: Path, seed: int) -> list[str]:
    """Return the commands of the main job, in order.

    Args:
        work: folder for everything that is written.
        seed: of the split and of every model.
    """
    w = work.as_posix()
    cells = f"input_file={w}/pbmc.store data_module.split={w}/split.parquet"
    steps = [
        f"omics-data check {w}/pbmc.h5ad",
        f"omics-data convert {w}/pbmc.h5ad {w}/pbmc.store",
        f"omics-data split {w}/pbmc.store {w}/split.parquet --stratify {LABEL} --seed {seed}",
        f"omics-train pretrain {cells} working_dir={w}/pretrain seed={seed}",
        (
            f"omics-train finetune {cells} checkpoint={w}/pretrain/bundle label_columns=[{LABEL}]"
            f" working_dir={w}/finetune seed={seed}"
        ),
        (
            f"omics-train predict {cells} data_module.predict_split=test"
            f" checkpoint={w}/finetune/bundle working_dir={w}/predict"
        ),
        f"omics-eval embed {w}/pbmc.store --model {w}/pretrain/bundle --out {w}/embedded.h5ad",
        (
            f"omics-eval annotate {w}/embedded.h5ad --label {LABEL} --split {w}/split.parquet"
            f" --out {w}/annotated.h5ad"
        ),
        (
            f"omics-eval attribute {w}/pbmc.store --model {w}/finetune/bundle"
            f" --split {w}/split.parquet --out {w}/genes"
        ),
    ]
    report = (
        f"omics-eval report {w}/annotated.h5ad --label {LABEL} --split {w}/split.parquet"
        f" --predictions {w}/predict --run pretrain={w}/pretrain --run finetune={w}/finetune"
        f" --genes {w}/genes --model {w}/finetune/bundle --out {w}/report.html"
    )
    shown = [f"python quickstart/pbmc_counts.py {w}/pbmc.h5ad", *steps, report]
    return [*steps, report + "".join(f" --command {shlex.quote(step)}" for step in shown)]


def main() -> None:
    """Make the cells and run the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("work/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(commands(options.work, options.seed)))
        return
    _clear(options.work)
    started = time.monotonic()
    make = [sys.executable, str(HERE / "pbmc_counts.py"), str(options.work / "pbmc.h5ad")]
    _run(make, shown=f"python quickstart/pbmc_counts.py {options.work}/pbmc.h5ad")
    for command in commands(options.work, options.seed):
        _run(_resolved(command), shown=command.split(" --command ")[0])
    report = (options.work / "report.html").resolve()
    print(f"\nDone in {time.monotonic() - started:.0f} s. Open the report in a browser:\n{report}")


def _resolved(command: str) -> list[str]:
    name, *arguments = shlex.split(command)
    # The commands of this environment, whatever the shell's PATH says.
    return [str(Path(sys.executable).parent / name), *arguments]


def _run(command: list[str], *, shown: str) -> None:
    print(f"\n$ {shown}", flush=True)
    finished = subprocess.run(command, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def _clear(work: Path) -> None:
    """Empty the folder of an earlier quickstart; a folder of anything else is left alone."""
    if work.exists() and any(work.iterdir()):
        if not (work / "pbmc.h5ad").is_file():
            sys.exit(f"error: {work} holds other files; give an empty folder with --work.")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
