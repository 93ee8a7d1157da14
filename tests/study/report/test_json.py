from pathlib import Path

import msgspec

from heredity.study.report import json
from heredity.study.storage import read_estimates


def test_every_rate_and_every_pair_is_one_flat_row(study: Path, tmp_path: Path) -> None:
    document = msgspec.json.decode(json.write(study, tmp_path / "flat.json").read_bytes())
    estimates = read_estimates(study)
    assert len(document["rates"]) == len(estimates.rates)
    assert len(document["pairs"]) == len(estimates.pairs) + len(estimates.technique_pairs)
    for table in ("rates", "pairs"):
        assert len({tuple(row) for row in document[table]}) == 1  # the same columns in every row
        assert not [v for row in document[table] for v in row.values() if isinstance(v, (dict, list))]


def test_the_numbers_are_those_of_the_study(study: Path, tmp_path: Path) -> None:
    rows = msgspec.json.decode(json.write(study, tmp_path / "flat.json").read_bytes())["rates"]
    for row, rate in zip(rows, read_estimates(study).rates, strict=True):
        assert (row["n_broke"], row["value"], row["low"], row["method"]) == (
            rate.n_broke, rate.estimate.value, rate.estimate.low, rate.estimate.method,
        )  # fmt: skip


def test_the_same_study_gives_the_same_bytes(study: Path, tmp_path: Path) -> None:
    one, two = (json.write(study, tmp_path / name).read_bytes() for name in ("a.json", "b.json"))
    assert one == two
