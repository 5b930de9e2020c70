"""What the plugin and the fixtures share: settings, the one session, and errors as outcomes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from qsae_bench.app import replay_timings as kept_timings
from qsae_bench.errors import CannotRun, Invalid, QsaeError, did_you_mean, plain
from qsae_bench.gate.exit_status import NOT_MEASURED, STATUS
from qsae_bench.gate.thresholds import Thresholds, load_thresholds
from qsae_bench.gate.verdict import GateFailure, Gates
from qsae_bench.measure.store import parse_location
from qsae_bench.metrics import GROUPS, METRICS
from qsae_bench.progress import SILENT, ProgressOutput
from qsae_bench.redaction import masked_command
from qsae_bench.registry.entries import Registry
from qsae_bench.registry.selection import registry_of, selected, selection_of
from qsae_bench.registry.specs import Cell, Selection
from qsae_bench.results.history.url import history_url
from qsae_bench.results.junit import properties_of
from qsae_bench.run.timed_works import WORKS, asked_of
from qsae_bench.run.workers.options import WorkerOptions
from qsae_bench.run.workers.tasks import Task

if TYPE_CHECKING:
    from qsae_bench.run.session import Session


@dataclass(frozen=True)
class Settings:
    """The command line, checked and read into specs."""

    registry: Registry
    cells: tuple[Cell, ...]
    thresholds: Thresholds
    qsae_dir: Path
    strict: bool
    selection: Selection
    device: str
    splice: bool
    noise_floor: bool
    reference_store: str | None
    """a folder or a URL, '' for the one in ``qsae_dir``, None for none beyond the run"""
    reference_store_bytes: int
    history: str
    """URL, '' for none"""
    executor: WorkerOptions

    @classmethod
    def from_pytest_config(cls, config: pytest.Config) -> Settings:
        option = config.getoption
        registry = registry_of(option)
        selection = selection_of(option, option("keyword"))
        qsae_dir = Path(option("--qsae-dir") or config.rootpath / ".qsae")
        thresholds = Path(option("--thresholds") or config.rootpath / "thresholds.toml")
        return cls(
            registry=registry,
            cells=selected(registry, selection),
            thresholds=load_thresholds(thresholds, registry.models, registry.quantizations),
            qsae_dir=qsae_dir,
            strict=bool(config.getini("strict")),  # pytest's own --strict
            selection=selection,
            device=option("--device"),
            splice=option("--splice"),
            noise_floor=option("--noise-floor"),
            reference_store=parse_location(option("--reference-store"), option("--no-reference-store")),
            reference_store_bytes=int(option("--reference-store-gib") * 2**30),
            history=history_url(option("--history"), qsae_dir),
            executor=WorkerOptions.of(option),
        )


SETTINGS = pytest.StashKey[Settings]()
SESSION = pytest.StashKey["Session"]()
NO_SESSION = pytest.StashKey[QsaeError]()
"""why there is none"""
TASKS = pytest.StashKey["Callable[[], Sequence[Task]]"]()
"""gives what workers are asked for: a task for each selected cell that is not finished"""
OPENED = pytest.StashKey["Callable[[Session], None]"]()
"""is called with the session when it is made"""
GATES = pytest.StashKey[Mapping[Cell, tuple[Gates, ...]]]()
"""what the selected tests gate of each cell"""

GATES_MARKER = (
    "gates(*metrics, also=()): metrics that the test holds against their thresholds, at its layer; "
    "`also` names groups of metrics that are held too where a threshold bounds them"
)


def gates_of(item: pytest.Item) -> Gates | None:
    """What a test's marker says that it gates.

    Raises:
        pytest.UsageError: an unknown metric, group or argument.
    """
    marker = item.get_closest_marker("gates")
    if marker is None:
        return None
    also = tuple(marker.kwargs.get("also", ()))
    for names, known, what in ((marker.args, METRICS, "metric"), (also, GROUPS, "group of metrics")):
        for name in names:
            if name not in known:
                raise pytest.UsageError(
                    f"{item.nodeid}: gates: unknown {what} {name!r}{did_you_mean(name, known)}"
                )
    if unknown := set(marker.kwargs) - {"also"}:
        raise pytest.UsageError(f"{item.nodeid}: gates: unknown argument {min(unknown)!r}")
    layer = item.callspec.params.get("layer") if hasattr(item, "callspec") else None
    return Gates(marker.args, layer, also)


TIMES_MARKER = "times(work): the work of qsae_bench.run.timed_works that the test asks for"


def work_of(item: pytest.Item) -> str | None:
    """What a test's marker says that it times.

    Raises:
        pytest.UsageError: not the name of a work.
    """
    marker = item.get_closest_marker("times")
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.args[0] not in WORKS:
        raise pytest.UsageError(f"{item.nodeid}: times: names one of {', '.join(WORKS)}")
    return str(marker.args[0])


def cell_of(item: pytest.Item) -> Cell | None:
    """The cell a test is about, or None."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("cell") if callspec else None


def command_of(config: pytest.Config) -> str:
    """As it was typed, without the password of a history's URL."""
    return masked_command(["pytest", *config.invocation_params.args])


