"""Probes, the attacks that ask them, the checks that find a breach, and the judges that score an answer."""
