"""Hand a model out: serve it, or export it for other tools."""
