"""Clips and pictures that are something else: lists of other files, addresses, programs, bombs."""

from __future__ import annotations

import functools
import http.server
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samples.clip_files import write_video
from lamp.clips.load import load_clips

from .watch import Hostile

_SECONDS, _ROOM = 20.0, 2**29
_NAMES = ("clip.mp4", "clip.m3u8#1.mp4", "clip.mkv", "concat:a|b.mp4", "clip.gif", "clip%03d.mov",
          "a.ffconcat.webm", "-i.mp4", "clip.avi")  # fmt: skip
_FEW = _NAMES[:3]
_PICTURES = (".png", ".jpg", ".webp", ".tif", ".bmp")
_UDP = 53_219
_SCRIPT = "ffconcat version 1.0\n"
_LIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
_MANIFEST = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S" minBufferTime="PT1S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1" width="64" height="48">'
    "<BaseURL>{}</BaseURL><SegmentBase/></Representation></AdaptationSet></Period></MPD>"
)
_TEXT: tuple[tuple[str, Sequence[str], str], ...] = (
    # In these texts {file}, {video} and {url} are the bait's addresses, {name} the clip's own name.
    ("a script that names a play list", _NAMES, f"{_SCRIPT}file 'list.m3u8'\n"),
    ("a script that names a clip", _NAMES, f"{_SCRIPT}file '{{video}}'\nfile 'inner.mp4'\n"),
    ("a script that names itself", _FEW, f"{_SCRIPT}file '{{name}}'\nfile '{{name}}'\n"),
    ("scripts in scripts", _FEW, _SCRIPT + "file 'level1.ffconcat'\n" * 4),
    ("a play list of files", _NAMES, _LIST.format("file://{file}")),
    ("a play list of addresses", _NAMES, _LIST.format("{url}/a.ts")),
    ("a play list with a key", _FEW, _LIST.format("a.ts").replace(
        "#EXTINF", '#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF')),
    ("a DASH manifest of files", _FEW, _MANIFEST.format("file://{video}")),
    ("a DASH manifest of addresses", _FEW, _MANIFEST.format("{url}/a.mp4")),
    ("a description of a session", _NAMES,
     "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
     f"m=video {_UDP} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"),
    ("a list of streams", _FEW,  # in the forms of PLS, ASX and RTSP
     "[playlist]\nFile1={url}/a.mp4\nNumberOfEntries=1\n<asx><entry>"
     "<ref href='{url}/b.mp4'/></entry></asx>\nRTSPtextrtsp://127.0.0.1:9/x\n"),
    ("subtitles", ("clip.mp4", "clip.mov"), "1\n00:00:00,000 --> 00:00:01,000\nhello\n"),
    ("a web page", _FEW, "<html><video src='bait.mp4'></html>"),
    ("PostScript", ("0.png", "0.jpg", "0.webp", "0.tif"),
     "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n"
     "(a_program_was_run) (w) file closefile showpage\n%%EOF\n"),
    ("vectors", ("0.png", "0.webp"),
     "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
    ("a font", ("0.png", "0.bmp"), "SIMPLE  =" + "\0" * 9000),
)  # fmt: skip


def hostile_clips() -> list[Hostile]:
    """All kinds."""
    found = [
        Hostile(kind, names, _writer(text), _read, True, _SECONDS, _ROOM)
        for kind, names, text in _TEXT
    ]
    large = ("0.png", "1 \u202e.png")
    kind = "a picture of 67 million pixels"
    return [*found, Hostile(kind, large, _large_png, _read, False, 60.0, 5 * 2**28)]


def _read(path: Path) -> None:
    """Read as training clips are, a picture by its folder; nothing may use the network."""
    listener, ears = _listener(), _Ears(_UDP)
    asked = len(listener.asked)
    clip = path.parent if path.suffix in _PICTURES else path
    try:
        clips = load_clips([clip], "", 2, short="loop", width=64, height=48)
        for _ in clips.chunks(0):
            pass
    finally:
        if ears.stop():
            raise AssertionError(f"the UDP port {_UDP} was opened")
        if len(listener.asked) > asked:
            raise AssertionError(f"requested {listener.asked[-1]}")


class _Ears:
    """Whether this process opens a UDP port meanwhile."""

    def __init__(self, port: int) -> None:
        self._sign, self._found, self._done = f":{port:04X} ", False, False
        self._table = Path("/proc/self/net/udp")
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._done and self._table.exists():
            self._found |= self._sign in self._table.read_text()
            time.sleep(0.01)

    def stop(self) -> bool:
        self._done = True
        self._thread.join()
        return self._found


class _Listener:
    """An HTTP server that records requests."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *args: Any) -> None:
                """Log nothing."""

        self.asked = asked
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"


@functools.cache
def _listener() -> _Listener:
    return _Listener()


def _writer(text: str) -> Callable[[Path], None]:
    """Writes the text, with media beside it that would decode if they were opened."""

    def write(path: Path) -> None:
        outside = path.parent.parent.resolve() / "outside"
        video, stream = outside / "bait.mp4", outside / "bait.ts"
        if not outside.is_dir():
            outside.mkdir()
            frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
            write_video(video, frames)
            write_video(stream, frames)
        if path.suffix not in _PICTURES:
            beside = path.parent
            (beside / "list.m3u8").write_text(_LIST.format(f"file://{stream}"))
            for name, bait in (("inner.mp4", video), ("end.mp4", video), ("a.ts", stream)):
                (beside / name).write_bytes(bait.read_bytes())
            for level in range(1, 12):
                inner = "end.mp4" if level == 11 else f"level{level + 1}.ffconcat"
                (beside / f"level{level}.ffconcat").write_text(_SCRIPT + f"file '{inner}'\n" * 4)
        places = {"file": stream, "video": video, "url": _listener().url, "name": path.name}
        filled = text
        for key, value in places.items():
            filled = filled.replace(f"{{{key}}}", str(value))
        path.write_text(filled)

    return write


def _large_png(path: Path) -> None:
    """A few kilobytes, 8192 x 8192, in colours with transparency."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    squeeze, rows = zlib.compressobj(9), io.BytesIO()
    for _ in range(8192):
        rows.write(squeeze.compress(bytes(1 + 8192 * 4)))
    rows.write(squeeze.flush())
    header = struct.pack(">IIBBBBB", 8192, 8192, 8, 6, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows.getvalue()), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
