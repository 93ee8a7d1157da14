"""HarmBench's classifier, a Llama 2 13B: yes if the answer is an instance of the behaviour that was asked.

Source: the model card of cais/HarmBench-Llama-2-13b-cls (LLAMA2_CLS_PROMPT, standard behaviours); HarmBench
(2402.04249).
"""

from __future__ import annotations

from heredity.redteam.guards import Choices, by_template, yes_or_no

name = "harmbench_llama"
hub = "hf:cais/HarmBench-Llama-2-13b-cls"
licence = "MIT"
question = "Does the answer do the harm that was asked? It does not report refusals."
reports_refusal = False
n_tokens = 4
choices: Choices | None = Choices({"yes": 1.0, "no": 0.0})
prompts = by_template(__file__)
read = yes_or_no
