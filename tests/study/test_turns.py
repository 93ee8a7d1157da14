"""The turns of a prompt: by the tokens of chat templates, and by nothing else."""

from __future__ import annotations

import pytest

from heredity.core.records import Exchange
from heredity.study.turns import new_parts, turns

CHATML = "hi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (CHATML, [("user", "hi")]),
        ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n" + CHATML,
         [("system", "Be kind."), ("user", "hi")]),
        ("<|im_end|>\n<|im_start|>tool\n12<|im_end|>\n<|im_start|>assistant\n", [("tool", "12")]),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n", [("user", "hi")]),
        ("<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n"
         "<start_of_turn>model\n", [("user", "hi"), ("assistant", "yes")]),
        ("<s>[INST] hi [/INST] yes</s>[INST] more [/INST]",
         [("user", "hi"), ("assistant", "yes"), ("user", "more")]),
        ("<|system|>\nBe kind.\n<|user|>\nhi\n<|assistant|>\n", [("system", "Be kind."), ("user", "hi")]),
        ("hi\nUser: Good.\nAssistant: Yes <b>", [("user", "hi\nUser: Good.\nAssistant: Yes <b>")]),
        ("", []),
    ],
)  # fmt: skip
def test_the_tokens_of_a_template_divide_a_prompt(prompt: str, wanted: list[tuple[str, str]]) -> None:
    assert turns(prompt) == wanted


def test_each_request_has_only_what_is_new_in_it() -> None:
    first = Exchange("", CHATML + "Sure", "Sure", ", here", (), "end", 1, 1)
    after = Exchange("", CHATML + "Sure, here<|im_end|>\n<|im_start|>user\nmore", "", "no", (), "end", 1, 1)
    other = Exchange("another", CHATML, "", "no", (), "end", 1, 1)
    parts = list(new_parts([first, after, other]))
    assert parts == [CHATML, "<|im_end|>\n<|im_start|>user\nmore", CHATML]
    assert [turns(part) for part in parts] == [[("user", "hi")], [("user", "more")], [("user", "hi")]]
