"""Any model as judge, by rubric or by a trained head."""
