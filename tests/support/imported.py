"""distrib/train.py with a witness: what each rank has imported when it has trained, in FOLDER/rank-R.json.

IMPORTED=FOLDER
"""

import atexit
import json
import os
import sys
from pathlib import Path

from distrib.runs.folder import RunFolder
from distrib.train import main

RANK = os.environ.get("RANK", "0")


def write_down() -> None:
    Path(os.environ["IMPORTED"], f"rank-{RANK}.json").write_text(json.dumps(sorted(sys.modules)))


event = RunFolder.event


def watched_event(self, kind, **fields):
    event(self, kind, **fields)
    if kind == "end":
        write_down()
        os._exit(0)  # what comes now is the report


RunFolder.event = watched_event

if __name__ == "__main__":
    if RANK != "0":  # which makes the report
        atexit.register(write_down)
    sys.exit(main())
