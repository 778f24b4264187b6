"""A custom node folder without nodes, for servers under test: it records what the server opens,
lists, changes and connects to, one line of JSON each, in `trace.jsonl` of its base folder."""

import json
import os
import sys

import folder_paths

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_READS = {"os.listdir", "os.scandir", "glob.glob"}
_CHANGES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link",
    "os.symlink", "shutil.rmtree", "shutil.move", "os.utime",
}  # fmt: skip
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
         "socket.connect", "socket.bind", "pickle.find_class"}  # fmt: skip
_FILE = os.open(
    os.path.join(folder_paths.base_path, "trace.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
)


def _note(event, details):
    if event == "open":
        kind = "change" if isinstance(details[2], int) and details[2] & _WRITING else "read"
    elif event in _READS or event in _CHANGES or event in _RUNS:
        kind = "read" if event in _READS else "change" if event in _CHANGES else "run"
    else:
        return
    places = details[:1] if event == "open" else details
    paths = [os.fsdecode(part) for part in places if isinstance(part, (str, bytes, os.PathLike))]
    line = {"kind": kind, "event": event, "paths": paths, "details": repr(details)[:300]}
    os.write(_FILE, json.dumps(line).encode() + b"\n")


sys.addaudithook(_note)
NODE_CLASS_MAPPINGS = {}