def task_of(cell: Cell, items: Iterable[pytest.Item]) -> Task:
    """What a worker is asked for, that these tests of a cell may be run here."""
    items = [item for item in items if item.get_closest_marker("skip") is None]
    works = asked_of(cell, [work for item in items if (work := work_of(item)) is not None])
    measures = "evaluation" in works or any("measured" in fixtures_of(item) for item in items)
    return Task(cell, works, measures)


def fixtures_of(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def open_session(config: pytest.Config) -> Session:
    """The invocation's one session, made when the first test asks for it."""
    if NO_SESSION in config.stash:
        raise config.stash[NO_SESSION]
    if SESSION not in config.stash:
        try:
            config.stash[SESSION] = _session(config, config.stash[SETTINGS])
        except QsaeError as error:
            config.stash[NO_SESSION] = error.bare()
            raise
        config.stash.get(OPENED, lambda session: None)(config.stash[SESSION])
    return config.stash[SESSION]


def _session(config: pytest.Config, settings: Settings) -> Session:
    from qsae_bench.run.session import SessionOptions

    options = SessionOptions(
        registry=settings.registry,
        thresholds=settings.thresholds,
        qsae_dir=settings.qsae_dir,
        command=command_of(config),
        selection=settings.selection,
        device=settings.device,
        splice=settings.splice,
        noise_floor=settings.noise_floor,
        reference_store=settings.reference_store,
        reference_store_bytes=settings.reference_store_bytes,
        strict=settings.strict,
        history=settings.history,
        gates=config.stash.get(GATES, {}),
        timing=kept_timings.is_timing(config),
        say=teller(config),
        progress=_outlet(config),
    )
    if settings.executor.is_here:
        from qsae_bench.run.local_session import LocalSession

        return LocalSession(options)
    from qsae_bench.run.worker_session import WorkerSession

    tasks = config.stash[TASKS]()
    engine = settings.executor.engine(options, config.getoption("isolate_timeout"))
    return WorkerSession(options, engine, tasks, settings.executor.shards)


@contextlib.contextmanager
def outcomes(node: pytest.Item | pytest.Collector) -> Iterator[None]:
    """Turn our errors into a test's outcome: a skip (an error under --strict) or a failure."""
    __tracebackhide__ = True
    word, prefix, details = NOT_MEASURED, "", ""
    try:
        yield
        return
    except CannotRun as error:
        said, prefix = str(error), "--strict: "
    except Invalid as error:
        said, word = str(error), "invalid"
    except QsaeError as error:
        said, details = str(error), error.details
    # outside the handlers: what is raised there would keep the frames, and so the tensors, alive
    if prefix and not node.config.stash[SETTINGS].strict:
        pytest.skip(plain(said))
    if isinstance(node, pytest.Item):  # a fixture of a wider scope has no report of its own
        node.user_properties.append((STATUS, word))
    told = "\n".join(map(plain, [f"{prefix}{said}", *details.split("\n")])).rstrip()
    raise pytest.fail.Exception(told, pytrace=False) from None


def fail_gates(item: pytest.Item, failures: Sequence[GateFailure]) -> NoReturn:
    """Fail the test with the message of each failing gate, and note them for JUnit and the exit status."""
    __tracebackhide__ = True
    item.user_properties += properties_of(failures)
    pytest.fail("\n".join(one.message for one in failures), pytrace=False)


@contextlib.contextmanager
def aloud(config: pytest.Config) -> Iterator[Any]:
    """pytest's reporter, or None, past the capture of the test that runs: what it writes is seen now."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
        yield reporter
        if reporter is not None:
            reporter.flush()


class RewrittenLine:
    """The one line of a terminal that rewrites itself, below what pytest has written."""

    def __init__(self, reporter: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._reporter = reporter
        self._stands = False

    def write(self, line: str) -> None:
        room = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
        with self._reporter() as reporter:
            if not self._stands:
                reporter.ensure_newline()
            self._stands = True
            reporter.rewrite(plain(line)[:room], erase=True)

    def clear(self) -> None:
        if self._stands:
            self._stands = False
            with self._reporter() as reporter:
                reporter.rewrite("", erase=True)
                reporter.write("\r")


LINE = pytest.StashKey[RewrittenLine]()


def line_of(config: pytest.Config) -> RewrittenLine:
    """The session's own, made when it is first asked for."""
    if LINE not in config.stash:
        config.stash[LINE] = RewrittenLine(lambda: aloud(config))
    return config.stash[LINE]


def teller(config: pytest.Config) -> Callable[[str], None]:
    """What writes a warning of ours to the terminal."""

    def say(line: str) -> None:
        line_of(config).clear()
        with aloud(config) as reporter:
            if reporter is not None:
                reporter.ensure_newline()
                reporter.write_line(f"qsae-bench: {plain(line)}", yellow=True)

    return say


REWRITE_SECONDS = 1.0
LOG_SECONDS = 30.0


def _outlet(config: pytest.Config) -> ProgressOutput:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return SILENT
    if reporter.isatty:
        line = line_of(config)
        return ProgressOutput(line.write, REWRITE_SECONDS, line.clear)
    return ProgressOutput(teller(config), LOG_SECONDS)
