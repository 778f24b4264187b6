"""Hostile clips: playlists under other names that refer to files, addresses and ports, pictures
that start a program, and files that never end."""

from __future__ import annotations

import http.server
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.samples.clip_files import write_numbered
from lamp.cli import main
from lamp.clips.decoding import reader as clip_reader
from lamp.clips.decoding.choose import check_kind, count_frames, source_frames
from lamp.clips.load import load_clips
from lamp.errors import ClipError
from tests.helpers.clip_reading import probe, read_frames

UDP_PORT = 50123
SIZE = {"width": 64, "height": 48}
ENDINGS = ("mp4", "m4v", "mov", "webm", "mkv", "avi", "gif", "ts", "wmv", "flv", "ogv", "webp")


class Trap:
    """Media outside the chosen folder, and a server that counts who asks for it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.media = write_numbered(folder / "secret.mp4", 6)
        write_numbered(folder / "secret.ts", 6)
        (folder / "list.m3u8").write_text(hls("secret.ts"))
        (folder / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{self.media.name}'\n")
        self.asked: list[str] = []
        trap = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.asked.append(self.path)
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def hls(*targets: str) -> str:
    parts = "".join(f"#EXTINF:1,\n{target}\n" for target in targets)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-VERSION:3\n{parts}#EXT-X-ENDLIST\n"


def dash(base: str) -> str:
    return f"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1" width="64" height="48"><BaseURL>{base}</BaseURL>
<SegmentBase indexRange="0-99"/></Representation></AdaptationSet></Period></MPD>
"""


