"""Templates by name, as they render a conversation."""

import jinja2
import pytest

from petkit.errors import ConfigError
from petkit.merging.chat_templates import named_template

MESSAGES = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes?"}]


def rendered(name, prompt):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(named_template(name))
    return template.render(messages=MESSAGES, add_generation_prompt=prompt, bos_token="<s>")


def test_chatml():
    whole = "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
    assert rendered("chatml", False) == whole
    assert rendered("chatml", True) == whole + "<|im_start|>assistant\n"


def test_llama3():
    def turn(role, text):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"

    whole = f"<s>{turn('user', 'Hi')}<|eot_id|>{turn('assistant', 'Yes?')}<|eot_id|>"
    assert rendered("llama3", False) == whole
    assert rendered("llama3", True) == whole + turn("assistant", "")


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"auto, chatml, llama3 or .*, got 'chatlm'; did you mean chatml"):
        named_template("chatlm")
    with pytest.raises(ConfigError, match="write the template's text instead"):
        named_template("mine")
