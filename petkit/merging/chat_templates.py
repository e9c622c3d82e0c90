"""Chat templates that a merge's configuration may name instead of writing them out."""

from __future__ import annotations

from collections.abc import Mapping

from petkit.configuration.messages import nearest
from petkit.errors import ConfigError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TEMPLATES: Mapping[str, str] = {"chatml": CHATML, "llama3": LLAMA3}


def named_template(name: str) -> str:
    """The template of a name.

    Args:
        name: as `chat_template` of a merge has it.

    Returns:
        Its Jinja text. The tokenizer must know its marks as tokens, which is not checked.

    Raises:
        ConfigError: another name.
    """
    found = TEMPLATES.get(name)
    if found is None:
        near = nearest(name, TEMPLATES)
        meant = f"; did you mean {near}?" if near else ": write the template's text instead"
        known = ", ".join(("auto", *TEMPLATES))
        raise ConfigError(f"chat_template must be {known} or a Jinja template, got {name!r}{meant}")
    return found
