import pytest

from tests.serving.text_models import save_llama


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model with a chat template; to be left as it is."""
    return save_llama(tmp_path_factory.mktemp("chat") / "model")
