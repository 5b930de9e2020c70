"""vl-convert, asked for many drawings at once. It draws one at a time, so several processes share them.

Each is ``python -m qsae_bench.report.figures.renderer``, which reads JSON and writes JSON. This module
imports next to nothing of the package, so that they begin at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from qsae_bench.report.figures.svg import slim

PATIENCE_SECONDS = 120
"""with a process; what it has not drawn by then is drawn here"""

WORTH_A_PROCESS = 10
"""drawings: about as long as one process takes to begin"""


def render(specification: str, config: str) -> str:
    """SVG of a Vega-Lite specification, both JSON.

    Raises:
        ValueError: it can't be drawn.
    """
    import vl_convert

    return str(vl_convert.vegalite_to_svg(specification, config=json.loads(config), allowed_base_urls=[]))


class Renderer:
    """Slim drawings that begin when they are asked for, where there are enough of them for processes."""

    def __init__(self, specifications: Sequence[str], config: str, font: str) -> None:
        self._asked = list(specifications)
        self._config, self._font = config, font
        self._processes: list[tuple[subprocess.Popen[bytes], slice]] = []
        count = min(os.cpu_count() or 1, len(self._asked) // WORTH_A_PROCESS)
        if count > 1:
            try:
                for start in range(count):
                    self._begin(slice(start, None, count))
            except OSError:  # no processes to be had here
                self._end()

    def _begin(self, part: slice) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._processes.append((process, part))
        assert process.stdin is not None
        process.stdin.write(json.dumps([self._config, self._font, self._asked[part]]).encode())
        process.stdin.close()  # it begins
        process.stdin = None

    def _end(self) -> None:
        for process, _ in self._processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._processes = []

    def drawn(self) -> list[str]:
        """In the order in which they were asked for.

        Raises:
            ValueError: one can't be drawn.
        """
        found: list[str | None] = [None] * len(self._asked)
        try:
            for process, part in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
                    found[part] = _read(output, len(self._asked[part]))
        finally:
            self._end()
        # what no process has drawn, because there was none or it failed, is drawn here, and raises here
        return [
            slim(render(asked, self._config), self._font) if done is None else done
            for asked, done in zip(self._asked, found, strict=True)
        ]


def _read(output: bytes, count: int) -> list[Any]:
    try:
        done = json.loads(output)
    except ValueError:
        return [None] * count
    return done if isinstance(done, list) and len(done) == count else [None] * count


def main() -> None:
    """Read ``[config, font, [specification, …]]``; write the drawings, null where one failed. All JSON."""
    config, font, asked = json.load(sys.stdin.buffer)
    done: list[str | None] = []
    for one in asked:
        try:
            done.append(slim(render(one, config), font))
        except ValueError:
            done.append(None)
    sys.stdout.buffer.write(json.dumps(done).encode())


if __name__ == "__main__":
    main()
