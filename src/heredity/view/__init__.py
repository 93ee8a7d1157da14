"""The web pages of studies: a running study, its conversations, two models side by side, labels."""
