"""Pictures, videos and a server to annotate with."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

DASHCAM = Path(__file__).with_name("dashcam.schema.json")
CAPTION = {
    "caption": "A van cuts in.",
    "event_type": "near_miss",
    "rule_violations": ["failure_to_yield"],
    "intended_driving_action": "change_lanes",
    "traffic_density": "high",
    "visibility": "good",
}


def save_picture(path: Path, grey: int = 128, size: tuple[int, int] = (40, 30)) -> Path:
    """One plain picture; `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def save_video(
    path: Path, num_frames: int, fps: int = 10, codec: str = "", gop: int = 10, size: tuple[int, int] = (64, 48)
) -> Path:
    """A video whose every frame differs from all others: a bar that grows on a noise that never repeats.

    A keyframe stands at each `gop` frames. Default `codec`: H.264, in AVI MPEG-4.
    """
    codec = codec or ("mpeg4" if path.suffix == ".avi" else "libx264")
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps, options={"sc_threshold": "0"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for number in range(num_frames):
            pixels = np.repeat(np.repeat(random.integers(0, 256, (size[1] // 8, size[0] // 8, 3)), 8, 0), 8, 1)
            full = np.zeros((size[1], size[0], 3), np.uint8)
            full[: pixels.shape[0], : pixels.shape[1]] = pixels
            full[:, : 1 + number % size[0]] //= 2
            file.mux(stream.encode(av.VideoFrame.from_ndarray(full, "rgb24")))
        file.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    body: dict[str, Any]
    headers: dict[str, str]
    path: str

    @property
    def pictures(self) -> list[Image.Image]:
        """What the first message shows."""
        parts = [
            part["image_url"]["url"] for part in self.body["messages"][0]["content"] if part["type"] == "image_url"
        ]
        assert all(uri.startswith("data:image/jpeg;base64,") for uri in parts)
        return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in parts]

    @property
    def grey(self) -> int:
        """The shade of the first picture, by which a test tells media apart."""
        pixel = self.pictures[0].getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return pixel[0]

    @property
    def text(self) -> str:
        """What is asked."""
        return next(part["text"] for part in self.body["messages"][0]["content"] if part["type"] == "text")


@dataclass(frozen=True)
class Reply:
    """What the server says."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay_s: float = 0.0
    finish_reason: str = "stop"

    def encoded(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.content}}).encode()
        text = self.content if isinstance(self.content, str) else json.dumps(self.content)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": self.finish_reason}
        return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}).encode()


OK = Reply(CAPTION)


class Server:
    """An OpenAI-compatible server: `answer(request)` says what it replies; a list of replies is gone through."""

    def __init__(self, answer: Callable[[Asked], Reply] | Sequence[Reply]) -> None:
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self.times: list[float] = []
        self._lock = threading.Lock()
        replies = iter(answer) if isinstance(answer, Sequence) else None
        self._answer: Callable[[Asked], Reply] = (lambda _: next(replies)) if replies is not None else answer  # type: ignore[assignment]

        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = outer._reply(Asked(body, dict(self.headers), self.path))
                data = reply.encoded()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):  # a client that no longer waits
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def _reply(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            reply = self._answer(asked)
        time.sleep(reply.delay_s)
        with self._lock:
            self.at_once -= 1
        return reply


@contextmanager
def serving(answer: Callable[[Asked], Reply] | Sequence[Reply]) -> Iterator[Server]:
    """A server in a thread of this process, while the body runs."""
    server = Server(answer)
    thread = threading.Thread(target=server._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._http.shutdown()
        server._http.server_close()
        thread.join()


def words(server: Server, *more: str) -> list[str]:
    """The command, with waits that a test can bear."""
    return [
        *("media_dir=data/images", "out=data/metadata.jsonl", f"schema={DASHCAM}", "annotator=openai"),
        *(f"annotator.base_url={server.base_url}", "annotator.model=large", "annotator.backoff_s=0.01", *more),
    ]


def lines(path: str = "data/metadata.jsonl") -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def problems() -> list[Any]:
    return lines("data/metadata.jsonl.problems.jsonl")


def counts(out: str) -> list[int]:
    """The table's row: there before, annotated, without an answer, not asked."""
    (row,) = [line for line in out.splitlines() if line.startswith("│")]
    return [int(cell) for cell in row.strip("│").split("│")]


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"image": f"images/{number}.png", **CAPTION, **changes}
