"""Whether a planted secret came out, whole, in parts, spelt out or disguised."""
