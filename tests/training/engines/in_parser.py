"""Runs in an engine's own Python: what its own parser makes of command lines, as JSON: `in_parser.py <script> <list of command lines>`.

The script runs as it is, until its parser has read everything; those that are told by a file ask the parser a second time.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

script, lines = sys.argv[1], json.loads(sys.argv[2])
parse = argparse.ArgumentParser.parse_args
told = []


def parse_args(self, args=None, namespace=None):
    made = parse(self, args, namespace)
    if namespace is None and getattr(made, "config_file", None):
        return made
    told.append({"known": sorted(action.dest for action in self._actions), "args": vars(made)})
    sys.exit(0)


argparse.ArgumentParser.parse_args = parse_args
sys.path.insert(0, str(Path(script).parent))
for words in lines:
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
print("READ" + json.dumps(told, default=str))
