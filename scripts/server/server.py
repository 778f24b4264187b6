"""A real ComfyUI server for tests and the demo: start it, queue graphs, read the results."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import requests
import websocket

from scripts.server.host import make_base_directory, ready_host
from scripts.server.run import Event, NodeError, PromptRejected, RunResult, read_binary

__all__ = ["ComfyServer", "NodeError", "PromptRejected", "RunResult", "ServerFailed"]

Prompt = Mapping[str, Mapping[str, Any]]

# Starts ComfyUI's main.py. The server exits when our end of its standard input closes, so it never
# outlives this process, even after SIGKILL.
_LAUNCH = """
import os, runpy, sys, threading
def follow():
    while os.read(0, 1024):
        pass
    os._exit(0)
threading.Thread(target=follow, daemon=True).start()
host = sys.argv.pop(1)
sys.path[0] = host
sys.argv[0] = os.path.join(host, "main.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ServerFailed(RuntimeError):
    """The server did not start, or it died. The message ends with the last lines of its log."""


class ComfyServer:
    """ComfyUI with this pack on a free loopback port, inside a `with` block.

    Args:
        base: its base directory. None makes a temporary one, so that it sees no models, inputs or
            outputs of other runs, and deletes it at the end.
        extra_nodes: more custom node folders to link in.
        args: more command-line arguments.
        cpu: whether to run on the CPU. None uses the GPU if there is one.
        log: the log file. None writes `server.log` into the base directory.
        start_timeout: seconds until it must answer.

    Raises:
        HostMissing: there is no ComfyUI, or packages that it requires are missing.
        ServerFailed: it did not start.
    """

    def __init__(
        self,
        base: Path | None = None,
        *,
        extra_nodes: Iterable[Path] = (),
        args: Sequence[str] = (),
        cpu: bool | None = None,
        log: Path | None = None,
        start_timeout: float = 240.0,
    ):
        self._own_base = base is None
        self._base = base
        self._extra_nodes = list(extra_nodes)
        self._args = list(args)
        self._cpu = cpu
        self._log = log
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file: IO[bytes] | None = None
        self._old_sigterm: Any = None
        self._http = requests.Session()
        self._http.trust_env = False  # proxies of the environment are not for loopback
        self.url = ""

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        host = ready_host()
        if self._base is None:
            self._base = Path(tempfile.mkdtemp(prefix="lamp-host-"))
        self._catch_sigterm()
        try:
            make_base_directory(self.base, self._extra_nodes)
            self._log_file = self.log_path.open("wb")
            for attempt in range(3):
                self._launch(host)
                try:
                    self._wait_until_ready()
                    return self
                except ServerFailed:
                    # Another process may take the port after we chose it.
                    if attempt == 2 or "address already in use" not in self.log_text().lower():
                        raise
            raise AssertionError("unreachable")
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def base(self) -> Path:
        if self._base is None:
            raise RuntimeError("the server has no folder before it is started")
        return self._base

    @property
    def pid(self) -> int:
        """The process id of the server."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self._log or self.base / "server.log"

    def log_text(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Stop the server. Calling it again does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if self._log_file is not None:
            self._log_file.close()
            self._log_file = None
        if self._own_base and self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
        if self._old_sigterm is not None:
            signal.signal(signal.SIGTERM, self._old_sigterm)
            self._old_sigterm = None

    def _catch_sigterm(self) -> None:
        """Turn SIGTERM into an exit, so that `with` blocks clean up."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers; _LAUNCH still ends the server
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._old_sigterm = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def _launch(self, host: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", _LAUNCH, str(host)]
        command += ["--cpu"] if (_no_gpu() if self._cpu is None else self._cpu) else []
        command += ["--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self.base), "--disable-auto-launch"]
        command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:", *self._args]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        # The pack must work from custom_nodes alone, without the repository on the path.
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            command,
            cwd=host,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # only we receive Ctrl-C, and stop the server
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            self._check_alive()
            with contextlib.suppress(requests.RequestException):
                if self._http.get(f"{self.url}/system_stats", timeout=5).ok:
                    return
            time.sleep(0.1)
        raise ServerFailed(self._with_log(f"not ready after {self._start_timeout:.0f} s"))

    def _check_alive(self) -> None:
        if self._process is None:
            raise ServerFailed("ComfyUI is not running")
        status = self._process.poll()
        if status is not None:
            raise ServerFailed(self._with_log(f"it ended with status {status}"))

    def _with_log(self, what: str, lines: int = 30) -> str:
        tail = "\n".join(self.log_text().splitlines()[-lines:])
        return f"ComfyUI failed: {what}. The end of its log:\n{tail}"

    # --- requests ----------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> Any:
        """GET `path`: the answer as JSON."""
        return self._request("GET", path, params=params).json()

    def fetch(self, path: str) -> bytes:
        """GET `path`: the answer as bytes."""
        return self._request("GET", path).content

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self.get("/object_info" + (f"/{node}" if node else ""))

    def models(self, folder: str) -> list[str]:
        return self.get(f"/models/{folder}")

    def view(self, file: Mapping[str, str]) -> bytes:
        """The bytes of a file that a node's output names."""
        return self._request("GET", "/view", params=dict(file)).content

    def upload_image(self, path: Path, subfolder: str = "") -> str:
        """Upload an image to the input folder. Returns its name for LoadImage."""
        form = {"subfolder": subfolder, "overwrite": "true"}
        with path.open("rb") as stream:
            answer = self._request("POST", "/upload/image", files={"image": stream}, data=form)
        stored = answer.json()
        return "/".join(filter(None, (stored["subfolder"], stored["name"])))

    def interrupt(self) -> None:
        """Cancel the run in progress, as the front end's button does."""
        self._request("POST", "/interrupt", json={})

    def free(self) -> None:
        """Unload models and drop cached node outputs, and wait until that is done."""
        self._request("POST", "/free", json={"unload_models": True, "free_memory": True})
        # The server does it between two runs, so run something.
        self.queue(_ANYTHING).check()

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self._http.request(method, self.url + path, timeout=60, **options)
        except requests.RequestException:
            self._check_alive()
            raise
        answer.raise_for_status()
        return answer

    # --- running graphs -------------------------------------------------------------------------

    def queue(
        self,
        prompt: Prompt,
        on_event: Callable[[Event], None] | None = None,
        timeout: float = 300.0,
        canvas: Mapping[str, Any] | None = None,
    ) -> RunResult:
        """Run an API-format graph to its end.

        Args:
            on_event: is called with every event, {"type", "data"}. Previews have the type
                "preview" (data: bytes), texts under nodes "progress_text".
            canvas: the workflow that the front end sends with a graph; nodes save it in files.

        Raises:
            PromptRejected: ComfyUI refused the graph.
            ServerFailed: the server died.
            TimeoutError: the run did not end in time; it was cancelled.
        """
        started = time.monotonic()
        # A new id for each run: the server drops an id when the earlier connection with it ends,
        # even if a new connection uses it already.
        client = uuid.uuid4().hex
        address = f"ws{self.url[4:]}/ws?clientId={client}"
        with contextlib.closing(websocket.create_connection(address, timeout=30)) as channel:
            result = RunResult(self._post(prompt, client, canvas))
            try:
                while not result.status:
                    left = timeout - (time.monotonic() - started)
                    if left <= 0:
                        self.interrupt()
                        raise TimeoutError(self._with_log(f"no end after {timeout:.0f} s"))
                    event = self._receive(channel, left)
                    if event is not None:
                        result.record(event)
                        if on_event is not None:
                            on_event(event)
            except (KeyboardInterrupt, SystemExit):
                with contextlib.suppress(requests.RequestException):
                    self.interrupt()
                raise
        result.outputs |= self._history(result.prompt_id).get("outputs", {})
        result.seconds = time.monotonic() - started
        return result

    def _post(self, prompt: Prompt, client: str, canvas: Mapping[str, Any] | None) -> str:
        body: Any = {"prompt": prompt, "client_id": client}
        if canvas is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": canvas}}
        answer = self._http.post(f"{self.url}/prompt", json=body, timeout=120)
        if answer.status_code == 400:
            raise PromptRejected(answer.json())
        answer.raise_for_status()
        # Of several outputs, ComfyUI drops the faulty ones and runs the others.
        if answer.json().get("node_errors"):
            self._request("POST", "/queue", json={"delete": [answer.json()["prompt_id"]]})
            self.interrupt()
            raise PromptRejected(answer.json())
        return answer.json()["prompt_id"]

    def _receive(self, channel: websocket.WebSocket, wait: float) -> Event | None:
        channel.settimeout(min(wait, 2.0))
        try:
            message = channel.recv()
        except websocket.WebSocketTimeoutException:
            self._check_alive()
            return None
        except (websocket.WebSocketException, OSError) as error:
            time.sleep(0.2)
            self._check_alive()
            raise ServerFailed(self._with_log(f"the connection broke ({error})")) from error
        return json.loads(message) if isinstance(message, str) else read_binary(message)

    def _history(self, prompt_id: str) -> dict[str, Any]:
        # The entry is written shortly after the last event.
        for _ in range(100):
            found = self.get(f"/history/{prompt_id}")
            if prompt_id in found:
                return found[prompt_id]
            time.sleep(0.05)
        raise ServerFailed(self._with_log("the finished run does not appear in the history"))


_ANYTHING: Prompt = {
    "latent": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    },
    "show": {"class_type": "PreviewAny", "inputs": {"source": ["latent", 0]}},
}


def _no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()
