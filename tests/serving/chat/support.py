"""A real server of a tiny random model, in a thread of the test."""

from __future__ import annotations

import threading
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
