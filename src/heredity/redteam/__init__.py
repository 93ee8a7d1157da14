"""What is asked, and how an answer is scored: probes, attacks, checks, judges."""
