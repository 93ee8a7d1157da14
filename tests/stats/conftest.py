"""No deadline a drawn example: this machine may be busy, and no claim here is about time."""

from hypothesis import settings

settings.register_profile("without-a-clock", deadline=None)
settings.load_profile("without-a-clock")
