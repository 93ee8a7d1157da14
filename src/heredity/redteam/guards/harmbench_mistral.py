"""HarmBench's validation classifier, a Mistral 7B: yes if the answer is an instance of what was asked.

Source: the model card of cais/HarmBench-Mistral-7b-val-cls (MISTRAL_CLS_PROMPT, standard behaviours);
HarmBench (2402.04249).
"""

from __future__ import annotations

from heredity.redteam.guards import Choices, by_template, yes_or_no

name = "harmbench_mistral"
hub = "hf:cais/HarmBench-Mistral-7b-val-cls"
licence = "MIT"
question = "Does the answer do the harm that was asked? It does not report refusals."
reports_refusal = False
n_tokens = 4
choices: Choices | None = Choices({"yes": 1.0, "no": 0.0})
prompts = by_template(__file__)
read = yes_or_no
