"""Conversations: which tokens are learnt."""

import json
import logging

import pytest

from petkit.data.chat import Chat, check_tokenizer, cut_chats, encode_chat, parse_chat, render_chat
from petkit.errors import InputError

TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi \U0001f916"},
    {"role": "assistant", "content": "Hello \U0001f916!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "\nBye. "},
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %} "
    "{{ message['content'] }}{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if loop.last %}<think>{% endif %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + INSTRUCT
)


def learnt(example, tokenizer):
    """The learnt tokens, joined where they are neighbours."""
    parts, part = [], []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (-100, token)
        if label == -100 and part:
            parts.append(tokenizer.decode(part))
            part = []
        elif label != -100:
            part.append(token)
    return [*parts, tokenizer.decode(part)] if part else parts


def test_every_assistant_turn_is_learnt_with_its_end(tokenizer):
    example = encode_chat(Chat(TALK), tokenizer)
    assert learnt(example, tokenizer) == ["Hello \U0001f916!<|im_end|>", "\nBye. <|im_end|>"]
    assert tokenizer.decode(example["input_ids"]) == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_templates_without_a_generation_prompt(tokenizer):
    tokenizer.chat_template = INSTRUCT
    assert learnt(encode_chat(Chat(TALK), tokenizer), tokenizer) == [" Hello \U0001f916!", " \nBye. "]


def test_templates_that_end_the_whole_text(tokenizer):
    tokenizer.chat_template = INSTRUCT + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    assert learnt(encode_chat(Chat(TALK), tokenizer), tokenizer) == [
        " Hello \U0001f916!",
        " \nBye. <|im_end|>",
    ]


def test_generation_marks_agree(tokenizer):
    """Where a template marks what is generated, the marks and the prefix difference must tell the same."""
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n{% else %}<|im_start|>"
        "{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    marked = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    example = encode_chat(Chat(TALK), tokenizer)
    assert example["input_ids"] == marked["input_ids"]
    assert [int(label != -100) for label in example["labels"]] == marked["assistant_masks"]


TOOLS = (
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},
)
CALLS = (
    {"role": "user", "content": "1 + 2"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": "1, 2"}}],
    },
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "3."},
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for call in message['tool_calls'] or [] %}<call>{{ call['function']['arguments'] }}</call>"
    "{% endfor %}{{ message['content'] or '' }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("given", [list(TOOLS), json.dumps(TOOLS)])
def test_tools_are_given_and_calls_are_learnt(tokenizer, given):
    tokenizer.chat_template = WITH_TOOLS
    chat = parse_chat({"messages": [*CALLS], "tools": given})
    assert chat == Chat(CALLS, TOOLS)
    example = encode_chat(chat, tokenizer)
    assert learnt(example, tokenizer) == ["<call>1, 2</call><|im_end|>", "3.<|im_end|>"]
    assert tokenizer.decode(example["input_ids"]) == (
        "<|im_start|>system\nadd<|im_end|>\n<|im_start|>user\n1 + 2<|im_end|>\n"
        "<|im_start|>assistant\n<call>1, 2</call><|im_end|>\n<|im_start|>tool\n3<|im_end|>\n"
        "<|im_start|>assistant\n3.<|im_end|>\n"
    )


def test_a_template_for_tools_is_chosen_by_name(tokenizer):
    tokenizer.chat_template = {"default": INSTRUCT, "tool_use": WITH_TOOLS}
    assert render_chat(Chat(TALK[:2], TOOLS), tokenizer).startswith("<|im_start|>system\nadd<|im_end|>")
    assert "[INST]" in render_chat(Chat(TALK[:2]), tokenizer)


@pytest.mark.parametrize("given", [None, [], "[]", "null"])
def test_no_tools_are_no_tools(given):
    assert parse_chat({"messages": [*TALK], "tools": given}) == Chat(TALK)


def test_tools_that_the_template_would_drop_are_refused(tokenizer):
    with pytest.raises(ValueError, match="chat template has no place for tools: remove the key tools"):
        encode_chat(Chat(TALK, TOOLS), tokenizer)


def test_templates_that_fail_on_a_row(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + 1 }}{% endfor %}"
    with pytest.raises(ValueError, match="the chat template refuses it: can only concatenate str"):
        encode_chat(Chat(TALK), tokenizer)


def test_templates_that_change_earlier_turns_are_refused(tokenizer):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(ValueError, match="changes earlier turns when later ones follow"):
        encode_chat(Chat(TALK), tokenizer)


def test_templates_that_refuse_a_conversation(tokenizer):
    tokenizer.chat_template = STRICT
    with pytest.raises(ValueError, match="the chat template refuses it: no system role"):
        encode_chat(Chat(TALK), tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "messages is missing: got the keys none"),
        ({"prompt": "a", "completion": "b"}, "messages is missing: got the keys prompt, completion"),
        ({"messages": []}, "messages must be a list that is not empty, got an empty one"),
        ({"messages": ["hi"]}, r"messages\[0\] must have the strings role and content"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": None, "tool_calls": []}]}, r"messages\[0\]"),
        ({"messages": [*TALK], "tools": {"name": "f"}}, "tools must be a list of JSON schemas, or its JSON"),
        ({"messages": [*TALK], "tools": ["f"]}, r"tools must be .*, got \['f'\]"),
        ({"messages": [*TALK], "tools": 3}, "tools must be .*, got 3"),
        (
            {"messages": [*TALK], "tools": "[f"},
            "tools must be .*, got a string that is none: Expecting value",
        ),
        ({"messages": [*TALK], "tools": '"f"'}, "tools must be .*, got 'f'"),
        ({"messages": [*TALK[:2]]}, "must hold one of role assistant .* got the roles system, user"),
        ({"messages": [*TALK[2:]]}, "must begin with a system or user message"),
    ],
)
def test_faulty_rows(row, message):
    with pytest.raises(ValueError, match=message):
        parse_chat(row)


def test_cutting_keeps_what_can_be_learnt(caplog):
    examples = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]},
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]},
        {"input_ids": [1, 2], "labels": [-100, 2]},
    ]
    with caplog.at_level(logging.WARNING):
        kept = cut_chats(examples, 3)
    assert kept == [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, examples[2]]
    assert "2 of 3 conversations are longer than 3 tokens" in caplog.text
    assert "were cut; 1 of them are left out" in caplog.text


def test_tokenizers_that_cannot_serve(tokenizer):
    with pytest.raises(InputError, match="has a chat template"):
        check_tokenizer(None)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has a chat template"):
        check_tokenizer(tokenizer)
