"""An OpenAI-compatible server over a measured application."""
