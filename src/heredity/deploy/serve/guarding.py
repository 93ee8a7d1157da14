"""The guards of a served application: the same as in a study, around each answer.

Promises: a blocked question never reaches the engine, and no text is sent before it was checked. The caller
does not get the findings, which would help to get around a guard; the operator gets their number.
Leaves to others: the checks (application/guard_chain.py), and sending (answers.py).
"""

from __future__ import annotations

from collections import Counter

from heredity.application.guard_chain import Admission, GuardChain
from heredity.application.guards import standing
from heredity.application.spec import Application
from heredity.core.records import Reply, Request


class ServedGuards:
    """The guards of an application. `n_found`: answers that each of them touched, by its label."""

    def __init__(self, chain: GuardChain) -> None:
        self._chain = chain
        self.n_found: Counter[str] = Counter()

    @classmethod
    def of(cls, application: Application | None) -> ServedGuards | None:
        """The guards of an application that are on; None without any."""
        specs = standing(application) if application is not None else ()
        return cls(GuardChain(specs, application)) if application is not None and specs else None

    def admit(self, request: Request) -> Admission:
        """The request for the engine, unless it is blocked."""
        return self._chain.admit(request)

    def refused(self, admission: Admission) -> Reply:
        """The reply to a blocked request."""
        return self._counted(admission.refused())

    def check(self, admission: Admission, reply: Reply) -> Reply:
        """The reply as the guards let it pass."""
        return self._counted(self._chain.check(admission, reply))

    def _counted(self, reply: Reply) -> Reply:
        self.n_found.update({note.partition(": ")[0] for note in reply.guarded or ()})
        return reply
