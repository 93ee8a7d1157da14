"""One made-up study for every test that only reads it."""

from tests.support.report_studies import study as study
