"""Execute the notebooks in full and store their outputs, or check them in their small setting.

python notebooks/execute.py                    # all, stored
python notebooks/execute.py --small 01_*.ipynb # with CI set, nothing stored
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
TIMEOUT = 900


def execute(path: Path, *, small: bool) -> nbformat.NotebookNode:
    """Run all cells of a notebook in a fresh kernel, in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    if small:
        environment["CI"] = "1"
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,  # stored notebooks change only where their outputs do
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=environment)
    return notebook


def main() -> None:
    """Run the named notebooks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all in this folder")
    parser.add_argument("--small", action="store_true", help="set CI, and store nothing")
    options = parser.parse_args()
    paths = options.notebooks or sorted(FOLDER.glob("*.ipynb"))
    if not paths:
        sys.exit(f"no notebooks in {FOLDER}")
    for path in paths:
        start = time.perf_counter()
        notebook = execute(path, small=options.small)
        if not options.small:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
