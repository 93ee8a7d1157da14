"""Retrieval: an index of a folder of documents, and the passages of it that match a question.

Promises: equal text gives equal passages in equal order. A file that cannot be read is named, left out and
counted. Importing this loads none of the libraries of the extra `retrieval`.
Leaves to others: how passages are put in front of a question (conversation.py).
"""
