"""What a pack has finished, so that it can be continued: `NAME.manifest.jsonl` beside the shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.data.sample import SampleError
from distill.data.tarwriter import Written
from distill.errors import UserError

SUFFIX = ".manifest.jsonl"


def shard_name(name: str, number: int) -> str:
    return f"{name}-{number:06d}.tar"


class Manifest:
    """The list of finished shards: a first line that says what is packed, then a line for each shard."""

    def __init__(self, out: Path, name: str, digest: str):
        self.path = out / (name + SUFFIX)
        self.out, self.name, self.digest = out, name, digest  # digest: identifies what is packed, and how

    def open(self) -> dict[str, Written]:
        """The finished shards that hold all of their samples, by file name; begins a manifest if there is none.

        Raises UserError for another pack's.
        """
        if not self.path.exists():
            there = sorted(path.name for path in self.out.glob(f"{self.name}-*.tar"))
            if there:
                raise self._foreign(there[0])
            self._append({"digest": self.digest})
            return {}
        lines = list(self._lines())
        if not lines or lines[0].get("digest") != self.digest:
            raise self._foreign(self.path.name)
        done: dict[str, Written] = {}
        for line in lines[1:]:
            file = self.out / line["file"]
            if line["problems"]:
                done.pop(line["file"], None)  # its images may have been repaired: it is packed again
            elif file.is_file() and file.stat().st_size == line["bytes"]:
                line["problems"] = [SampleError(*problem) for problem in line["problems"]]
                done[line["file"]] = Written(**line)
        return done

    def add(self, written: Written) -> None:
        problems = [(p.shard, p.key, p.reason) for p in written.problems]
        self._append({**asdict(written), "problems": problems})

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a line cut off when the process was killed

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            if stream.tell() and not self.path.read_bytes().endswith(b"\n"):
                stream.write("\n")
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _foreign(self, found: str) -> UserError:
        return UserError(
            f"{self.out} already holds {found}, made from other input or options. Choose another OUT or --name, "
            f"or delete {self.name}-*.tar and {self.path.name}."
        )
