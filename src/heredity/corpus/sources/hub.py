"""A dataset of the Hugging Face hub, streamed: the Parquet files of one commit.

Every dataset of the hub has Parquet files, its own or converted ones (branch refs/convert/parquet). A
revision must be a commit, because the text of a branch changes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from heredity.core.errors import BadArgument, Unavailable, UsageError, first_line
from heredity.corpus.sources import CorpusSource, Input, Job, SkippedDocument
from heredity.corpus.sources.parquet import groups_of, opened, texts


class HubSource(CorpusSource, frozen=True, kw_only=True):
    """path: ORG/NAME. revision: the commit, 40 digits. files: a pattern over its Parquet files."""

    revision: str
    files: str = "*.parquet"
    text: str = "text"

    def check(self) -> None:
        super().check()
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise BadArgument(
                "revision must be a commit of 40 digits, because the text of a branch changes", key="revision"
            )

    def jobs(self, root: Path) -> list[Job]:  # noqa: ARG002
        jobs = []
        for name in self._names():
            path = f"datasets/{self.path}@{self.revision}/{name}"
            jobs += list(groups_of(path, name, opened(path, self._open(path)), self.text))
        return jobs

    def left_out(self, root: Path) -> Counter[str]:  # noqa: ARG002
        return Counter()

    def read(self, job: Job) -> Iterator[bytes | SkippedDocument]:
        ((path, _),) = job.files
        yield from texts(path, opened(path, self._open(path)), self.text, range(job.low, job.high))

    def inputs(self, job: Job) -> list[Input]:
        """Size and hash as the hub has them: SHA-256 of a large file, git's hash of others."""
        from huggingface_hub import HfApi

        ((_, name),) = job.files
        if job.low:
            return []
        (file,) = HfApi().get_paths_info(self.path, [name], revision=self.revision, repo_type="dataset")
        return [Input(name, file.size, file.lfs.sha256 if file.lfs else file.blob_id)]

    def _names(self) -> list[str]:
        from huggingface_hub import HfApi

        try:
            names = HfApi().list_repo_files(self.path, repo_type="dataset", revision=self.revision)
        except Exception as error:  # its errors share no base: network, gated, missing, offline, bad name
            raise Unavailable(
                f"source '{self.name}': the hub did not list {self.path}: {first_line(error)}"
            ) from error
        files = sorted(n for n in names if n.endswith(".parquet") and fnmatchcase(n, self.files))
        if not files:
            raise UsageError(
                f"source '{self.name}': {self.path} has no Parquet file like '{self.files}'.", table=self.name
            )
        return files

    def _open(self, path: str) -> IO[bytes]:
        from huggingface_hub import HfFileSystem

        file: IO[bytes] = HfFileSystem().open(path)
        return file


SOURCE = HubSource
