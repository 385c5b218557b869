"""A Hugging Face hub on loopback that serves the weights of timm's tiny test models."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import timm
import torch
from safetensors.torch import save
from torch import Tensor

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS_FILE, OLDER_FILE = "model.safetensors", "pytorch_model.bin"


@dataclass
class Hub:
    """What is served, and how often it was asked for."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)
    """How often each backbone's file was sent."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often each path was asked for, whether it is there or not."""

    def offer(self, backbone: str, *, older: bool = False) -> dict[str, Tensor]:
        """Serve random weights of a backbone, in the older format if told so; return them."""
        weights: dict[str, Tensor] = timm.create_model(backbone).state_dict()
        if older:
            content = BytesIO()
            torch.save(weights, content)
        else:
            content = BytesIO(save(weights))
        name = OLDER_FILE if older else WEIGHTS_FILE
        self.files[f"{_folder_of(backbone)}/{name}"] = content.getvalue()
        return weights

    def has_repository(self, path: str) -> bool:
        """Tell whether something is served from the repository that `path` is in."""
        folder = path.rpartition("/")[0]
        return any(other.rpartition("/")[0] == folder for other in self.files)

    def environment(self, home: Path) -> dict[str, str]:
        """Return what makes a process use this hub, with a cache of its own in `home`."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Yield an empty hub that answers until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub(server.server_port)  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _folder_of(backbone: str) -> str:
    return f"/{timm.models.get_pretrained_cfg(backbone).hf_hub_id}/resolve/main"


class _Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as its client looks at the answer."""

    def do_HEAD(self) -> None:
        """Send what the client wants to know of a file before it downloads it."""
        self._answer()

    def do_GET(self) -> None:
        """Send a file."""
        content = self._answer()
        if content is not None:
            self._hub.downloads[_backbone_in(self.path)] += 1
            self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Keep the tests' output quiet."""

    @property
    def _hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def _answer(self) -> bytes | None:
        self._hub.asked[self.path] += 1
        content = self._hub.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            fault = "EntryNotFound" if self._hub.has_repository(self.path) else "RepoNotFound"
            self.send_header("X-Error-Code", fault)
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content


def _backbone_in(path: str) -> str:
    """Return `test_resnet` of `/timm/test_resnet.r160_in1k/resolve/main/model.safetensors`."""
    return path.split("/")[2].partition(".")[0]
