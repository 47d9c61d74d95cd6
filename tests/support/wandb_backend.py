"""A W&B server in a thread, as far as its client needs one; the real client talks to it.

The client (wandb 0.31: Python, and `wandb-core`, its service process) goes where WANDB_BASE_URL says, with any key of
40 characters. It has three ways, each of which may be gzipped or chunked:

- `POST /graphql` with `query` (which names the operation) and `variables`. Viewer: whose key it is. RunResumeStatus:
  what the server has of a run (bucket null: nothing); a resumed run continues behind its line counts and its last row
  (`historyTail`: JSON of a list of JSON). UpsertBucket: makes or changes a run. CreateRunFiles: where to PUT the run's
  files. CreateArtifact, CreateArtifactManifest, UpdateArtifactManifest, CreateArtifactFiles, CommitArtifact: an
  artifact's record, the list of its files, the files, and that it is whole. Whatever else it asks it can do without.
- `POST /files/ENTITY/PROJECT/RUN/file_stream`: lines of wandb-history.jsonl and its like, from an offset on; every 15
  seconds unless `x_file_stream_transmit_interval` says otherwise, every 30 seconds where there are none. The answer's
  `stopped` is true after a press of the page's Stop button (the query RunStoppedStatus is gone since wandb 0.23).
- `PUT` of whole files to the addresses that it was given.

What it sends about itself (`/sdk/otel/`) is taken and forgotten.
"""

import gzip
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "somebody"
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class ServedRun:
    """What the server has of a run.

    Attributes:
        name: the run's W&B id.
        fields: of the run, as the client's UpsertBucket calls them.
        lines: of the streamed files, file -> lines.
        files: that were uploaded, name -> content.
        resumed: how often a client was told how far the run has come.
        stopped: whether the Stop button was pressed.
        exit_code: with which its last part ended; None: nobody has said.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    resumed: int = 0
    stopped: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, with W&B's own `_step`, `_timestamp` and `_runtime`."""
        return [json.loads(line) for line in self.lines.get(HISTORY, [])]

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of everything."""
        return dict(json.loads(self.lines.get(SUMMARY, ["{}"])[-1]))

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration, without W&B's own entry."""
        config = json.loads(self.fields.get("config") or "{}")
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}


