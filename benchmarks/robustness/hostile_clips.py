"""Clips and pictures that are something else: lists of other files, addresses, programs, bombs."""

from __future__ import annotations

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

from benchmarks.robustness.hostile import Hostile
from lamp.clips.load import load_clips

_SECONDS, _ROOM = 20.0, 2**29
_NAMES = ("clip.mp4", "clip.m3u8#1.mp4", "clip.mkv", "concat:a|b.mp4", "clip.gif", "clip%03d.mov",
          "a.ffconcat.webm", "-i.mp4", "clip.avi")  # fmt: skip
_FEW = _NAMES[:3]
_UDP = 53_219


def hostile_clips() -> list[Hostile]:
    """All kinds."""
    kinds: list[tuple[str, Sequence[str], Callable[[Path], object]]] = [
        ("a script that names a play list", _NAMES, _script_of_list),
        ("a script that names a clip", _NAMES, _script),
        ("a script that names itself", _FEW, _script_of_itself),
        ("scripts in scripts", _FEW, _scripts_in_scripts),
        ("a play list of files", _NAMES, _list_of_files),
        ("a play list of addresses", _NAMES, _list_of_addresses),
        ("a play list with a key", _FEW, _list_with_key),
        ("a DASH manifest of files", _FEW, _manifest_of_files),
        ("a DASH manifest of addresses", _FEW, _manifest_of_addresses),
        ("a description of a session", _NAMES, _session),
        ("a list of streams", _FEW, _streams),
        ("subtitles", ("clip.mp4", "clip.mov"), _subtitles),
        ("a web page", _FEW, lambda path: path.write_text("<html><video src='bait.mp4'></html>")),
        ("PostScript", ("0.png", "0.jpg", "0.webp", "0.tif"), _postscript),
        ("vectors", ("0.png", "0.webp"), lambda path: path.write_text(_SVG)),
        ("a font", ("0.png", "0.bmp"), lambda path: path.write_bytes(b"SIMPLE  =" + bytes(9000))),
    ]
    found = [
        Hostile(kind, names, _guarded(make), _clip_reader, True, _SECONDS, _ROOM)
        for kind, names, make in kinds
    ]
    large = ("0.png", "1 \u202e.png")
    return [*found, Hostile("a picture of 67 million pixels", large, _large_png, _clip_reader,
        False,
                            60.0, 5 * 2**28)]  # fmt: skip


def _clip_reader(path: Path) -> None:
    """As training clips are read; a picture by its folder. Nothing may be asked of the network."""
    asked, heard = len(_listener().asked), _Ears(_UDP)
    clip = path.parent if path.suffix in (".png", ".jpg", ".webp", ".tif", ".bmp") else path
    try:
        clips = load_clips([clip], "", 2, short="loop", width=64, height=48)
        for _ in clips.chunks(0):
            pass
    finally:
        if heard.stop():
            raise AssertionError(f"the UDP port {_UDP} was opened")
        if len(_listener().asked) > asked:
            raise AssertionError(f"asked for {_listener().asked[-1]}")


def _guarded(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def lay(path: Path) -> None:
        outside = path.parent.parent / "outside"
        if not outside.is_dir():
            outside.mkdir()
            _write_bait(outside)
        make(path)

    return lay


def _write_bait(folder: Path) -> None:
    """Media that decode well, if anybody opens them."""
    from benchmarks.samples.clip_files import write_video

    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    for name in ("bait.mp4", "bait.ts"):
        write_video(folder / name, frames)


def _bait(path: Path, name: str = "bait.ts") -> Path:
    return path.parent.parent.resolve() / "outside" / name


class _Ears:
    """Whether a UDP port is opened in this process' network meanwhile."""

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
    """Notes who asks for something over HTTP."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *args: Any) -> None:
                """Silence."""

        self.asked = asked
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"


_listening: list[_Listener] = []


def _listener() -> _Listener:
    if not _listening:
        _listening.append(_Listener())
    return _listening[0]


# --- what is written ----------------------------------------------------------------------------


def _playlist(path: Path, address: str) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n")


def _script_of_list(path: Path) -> None:
    _playlist(path.parent / "list.m3u8", f"file://{_bait(path)}")
    path.write_text("ffconcat version 1.0\nfile 'list.m3u8'\n")


def _script(path: Path) -> None:
    (path.parent / "inner.mp4").write_bytes(_bait(path, "bait.mp4").read_bytes())
    path.write_text(f"ffconcat version 1.0\nfile '{_bait(path)}'\nfile 'inner.mp4'\n")


def _script_of_itself(path: Path) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '{path.name}'\nfile '{path.name}'\n")


def _scripts_in_scripts(path: Path) -> None:
    (path.parent / "end.mp4").write_bytes(_bait(path, "bait.mp4").read_bytes())
    for level in range(12):
        inner = "end.mp4" if level == 11 else f"level{level + 1}.ffconcat"
        name = path if level == 0 else path.parent / f"level{level}.ffconcat"
        name.write_text("ffconcat version 1.0\n" + f"file '{inner}'\n" * 4)


def _list_of_files(path: Path) -> None:
    _playlist(path, f"file://{_bait(path)}")


def _list_of_addresses(path: Path) -> None:
    _playlist(path, f"{_listener().url}/a.ts")


def _list_with_key(path: Path) -> None:
    (path.parent / "a.ts").write_bytes(_bait(path).read_bytes())
    path.write_text(
        f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{_listener().url}/key"\n'
        "#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n"
    )


def _manifest(path: Path, address: str) -> None:
    path.write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" minBufferTime="PT1S" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
        'mimeType="video/mp4"><Representation id="1" bandwidth="1" width="64" height="48">'
        f"<BaseURL>{address}</BaseURL><SegmentBase/></Representation></AdaptationSet></Period></MPD>"
    )


def _manifest_of_files(path: Path) -> None:
    _manifest(path, f"file://{_bait(path, 'bait.mp4')}")


def _manifest_of_addresses(path: Path) -> None:
    _manifest(path, f"{_listener().url}/a.mp4")


def _session(path: Path) -> None:
    path.write_text(
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {_UDP} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    )


def _streams(path: Path) -> None:
    """As RTSP, ASX, PLS and XSPF lists name them."""
    path.write_text(
        f"[playlist]\nFile1={_listener().url}/a.mp4\nNumberOfEntries=1\n<asx><entry>"
        f"<ref href='{_listener().url}/b.mp4'/></entry></asx>\nRTSPtextrtsp://127.0.0.1:9/x\n"
    )


def _subtitles(path: Path) -> None:
    path.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")


_SVG = "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"


def _postscript(path: Path) -> None:
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n"
        "(a_program_was_run) (w) file closefile showpage\n%%EOF\n"
    )


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
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows.getvalue())
                     + chunk(b"IEND", b""))  # fmt: skip
