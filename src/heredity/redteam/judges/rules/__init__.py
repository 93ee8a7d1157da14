"""The rules judge: refusal, compliance, incoherence, from signs in the text."""