@dataclass
class ServedArtifact:
    """An artifact: `files` are what was uploaded of it; it counts once it is committed."""

    name: str
    kind: str
    aliases: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class Backend:
    """The server.

    Attributes:
        runs: W&B id -> run.
        artifacts: in the order of their making.
        asked: the operations and paths so far, of failed requests too.
        faults: what a client sent that would lose or double rows; a test asserts that there is nothing.
        status: of every answer; 200: as it should be, 500: nothing is taken.
        delay: seconds before every answer; infinite: it never comes.
        stop_after: presses the Stop button of a run that has so many rows; None: nobody does.
    """

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: list[ServedArtifact] = []
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.status = 200
        self.delay = 0.0
        self.stop_after: int | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"backend": self}))

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes a client come here."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="wandb-backend", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def waits(self) -> bool:
        """Let the delay pass; returns whether an answer is to be given at all."""
        return not self._closed.wait(min(self.delay, threading.TIMEOUT_MAX)) if self.delay else True

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """What a request is answered with, as JSON."""
        with self._lock:
            if path == "/graphql":
                asked = json.loads(body)
                query = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                operation = query[1] if query else "?"
                self.asked.append(operation)
                if operation not in self._operations():
                    return {"errors": [{"message": f"unknown operation {operation}"}]}
                return {"data": self._operations()[operation](asked.get("variables") or {})}
            self.asked.append(f"{method} {path}")
            if streamed := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
                return self._stream(self.runs[streamed[1]], json.loads(body))
            if method == "PUT":
                kind, owner, name = path.removeprefix("/storage/").split("/", 2)
                files = self.runs[owner].files if kind == "run" else self.artifacts[int(owner)].files
                files[unquote(name)] = body
            return {}

    def _operations(self) -> dict[str, Any]:
        return {
            "Viewer": lambda _: {
                "viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}",
                           "teams": {"edges": []}}
            },
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "RunResumeStatus": self._resume,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": self._run_files,
            "CreateArtifact": self._artifact,
            "CreateArtifactManifest": lambda asked: {"createArtifactManifest": self._manifest(asked["artifactID"])},
            "UpdateArtifactManifest": lambda asked: {
                "updateArtifactManifest": self._manifest(asked["artifactManifestID"])
            },
            "CreateArtifactFiles": self._artifact_files,
            "CommitArtifact": self._commit,
        }  # fmt: skip

    def _project(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["project"]
        return {"id": name, "name": name, "entity": {"id": ENTITY, "name": asked.get("entity") or ENTITY}}

    def _resume(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": {**self._project(asked), "bucket": None}}
        run.resumed += 1
        counts = {f"{kind}LineCount": len(run.lines.get(file, [])) for kind, file in STREAMED.items()}
        tails = {f"{kind}Tail": json.dumps(run.lines.get(file, [])[-1:]) for kind, file in STREAMED.items()}
        config = json.loads(run.fields.get("config") or "{}")
        bucket = {
            "id": run.name, "name": run.name, "summaryMetrics": json.dumps(run.summary),
            "displayName": run.fields.get("displayName"), "config": json.dumps(config),
            "tags": run.fields.get("tags") or [], "notes": run.fields.get("notes"),
            "wandbConfig": json.dumps({"t": config.get("_wandb", {}).get("value", {}).get("t", {})}),
            **counts, "historyTail": tails["historyTail"], "eventsTail": tails["eventsTail"],
        }  # fmt: skip
        return {"model": {**self._project(asked), "bucket": bucket}}

    def _upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        inserted = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], ServedRun(asked["name"]))
        run.fields.update({name: value for name, value in asked.items() if value is not None})
        bucket = {
            "id": run.name, "name": run.name, "displayName": run.fields.get("displayName") or run.name,
            "description": None, "config": run.fields.get("config"), "sweepName": None,
            "project": self._project(run.fields), "historyLineCount": len(run.lines.get(HISTORY, [])),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _run_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.address}/storage/run/{asked['run']}/{name}"}
                 for name in asked["files"]]  # fmt: skip
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def _artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked["input"]
        number, aliases = str(len(self.artifacts)), [each["alias"] for each in given.get("aliases") or []]
        self.artifacts.append(ServedArtifact(given["artifactCollectionName"], given["artifactTypeName"], aliases))
        artifact = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        url = f"{self.address}/storage/manifest/{artifact}/manifest"
        return {"artifactManifest": {"id": artifact, "file": {"id": artifact, "uploadUrl": url, "uploadHeaders": []}}}

    def _artifact_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "node": {
                    "storagePath": each["name"], "uploadHeaders": [], "uploadMultipartUrls": None,
                    "uploadUrl": f"{self.address}/storage/artifact/{each['artifactID']}/{each['name']}",
                    "artifact": {"id": each["artifactID"]},
                }
            }
            for each in asked["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _commit(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[int(asked["artifactID"])].committed = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}

    def _stream(self, run: ServedRun, sent: dict[str, Any]) -> dict[str, Any]:
        for file, chunk in (sent.get("files") or {}).items():
            held, offset, content = run.lines.setdefault(file, []), chunk["offset"], chunk["content"]
            if file == SUMMARY:
                held[:] = content
                continue
            if offset > len(held):
                self.faults.append(f"{file} of {run.name}: line {offset} came after line {len(held)}")
            again = held[offset : offset + len(content)]
            if again != content[: len(again)]:
                self.faults.append(f"{file} of {run.name}: lines from {offset} on were sent again, and were others")
            held[offset : offset + len(content)] = content
        if sent.get("exitcode") is not None or sent.get("complete"):
            run.exit_code = sent.get("exitcode")
        if self.stop_after is not None and len(run.history) >= self.stop_after:
            run.stopped, self.stop_after = True, None
        return {"exitcode": None, "limits": {}, "stopped": run.stopped}


STREAMED = {"log": "output.log", "history": HISTORY, "events": "wandb-events.jsonl"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave when it likes
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: Backend

    def _answer(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if not self.backend.waits():
            self.close_connection = True
            return
        status, answer = self.backend.status, b"{}"
        if status == 200:
            answer = json.dumps(self.backend.answer(self.command, path, body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def log_message(self, *_: object) -> None:
        pass
