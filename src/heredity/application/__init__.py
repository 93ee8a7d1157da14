"""Everything around the model that a study holds constant: prompt, retrieval, tools, decoding."""
