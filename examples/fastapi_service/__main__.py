"""`python -m examples.fastapi_service`: a FastAPI app with a job beside its route."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from carillon import Jobs
from carillon.integrations.starlette import lifespan
from fastapi import FastAPI, Request
from pydantic import BaseModel

HOST = "127.0.0.1"
PORT = int(os.environ.get("FASTAPI_SERVICE_PORT", "8083"))

jobs = Jobs("fastapi-service", base_url=f"http://{HOST}:{PORT}")


class Note(BaseModel):
    text: str


class Limits(BaseModel):
    """The job's config."""

    words: int = 10


class RunRequest(BaseModel):
    """What Carillon's worker posts, as far as this service needs it."""

    run: str
    attempt: int
    payload: Limits


@asynccontextmanager
async def memory(app: FastAPI) -> AsyncIterator[None]:
    """The app's own lifespan: what it remembers while it runs."""
    app.state.notes = []
    app.state.top = {}
    yield


app = FastAPI(lifespan=lifespan(jobs, memory))


@app.post("/notes", status_code=201)
async def add_note(note: Note, request: Request) -> None:
    request.app.state.notes.append(note.text)


@app.get("/top-words")
async def top_words(request: Request) -> dict[str, int]:
    top: dict[str, int] = request.app.state.top
    return top


@app.post(jobs.endpoint("count-words", "/api/jobs/count-words", cron="@hourly", config={"words": 10}))
async def count_words(run: RunRequest, request: Request) -> dict[str, Any]:
    """Counting twice comes to the same, so a second attempt needs no care."""
    notes: list[str] = request.app.state.notes
    counted = Counter(word for note in notes for word in re.findall(r"\w+", note.lower()))
    request.app.state.top = dict(counted.most_common(run.payload.words))
    return {"items": {"processed": len(notes), "succeeded": len(notes)}, "metrics": {"words": counted.total()}}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    uvicorn.run(app, host=HOST, port=PORT, log_config=None)
