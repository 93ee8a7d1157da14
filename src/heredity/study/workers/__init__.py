"""Several workers that ask the trials of one study: processes of this machine, or actors of a Ray cluster.

A worker holds one loaded model and answers leases: groups of trials of that model. The driver is the process
that the user started. It leases trials, and it alone writes into the study's folder.

Promises: rows are those of one process, in another order. Every trial gets one row. A killed worker or driver
costs the answers that were in flight. A worker gets no files from the driver and sends none, only messages.
Leaves to others: which trials are still to ask (study/resume.py), conversations (study/scheduler.py).
"""
