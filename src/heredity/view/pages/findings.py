"""The findings of a study: the sections of its report, from estimates.json."""

from __future__ import annotations

from heredity.core.errors import HeredityError
from heredity.core.sections import Badge, TrialLink
from heredity.study.findings.protocols import RecordedStudy
from heredity.study.sections import study_sections
from heredity.study.wording import BADGES, cell_words
from heredity.view.site import Asked, Site

PATH, MENU, TAB = "/s/{study}/findings", "", "5 Findings"
IS_EXPORTED = True


def render(site: Site, asked: Asked) -> str:
    """The sections; a sentence if the study has no estimates yet. Raises an error of the estimates."""
    study = site.open(asked)
    estimates = study.estimates()
    if isinstance(estimates, HeredityError):
        raise estimates
    recorded = estimates and RecordedStudy(study.plan, estimates)
    return site.html(
        "findings.html.jinja", asked, study,
        sections=study_sections(recorded, study.folder) if recorded else [],
        has_estimates=estimates is not None, cell_words=cell_words, badges=BADGES,
        is_trial=lambda cell: isinstance(cell, TrialLink), is_badge=lambda cell: isinstance(cell, Badge),
    )  # fmt: skip
