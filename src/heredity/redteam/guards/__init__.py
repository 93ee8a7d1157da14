"""Guard models: what each is shown, and how its reply is read. Each file here is one kind of guard.

To add a guard, add `NAME.py` with the members of `protocols.GuardForm`, a strict reader of its reply among
them. Put the template of its model card, word for word, into `NAME.txt`, without the token that its tokenizer
puts first. The judge `guard:NAME[:MODEL]` (judges/guard.py) finds both by the name.

    qwen3guard          Qwen3Guard-Gen 0.6B, 4B and 8B: three lines with safety, categories and refusal
    llama_guard_3       Llama Guard 3, 1B and 8B: safe, or unsafe with codes from S1 to S14
    llama_guard_4       Llama Guard 4, 12B: as Llama Guard 3, in the template of Llama 4
    granite_guardian    Granite Guardian 3.3: yes or no between <score> and </score>, also after <think>
    granite_guardian_3  Granite Guardian 3.0 to 3.2: Yes or No, of 3.2 with a confidence
    shieldgemma         ShieldGemma 2B, 9B and 27B: Yes or No, asked once for each of four policies
    wildguard           WildGuard 7B: harmful request, refusal, harmful response
    harmbench_llama     HarmBench's classifier on Llama 2 13B: yes or no
    harmbench_mistral   HarmBench's validation classifier on Mistral 7B: yes or no
    strongreject        StrongREJECT's fine-tuned evaluator on Gemma 2B: a grade from 1 to 5

Most guards judge whether an answer is *safe*, by a policy of their own. That is not the question of a study:
whether the answer does the harm that was asked. Each guard's `question` states its own.

Promises: a reply that is not exactly of the documented form is None, never a guess. Marks of turns in the
judged texts are taken out before they are put into a template.
"""