SCRIPTS: dict[str, Callable[[Trap], str]] = {
    "concat of a file": lambda t: f"ffconcat version 1.0\nfile '{t.media}'\n",
    "concat of a url": lambda t: f"ffconcat version 1.0\nfile 'file:{t.media}'\n",
    "concat of a page": lambda t: f"ffconcat version 1.0\nfile '{t.address}/a.mp4'\n",
    "concat of a list beside it": lambda t: "ffconcat version 1.0\nfile 'beside.m3u8'\n",
    "concat of itself": lambda t: "ffconcat version 1.0\nfile 'clip.mp4'\nfile 'script'\n",
    "concat, options": lambda t: (
        f"ffconcat version 1.0\nfile 'x'\noption safe 0\nfile '{t.media}'\n"
    ),
    "hls of a file": lambda t: hls(str(t.media)),
    "hls of a url": lambda t: hls(f"file://{t.folder}/secret.ts"),
    "hls of a page": lambda t: hls(f"{t.address}/a.ts"),
    "hls of lists": lambda t: f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{t.folder}/list.m3u8\n",
    "hls with a key": lambda t: (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
        f'#EXT-X-KEY:METHOD=AES-128,URI="{t.address}/key"\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n'
    ),
    "hls with a map": lambda t: (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"
        f'#EXT-X-MAP:URI="{t.address}/a.mp4"\n#EXTINF:1,\n{t.media}\n#EXT-X-ENDLIST\n'
    ),
    "dash of a file": lambda t: dash(f"file://{t.media}"),
    "dash of a page": lambda t: dash(f"{t.address}/a.mp4"),
    "sdp": lambda t: (
        "v=0\no=- 0 0 IN IP4 0.0.0.0\ns=x\nc=IN IP4 0.0.0.0\nt=0 0\n"
        f"m=video {UDP_PORT} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    ),
    "smooth streaming": lambda t: (
        '<?xml version="1.0"?><SmoothStreamingMedia MajorVersion="2">'
        f'<StreamIndex Url="{t.address}/a"/></SmoothStreamingMedia>'
    ),
    "imf": lambda t: (
        '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/'
        'schemas/2067-3/2016"><Id>x</Id></CompositionPlaylist>'
    ),
    "asx": lambda t: f'<asx version="3.0"><entry><ref href="{t.address}/a"/></entry></asx>',
    "rtsp": lambda t: f"RTSPtextRTSP://127.0.0.1:{t.server.server_address[1]}/a\r\n",
    "redirect of real": lambda t: f"{t.address}/a.rm\n",
    "avisynth": lambda t: f'Version()\nDirectShowSource("{t.media}")\n',
    "subtitles": lambda t: "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "ffmetadata": lambda t: ";FFMETADATA1\ntitle=x\n",
    "lavfi": lambda t: "testsrc=duration=1:size=64x48\n",
}


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    made = Trap(tmp_path_factory.mktemp("outside") / "private")
    yield made
    made.server.shutdown()
    made.server.server_close()


def ports() -> set[str]:
    """Bound UDP ports of this machine, in hexadecimal digits, from the system's list."""
    found: set[str] = set()
    for name in ("udp", "udp6"):
        path = Path("/proc/net") / name
        if path.is_file():
            found |= {line.split()[1][-4:] for line in path.read_text().splitlines()[1:]}
    return found


def lay_out(folder: Path, kind: str, ending: str, trap: Trap) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"clip.{ending}"
    path.write_text(SCRIPTS[kind](trap))
    (folder / "script").write_text(SCRIPTS[kind](trap))
    (folder / "beside.m3u8").write_text(hls(f"file://{trap.folder}/secret.ts"))
    return path


@pytest.mark.parametrize("kind", SCRIPTS)
def test_no_playlist_is_followed_under_any_name(tmp_path: Path, trap: Trap, kind: str) -> None:
    asked = len(trap.asked)
    for ending in ENDINGS:
        path = lay_out(tmp_path / "clips", kind, ending, trap)
        for read in (probe, count_frames, check_kind, lambda p: load_clips([p], "", 2, **SIZE)):
            with pytest.raises(ClipError, match=f"clip.{ending}"):
                read(path)
            assert f"{UDP_PORT:04X}" not in ports()
    for name in ("a.m3u8#1.mp4", "a:b.mp4", "concat:x.mp4", "http:__127.0.0.1.mp4", "%d.mp4"):
        path = (tmp_path / "clips" / "script").rename(tmp_path / "clips" / name)
        with pytest.raises(ClipError):
            probe(path)
        path.rename(tmp_path / "clips" / "script")
    assert len(trap.asked) == asked


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files here")
def test_nothing_outside_is_opened(tmp_path: Path, trap: Trap, monkeypatch: Any) -> None:
    """FFmpeg's own access shows in the file's access time, which is reset before."""
    import os

    for file in trap.folder.iterdir():
        os.utime(file, (1, 1))
    for kind in SCRIPTS:
        path = lay_out(tmp_path / "clips", kind, "mp4", trap)
        with pytest.raises(ClipError):
            probe(path)
    assert {file.stat().st_atime for file in trap.folder.iterdir()} == {1.0}


def test_no_playlist_is_followed_through_the_hosts_videos(
    node_classes: dict[str, Any], tmp_path: Path, trap: Trap
) -> None:
    videos = sys.modules["comfy_api.latest"].InputImpl.VideoFromFile
    settings = {"frames": 2, "fps": 0.0, "stride": 1, "fit": "crop", "short_clips": "error",
                "flip": False, **SIZE}  # fmt: skip
    asked = len(trap.asked)
    for kind in SCRIPTS:
        path = lay_out(tmp_path / "clips", kind, "mp4", trap)
        with pytest.raises(ClipError, match="clip.mp4"):
            node_classes["LAMP_TrainingClips"].execute(
                folder=["(from images)"], prompt=["x"], videos=[videos(str(path))],
                **{name: [value] for name, value in settings.items()},
            )  # fmt: skip
    assert len(trap.asked) == asked


def test_the_command_line_follows_no_playlist(tmp_path: Path, trap: Trap, capsys: Any) -> None:
    asked = len(trap.asked)
    for kind in ("concat of a file", "hls of a page", "sdp"):
        path = lay_out(tmp_path / "clips", kind, "mp4", trap)
        assert main(["metrics", str(path)]) != 0
        assert "clip.mp4" in capsys.readouterr().err
    assert len(trap.asked) == asked


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n",
    b"\xc5\xd0\xd3\xc6" + bytes(60),
    b"\xd7\xcd\xc6\x9a" + bytes(60),
    b"BLP2" + bytes(60),
    b"SIMPLE  =                    T" + bytes(60),
    b"ICNS" + bytes(60),
])  # fmt: skip
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "avif"])
def test_a_picture_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, ending: str
) -> None:
    import subprocess

    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr(shutil, "which", lambda name, *_: f"/usr/bin/{name}")
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.{ending}").write_bytes(content)
    with pytest.raises(ClipError, match=f"clip/0.{ending}"):
        read_frames(folder, [0])
    (tmp_path / f"a.{ending}").write_bytes(content)
    with pytest.raises(ClipError):
        load_clips(tmp_path, "", 2, **SIZE)
    assert not started


