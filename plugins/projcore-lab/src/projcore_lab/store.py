"""The file of finished runs, from which an interrupted comparison can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projcore.errors import ArgumentError
from projcore_lab.runs import Check, Run

Key = Mapping[str, Any]  # all that a run depends on, as plain values


class Store:
    """Runs, keyed by everything that they depend on; each is written as soon as it is finished.

    The file has a line of JSON for each run, after one for the versions that made them.

    Args:
        file: The file, created if it does not exist.
        versions: Of all that may change a result.

    Raises:
        ArgumentError: If the file was made with other versions, or cannot be read or written.
    """

    def __init__(self, file: Path, versions: Mapping[str, str]) -> None:
        self.file = file
        self._runs: dict[str, Run] = {}
        try:
            lines = _whole_lines(file)
            if not lines:
                self._append({"versions": versions})
        except OSError as error:
            raise ArgumentError(
                f"{file}, which stores the runs, cannot be used: {error}. Name another folder with "
                "--output."
            ) from error
        for number, line in enumerate(lines, start=1):
            try:
                data = json.loads(line)
                if number == 1:
                    found = data["versions"]
                else:
                    self._runs[_text(data["key"])] = _run(data["run"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ArgumentError(
                    f"Line {number} of {file} is not a run: {error!r}. Only projcore compare "
                    "writes this file. Remove that line, or name another --output."
                ) from error
        if lines and found != versions:
            changed = sorted(
                f"{name} {found.get(name, 'missing')}, now {versions.get(name, 'missing')}"
                for name in {*found, *versions}
                if found.get(name) != versions.get(name)
            )
            raise ArgumentError(
                f"The runs in {file} were made with other versions: {'; '.join(changed)}. All runs "
                "of a comparison need the same versions. Name another folder with --output."
            )

    def find(self, key: Key) -> Run | None:
        """Returns the run with that key, if there is one."""
        return self._runs.get(_text(key))

    def add(self, key: Key, run: Run) -> None:
        """Keeps a run."""
        self._runs[_text(key)] = run
        self._append({"key": key, "run": asdict(run)})

    def _append(self, data: Mapping[str, Any]) -> None:
        line = json.dumps(data, allow_nan=False) + "\n"
        with self.file.open("ab", buffering=0) as stream:  # written at once or not at all
            stream.write(line.encode("utf-8"))


def _whole_lines(file: Path) -> list[str]:
    """Returns the complete lines of a file, without one that was cut off when a process ended."""
    if not file.exists():
        return []
    text = file.read_bytes()
    end = text.rfind(b"\n") + 1
    if end < len(text):
        os.truncate(file, end)
    return text[:end].decode("utf-8").splitlines()


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True)


def _run(data: dict[str, Any]) -> Run:
    run = Run(**data)
    run.checks = [Check(**check) for check in data["checks"]]
    run.path = [(x, y) for x, y in data["path"]]
    return run
