"""The kind "language": a reply in a language that nobody asked for."""
