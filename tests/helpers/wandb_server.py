"""Enough of a W&B server for tests: it takes runs, keeps their history, and can fall silent."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Use as a context manager; `url` is what WANDB_BASE_URL needs.

    Attributes:
        runs: ids of the runs made, in the order of the requests.
        history: the logged rows of each run, by its line number, as W&B keeps them.
        summary: the summary of each run.
        config: the configuration of each run.
        awake: as long as this is not set, requests wait.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: list[str] = []
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.config: dict[str, dict[str, Any]] = {}
        self.awake = threading.Event()
        self.awake.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        super().__exit__(*error)

    def handle_error(self, *args: Any) -> None:
        """Say nothing: clients leave as they please."""

    def epochs(self, run: str) -> list[dict[str, Any]]:
        """The logged rows that are of epochs."""
        return [row for _, row in sorted(self.history[run].items()) if "loss" in row]

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer to a GraphQL query."""
        if "upsertBucket" in text:
            return self.upsert(variables)
        if "createRunFiles" in text:
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in text:  # it is there already
            artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": {"id": "1"}}
            return {"createArtifact": {"artifact": artifact}}
        if "model(" in text:  # is there such a run to resume?
            return {"model": {"id": "1", "name": "noisybsd", "bucket": self.bucket(variables)}}
        return {}

    def upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"]
        if run not in self.history:
            self.runs.append(run)
            self.history[run], self.summary[run], self.config[run] = {}, {}, {}
        if variables.get("config"):
            values = json.loads(variables["config"])
            self.config[run] |= {key: entry["value"] for key, entry in values.items()}
        project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
        bucket = {"id": "1", "name": run, "displayName": run, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def bucket(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        run = variables.get("name")
        if run not in self.history:
            return None
        history = self.history[run]
        tail = [json.dumps(history[max(history)])] if history else []
        return {
            "name": run,
            "historyLineCount": len(history),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summary[run]),
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run: str, files: dict[str, Any]) -> None:
        """Lines of a run's files."""
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], start=history["offset"]):
            self.history[run][number] = json.loads(line)
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            self.summary[run] |= json.loads(line)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.awake.wait()
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            request = json.loads(body)
            variables = request.get("variables") or {}
            answer = {"data": self.server.query(request["query"], variables)}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST
