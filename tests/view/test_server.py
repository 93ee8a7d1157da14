"""The server: its headers, who may read, what a form needs, and the stream of events."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from heredity.core.errors import UsageError
from heredity.view.app import ViewSettings, app, events
from heredity.view.site import Site
from tests.support.errors import raises
from tests.view.conftest import opened, written


def client(site: Site, settings: ViewSettings | None = None, host: str = "127.0.0.1:8010") -> TestClient:
    return TestClient(app(site, settings), base_url=f"http://{host}", follow_redirects=False)


def test_every_answer_forbids_what_is_not_the_pages_own(finished: Site) -> None:
    study = f"/s/{finished.place.studies()[0].key}"
    asked = client(finished)
    for path, status in (
        ("/", 200),
        (study, 200),
        ("/static/view.js", 200),
        ("/nothing", 404),
        (f"{study}/t/x", 400),
    ):
        answer = asked.get(path)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == status
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert "script" not in asked.get(study).text.replace('<script src="/static/view.js', "").replace(
        "</script>", ""
    )


def test_a_page_elsewhere_cannot_read_it_by_a_name_of_its_own(finished: Site) -> None:
    assert client(finished, host="evil.example:8010").get("/").status_code == 400
    assert client(finished, host="www.localhost:8010").get("/").status_code == 400
    assert client(finished, host="localhost:9").get("/").status_code == 200


def test_where_any_machine_could_connect_every_request_needs_the_token(finished: Site) -> None:
    with raises(UsageError, "bad-usage"):
        app(finished, ViewSettings(is_local=False))
    settings = ViewSettings("kestrel-42", is_local=False)
    asked = client(finished, settings, "0.0.0.0:8010")
    for path in ("/", "/events", "/static/view.js", "/nothing", "/?token=wrong"):
        assert asked.get(path).status_code == 401
    let_in = asked.get("/?token=kestrel-42&a=b")
    assert let_in.status_code == 303 and let_in.headers["location"] == "/?a=b"
    assert "HttpOnly" in let_in.headers["set-cookie"] and "SameSite=strict" in let_in.headers["set-cookie"]
    assert asked.get("/").status_code == 200  # by the cookie
    bare = client(finished, settings, "0.0.0.0:8010")
    assert bare.get("/", headers={"authorization": "Bearer kestrel-42"}).status_code == 200


def test_a_form_of_another_page_is_not_taken(finished: Site) -> None:
    asked = client(finished)
    assert asked.post("/").status_code == 403
    assert asked.post("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert asked.post("/", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert asked.post("/", headers={"origin": "http://127.0.0.1:8010"}).status_code == 405


def test_an_event_comes_when_rows_do_and_only_then(tmp_path: Path) -> None:
    place = written(tmp_path)
    path = tmp_path / "runs" / "small" / "responses.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:5]))
    study = opened(place)
    marks = {study.key: study.mark(), "": place.mark()}

    async def watch(key: str, n_looks: int) -> list[str]:
        looks = iter([False] * n_looks)
        stream = events(place, key, marks[key], poll=0.001, is_closing=lambda: next(looks, True))
        return [each async for each in stream]

    for key in marks:
        assert asyncio.run(watch(key, 9)) == ["retry: 2000\n\n"]
    with path.open("ab") as file:
        file.write(b"".join(rows[5:]))
    for key in marks:
        assert asyncio.run(watch(key, 9)) == ["retry: 2000\n\n", "event: rows\ndata: 1\n\n"]


def test_two_readers_see_a_study_while_it_runs(tmp_path: Path) -> None:
    place = written(tmp_path)
    path = tmp_path / "runs" / "small" / "responses.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"")
    site = Site(place)
    one, two = client(site), client(Site(place))
    address = f"/s/{place.studies()[0].key}"
    for n in (0, 7, 24):
        path.write_bytes(b"".join(rows[:n]))
        for reader in (one, two):
            assert f"{n} of 24 trials answered" in reader.get(address).text


def test_a_report_is_served_without_any_right_to_run(tmp_path: Path) -> None:
    place = written(tmp_path)
    folder, address = tmp_path / "runs" / "small", f"/s/{place.studies()[0].key}/report.html"
    asked = client(Site(place))
    assert asked.get(address).status_code == 404
    (folder / "report.html").write_text("<script>alert(1)</script>")
    answer = asked.get(address)
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and answer.text == "<script>alert(1)</script>"
    assert policy.startswith("sandbox; default-src 'none';") and "script-src" not in policy
    assert asked.get("/s/nothing/report.html").status_code == 404
    (folder / "report.html").rename(tmp_path / "elsewhere")
    (folder / "report.html").symlink_to(tmp_path / "elsewhere")
    assert asked.get(address).status_code == 404
