"""An attack that changes every text of the user."""

import heredity as h


class Shout:
    """Asks in capital letters."""

    cost = "adds none"

    def rewrite(self, text: str, context: h.AttackContext) -> str:
        return text.upper()
