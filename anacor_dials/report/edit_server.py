"""The page on which a person puts labels right: a small server on this machine alone.

It listens on 127.0.0.1. Every address begins with a random token; without it, from another page or
under another name of the machine nobody gets anything: requests must name 127.0.0.1 or localhost as
their host (another name can be made to point here by a hostile page), and a request of a page must
come from this page itself. The page (templates/edit.html, edit.js) asks for slices as numbers and
draws them itself.
"""

from __future__ import annotations

import gzip
import hmac
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from anacor_dials import __version__
from anacor_dials.jobs.editing import LabelEditor
from anacor_dials.jobs.editing_effect import Effect
from anacor_dials.jobs.label_preview import READING, LabelPreview
from anacor_dials.report.page import plain
from anacor_dials.report.sample import colour, view_3d

logger = logging.getLogger("dials.anacor_dials.report.edit_server")

HOST = "127.0.0.1"
NAMES_OF_THIS_MACHINE = ("127.0.0.1", "localhost", "[::1]")  # the last two through a tunnel
LARGEST_REQUEST = 64 * 2**20  # bytes
GREY = (-0.25, 2.25)  # normalised values that are sent as 0 and 65535
FILES = {"": ("edit.html", "text/html"), "edit.js": ("edit.js", "text/javascript")}
POLICY = (
    # plotly.js makes some of its functions of text
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class EditServer:
    """Serves the page of an editor until it is stopped; threads of their own do what takes long.

    Parameters
    ----------
    editor : LabelEditor or LabelPreview
        Of the labels; or what is shown until :meth:`open` has read them.
    port : int
        0 for any that is free.

    Raises
    ------
    ValueError
        If the port is taken.
    """

    def __init__(self, editor: LabelEditor | LabelPreview, port: int = 0) -> None:
        self.editor = editor
        self.failure: ValueError | None = None  # why the labels could not be read
        self.token = secrets.token_urlsafe(24)
        self.busy = ""  # what takes long and is under way
        self.message = ""  # how it ended
        self.effect: Effect | None = None
        self._waiting, self._finding = threading.Lock(), threading.Lock()
        self._effect_wanted = False
        handler = type("Handler", (_Handler,), {"server_": self})
        try:
            self._http = ThreadingHTTPServer((HOST, port), handler)
        except OSError as error:
            raise ValueError(
                f"The port {port} cannot be used ({error.strerror}); give another one, or none (port=0)."
            ) from None
        self._http.daemon_threads = True

    @property
    def port(self) -> int:
        """The port that the page is served on."""
        return int(self._http.server_address[1])

    @property
    def address(self) -> str:
        """What is opened in a browser on this machine, or on another one through an ssh tunnel."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def run(self) -> None:
        """Serves until :meth:`stop`, or Ctrl-C."""
        try:
            self._http.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            logger.info("The page is closed; every step is saved.")
        finally:
            self._http.server_close()

    def stop(self) -> None:
        """Ends :meth:`run`."""
        self._http.shutdown()

    def open(self, read: Callable[[], LabelEditor]) -> None:
        """Reads the labels in a thread of its own; a preview is shown until they are there.

        If they cannot be read, the server stops, with the reason in `failure`.
        """

        def work() -> None:
            try:
                self.editor = read()
            except ValueError as error:
                self.failure = error
                self.stop()

        threading.Thread(target=work, daemon=True).start()

    # ---- what the page asks for ------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the page shows besides slices."""
        e = self.editor
        return {
            "file": e.path.name,
            "version": __version__,
            "shape": e.shape,
            "voxel_size_um": e.tomogram.voxel_size_um,
            "names": e.names,
            "colours": [colour(label) for label in range(len(e.names))],
            "grey": GREY,
            "noise": e.scale.noise / (e.scale.sample - e.scale.air),
            "doubt_known": e.probabilities is not None,
            "by_hand": e.n_by_hand,
            "undo": len(e.done),
            "redo": len(e.undone),
            "last": e.done[-1].what if e.done else "",
            "user": e.sessions[-1].user,
            "reading": isinstance(e, LabelPreview),
            "busy": READING if isinstance(e, LabelPreview) else self.busy,
            "message": self.message,
            "effect": self._effect(),
        }

    def _effect(self) -> dict[str, Any] | None:
        if self.effect is None:
            return None
        e = self.effect
        return {
            "volumes_before": e.volumes_before, "volumes_now": e.volumes_now,
            "mu_before": e.mu_before, "mu_now": e.mu_now,
            "factors_before": e.factors_before, "factors_now": e.factors_now, "rms": e.rms,
            "uncertainty_before": e.uncertainty_before, "uncertainty_now": e.uncertainty_now,
        }  # fmt: skip

    def slice_bytes(self, kind: str, axis: int, index: int) -> tuple[bytes, tuple[int, int]]:
        """A slice as bytes, and its shape.

        Values are uint16 over the range GREY; all else is uint8.

        Parameters
        ----------
        kind : str
            As of :meth:`anacor_dials.jobs.editing.LabelEditor.plane`.
        axis : int
        index : int
        """
        plane = self.editor.plane(kind, axis, index)
        if kind == "values":
            low, high = GREY
            plane = np.clip((plane - low) * (65535 / (high - low)), 0, 65535).astype("<u2")
        return np.ascontiguousarray(plane).tobytes(), plane.shape

    def do(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Does what the page asks for; raises ValueError with the reason where that cannot be."""
        editor = self.editor
        if isinstance(editor, LabelPreview):
            raise ValueError(f"{READING}.")
        steps: dict[str, Callable[[], Any]] = {
            "paint": lambda: editor.paint(*self._drawn(request), int(request["label"])),
            "erase": lambda: editor.erase(*self._drawn(request)),
            "body": lambda: editor.relabel_body(request["voxel"], int(request["label"])),
            "undo": editor.undo,
            "redo": editor.redo,
        }
        slow: dict[str, tuple[str, Callable[[], Any]]] = {
            "follow": ("Strokes go on", lambda: editor.follow(int(request.get("axis", 0)))),
            "learn": ("The network learns the sample", editor.learn),
        }
        if action in steps:
            if self.busy and action not in ("paint", "erase"):
                raise ValueError(f"{self.busy}: wait until that is done.")
            return {"changed": steps[action](), "state": self.state()}
        if action == "effect":
            self._find_effect(editor)
            return {"state": self.state()}
        if action in slow:
            self._begin(*slow[action])
            return {"state": self.state()}
        raise ValueError(f"{action} is no step.")

    def _drawn(self, request: Mapping[str, Any]) -> tuple[int, int, NDArray[np.int64]]:
        """(axis, index, voxels) of a slice and runs of voxels in it: first and length of each."""
        runs = np.asarray(request["runs"], dtype=np.int64).reshape(-1, 2)
        if runs.size and (runs[:, 1].min() < 1 or runs[:, 1].sum() > np.prod(self.editor.shape)):
            raise ValueError("Runs of voxels are at least one long, and no longer than the slice.")
        voxels = [np.arange(first, first + length) for first, length in runs]
        return (
            int(request["axis"]),
            int(request["index"]),
            np.concatenate([np.empty(0, np.int64), *voxels]),
        )

    def _find_effect(self, editor: LabelEditor) -> None:
        """Finds what the labels are worth in a thread of its own; once more where it is asked
        meanwhile.
        """
        self._effect_wanted = True
        if not self._finding.acquire(blocking=False):
            return

        def work() -> None:
            try:
                while self._effect_wanted:
                    self._effect_wanted = False
                    self.effect = editor.effect()
            except Exception as error:  # it is shown on the page, and the page goes on
                logger.exception("What the labels are worth")
                self.message = f"{type(error).__name__}: {error}"
            finally:
                self._finding.release()

        threading.Thread(target=work, daemon=True).start()

    def _begin(self, what: str, step: Callable[[], Any]) -> None:
        """Does a step that takes long in a thread of its own, one at a time."""
        if not self._waiting.acquire(blocking=False):
            raise ValueError(f"{self.busy}: wait until that is done.")
        self.busy, self.message = what, ""

        def work() -> None:
            try:
                found = step()
                if isinstance(found, int):
                    self.message = f"{what}: {found} voxels changed."
            except ValueError as error:
                self.message = str(error)
            except Exception as error:  # it is shown on the page, and the page goes on
                logger.exception("%s", what)
                self.message = f"{what}: {type(error).__name__}: {error}"
            finally:
                self.busy = ""
                self._waiting.release()

        threading.Thread(target=work, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    """Answers the page, and nobody else."""

    server_: EditServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "anacor_dials", ""
    timeout = 60  # seconds: a connection that says nothing is closed

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _asked(self) -> str | None:
        """The address after the token; None where the request is not the page's own."""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name not in NAMES_OF_THIS_MACHINE:
            return None
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return None
        # a page that is opened by a link, in a tab of its own, tells the page with the link nothing
        opened = self.headers.get("Sec-Fetch-Mode") == "navigate"
        opened &= self.headers.get("Sec-Fetch-Dest") == "document" and self.command == "GET"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not opened:
            return None
        _, token, *rest = urlsplit(self.path).path.split("/", 2)
        # both as bytes: other characters than ASCII must not raise
        if not hmac.compare_digest(token.encode(), self.server_.token.encode()) or not rest:
            return None
        return str(rest[0])

    def _send(
        self,
        content: bytes,
        kind: str,
        status: int = HTTPStatus.OK,
        packed: bool = True,
        **headers: str,
    ) -> None:
        self.send_response(status)
        if packed and len(content) > 2000 and "gzip" in self.headers.get("Accept-Encoding", ""):
            content = gzip.compress(content, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in {
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = HTTPStatus.OK) -> None:
        text = json.dumps(plain(content), separators=(",", ":"))
        self._send(text.encode(), "application/json", status)

    def _refuse(self) -> None:
        self.close_connection = True
        self._send(b"", "text/plain", HTTPStatus.NOT_FOUND)

    def do_GET(self) -> None:
        asked = self._asked()
        query = {k: v[-1] for k, v in parse_qs(urlsplit(self.path).query).items()}
        if asked is None:
            self._refuse()
        elif asked in FILES:
            name, kind = FILES[asked]
            text = files("anacor_dials").joinpath("templates", name).read_text(encoding="utf-8")
            self._send(text.encode(), kind)
        elif asked == "state":
            self._json(self.server_.state())
        elif asked == "places":
            self._json(self.server_.editor.places())
        elif asked == "surfaces":
            data, layout = view_3d(self.server_.editor.label_volume())
            self._json({"data": data, "layout": layout})
        elif asked == "plotly.js":
            from plotly.offline import get_plotlyjs

            self._send(get_plotlyjs().encode(), "text/javascript")
        elif asked == "slice":
            what = query.get("kind", "values")
            try:
                content, shape = self.server_.slice_bytes(
                    what, int(query["axis"]), int(query["index"])
                )
            except (KeyError, ValueError) as error:
                self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
                return
            self._send(
                content,
                "application/octet-stream",
                packed=what != "values",  # noise: a tenth less, and slower than to send it
                X_Shape=f"{shape[0]},{shape[1]}",
            )
        else:
            self._refuse()

    def do_POST(self) -> None:
        asked = self._asked()
        length = self.headers.get("Content-Length", "")
        # a form of another page cannot send this type without being asked first
        is_json = self.headers.get("Content-Type", "").partition(";")[0] == "application/json"
        if asked is None or not is_json or not length.isdigit() or int(length) > LARGEST_REQUEST:
            self._refuse()
            return
        try:
            request = json.loads(self.rfile.read(int(length)) or b"{}")
            if not isinstance(request, dict):
                raise ValueError("A step is an object.")
            self._json(self.server_.do(asked, request))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self._json(
                {"error": str(error) or repr(error), "state": self.server_.state()},
                HTTPStatus.BAD_REQUEST,
            )
