"""A real server of a tiny random model, in a thread of the test."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import openai

from petkit.methods.edrm.writers import load_language_model
from petkit.serving.chat.app import ChatService
from petkit.serving.chat.server import ChatServer, bind, url_of
from petkit.serving.chat.sources import LocalSource


def local_source(folder, *, max_new_tokens=64, batch_size=8):
    loaded = load_language_model(str(folder))
    return LocalSource("tiny", loaded.model, loaded.tokenizer, max_new_tokens, batch_size)


@contextmanager
def running(source, name="tiny", **options):
    """Serve on a free port until the block ends."""
    ready, service = threading.Event(), ChatService(source, name, **options)
    held = bind("127.0.0.1", 0)
    server = ChatServer(service, ready.set, grace=1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]}, daemon=True)
    url = url_of(held, "127.0.0.1")
    thread.start()
    assert ready.wait(20)
    try:
        yield SimpleNamespace(url=url, service=service, server=server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def client(url, key="none", **options):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20, **options)


def ask(chat, text="the cat sat", **fields):
    fields = {"max_tokens": 12, **fields}
    return chat.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **fields)


def joined(stream):
    chunks = list(stream)
    deltas = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    return "".join(delta or "" for delta in deltas), chunks


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
