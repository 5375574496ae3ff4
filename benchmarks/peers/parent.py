"""The parent's end of a worker."""

import json
import subprocess
from pathlib import Path
from typing import Any


class WorkerError(RuntimeError):
    """A library could not do what it was asked for."""


class Worker:
    """A library with one network in a process of its own; idle unless it is called."""

    def __init__(self, python: str, library: str, problem: Path, log: Path) -> None:
        self.library = library
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(Path(python).absolute()), "-m", "peers.worker", library, str(problem)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __call__(self, command: str, **arguments: Any) -> Any:
        try:
            self._process.stdin.write(
                json.dumps({"command": command, "arguments": arguments}) + "\n"
            )
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.library} ended: see {self._log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