@pytest.mark.slow
def test_a_large_picture_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import subprocess

    folder = tmp_path / "clip"
    folder.mkdir()
    Image.new("LA", (6000, 6000), (100, 128)).save(folder / "0.png", compress_level=1)
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.helpers.clip_reading import read_frames\n"
        "import PIL.PngImagePlugin, numpy\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "shown = read_frames(Path(sys.argv[1]), [0], 64, 48)\n"
        "print(peak() - before, shown.float().mean().item())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    grown, mean = map(float, run.stdout.split())
    assert mean == pytest.approx(50, abs=1)
    assert resource and grown < 1000  # MB; the pixels have 103 as RGB and 412 as float32


def test_an_absurd_webp_size_is_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    data = b"VP8X" + (10).to_bytes(4, "little") + b"\2\0\0\0" + (16_000).to_bytes(3, "little") * 2
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF" + (len(data) + 4).to_bytes(4, "little") + b"WEBP" + data)
    with pytest.raises(ClipError, match="16001 x 16001"):
        read_frames(path, [0])


# --- without end --------------------------------------------------------------------------------


def test_too_many_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_numbered(tmp_path / "a.mp4", 30)
    pictures = [Image.fromarray(np.full((8, 8, 3), 8 * n, np.uint8)) for n in range(30)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    monkeypatch.setattr(clip_reader, "MAX_FRAMES", 20)
    for name in ("a.mp4", "a.webp"):
        with pytest.raises(ClipError, match=f"'{name}'.* 20 "):
            probe(tmp_path / name)
    assert len(read_frames(path, range(20))) == 20


def test_decoding_without_progress_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_numbered(tmp_path / "a.mkv", 8)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5  # each look at it takes half a second
        return now[0]

    monkeypatch.setattr(clip_reader.time, "monotonic", clock)
    assert probe(path).frames == 8
    monkeypatch.setattr(clip_reader, "PATIENCE", 1.0)
    with pytest.raises(ClipError, match="'a.mkv'"):
        probe(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_slow_user_of_the_frames_is_no_slow_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A VAE on a CPU may take minutes for the frames between two reads."""
    path, now = tmp_path / name, [0.0]
    if name.endswith("gif"):
        pictures = [Image.new("RGB", (16, 16), (20 * n, 0, 0)) for n in range(8)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
    else:
        write_numbered(path, 12)
    monkeypatch.setattr(clip_reader.time, "monotonic", lambda: now[0])
    seen = 0
    for _ in source_frames(path):
        now[0] += 2 * clip_reader.PATIENCE
        seen += 1
    assert seen == (8 if name.endswith("gif") else 12)


class Stop(BaseException):
    """Like the cancel exception of some hosts."""


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, RuntimeError])
def test_a_cancel_works_during_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    path = write_numbered(tmp_path / "a.mp4", 20)
    monkeypatch.setattr(clip_reader, "_BETWEEN_PULSES", -1.0)
    for after in (1, 3, 10):
        left = [after]

        def tell(done: int, total: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise kind

        with pytest.raises(kind):
            load_clips([path], "", 4, progress=tell, **SIZE)


def test_bound_ports_are_detected() -> None:
    """A check of the test helper itself."""
    if not Path("/proc/net/udp").is_file():
        pytest.skip("no list of ports here")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        assert f"{bound.getsockname()[1]:04X}" in ports()
