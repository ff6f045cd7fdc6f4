"""Serve a run's network over HTTP, with Starlette: pip install starlette uvicorn

python examples/serve.py runs/own/…
curl --data-binary @cat.jpg http://127.0.0.1:8000/
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import noisybsd


def serving(run: str) -> Starlette:
    """An application that answers the bytes of an image file with its class."""
    classifier = noisybsd.load(run)

    async def predict(request: Request) -> JSONResponse:
        image = await request.body()
        try:
            found = await run_in_threadpool(classifier.predict, image)
        except ValueError as error:  # not an image
            return JSONResponse({"error": str(error)}, status_code=400)
        sure = not found.unsure()[0]
        confidence = float(found.confidence[0])
        return JSONResponse({"class": found.classes[0], "confidence": confidence, "sure": sure})

    return Starlette(routes=[Route("/", predict, methods=["POST"])])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    uvicorn.run(serving(sys.argv[1]), port=8000)
