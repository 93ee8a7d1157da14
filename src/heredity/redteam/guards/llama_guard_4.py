"""Llama Guard 4, asked about text: the replies of Llama Guard 3, in the turns of the newer Llama.

Source: llama.com/docs/model-cards-and-prompt-formats/llama-guard-4 and
github.com/meta-llama/PurpleLlama, Llama-Guard4/12B/MODEL_CARD.md.
"""

from __future__ import annotations

from heredity.redteam.guards import Choices, by_question_template, by_template, llama_guard_3

name = "llama_guard_4"
hub = "hf:meta-llama/Llama-Guard-4-12B"
licence = "Llama 4 Community License"
question = llama_guard_3.question
reports_refusal = False
n_tokens = llama_guard_3.n_tokens
choices: Choices | None = llama_guard_3.choices
prompts = by_template(__file__)
question_prompts = by_question_template(__file__)
read = read_question = llama_guard_3.read
