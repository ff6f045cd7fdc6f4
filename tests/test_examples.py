"""The programs in examples/, asked as a user asks them."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.own_run import own_run

import noisybsd


def test_serve_answers_over_http(tmp_path: Path) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples/serve.py")
    assert spec is not None and spec.loader is not None
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)

    own = own_run(tmp_path)
    config = uvicorn.Config(serve.serving(str(own / "run")), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/"
        image = own / "photos/test/cat/large.jpg"
        with urllib.request.urlopen(urllib.request.Request(url, image.read_bytes())) as answer:
            found = json.load(answer)
        known = noisybsd.load(own / "run").predict(image)
        assert found == {
            "class": known.classes[0],
            "confidence": float(known.confidence[0]),
            "sure": not known.unsure()[0],
        }
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, b"no image"))
        assert caught.value.code == 400 and "is not an image" in json.load(caught.value)["error"]
    finally:
        server.should_exit = True
        thread.join()
