"""pytest's JUnit file, with a test case for each failing gate instead of one for the test that holds them.

A benchmark such as ``test_fvu`` gates several metrics and fails once. A dashboard should say which metric
it was, and tell one from another over the nights. So ``test_fvu[tiny_gemma3-nf4-layer3]`` that fails on
two gates becomes ``test_fvu[tiny_gemma3-nf4-layer3-fvu_drift]`` and the same with ``-mse]``, each with its
own message. What passes, and what fails otherwise, stays as pytest wrote it.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.gate.exit_status import STATUS
from qsae_bench.gate.verdict import GateFailure

GATE = "qsae_gate"
"""user property of a failing test's report: one of its failing gates, as JSON"""

METRIC = "qsae_metric"
"""property of a gate's test case, beside STATUS"""

ILLEGAL = re.compile("[^\t\n\r\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""what XML can't hold, and DEL"""


def properties_of(failures: Iterable[GateFailure]) -> list[tuple[str, str]]:
    """User properties for the report of a test that fails on these gates."""
    properties = []
    for one in failures:
        about = {"metric": one.metric, "status": one.status, "message": one.message}
        properties += [(STATUS, one.status), (GATE, json.dumps(about))]
    return properties


def statuses(properties: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    """The verdict of each failing gate, from a report's user properties."""
    return tuple(str(json.loads(value)["status"]) for key, value in properties if key == GATE)


def rewrite(path: Path) -> None:
    """Put a test case for each failing gate into the file, all or nothing.

    Raises:
        QsaeError: it can't be read or written.
    """
    try:
        put(path, per_gate(path.read_text(encoding="utf-8")).encode())
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise QsaeError(
            f"{path}: failing gates have no test case each: {getattr(error, 'strerror', '') or error}"
        ) from None


def per_gate(text: str) -> str:
    """The document with a test case for each failing gate, its counts right."""
    root = ElementTree.fromstring(text)
    for suite in root.iter("testsuite"):
        for case in suite.findall("testcase"):
            gates = _gates(case)
            failures = case.findall("failure")
            if not gates or not failures:
                continue
            at = list(suite).index(case)
            suite.remove(case)
            for offset, gate in enumerate(gates):
                suite.insert(at + offset, _case(case, gate, first=offset == 0))
            for count, before in (("tests", 1), ("failures", len(failures))):
                suite.set(count, str(int(suite.get(count, "0")) - before + len(gates)))
    return f'<?xml version="1.0" encoding="utf-8"?>{ElementTree.tostring(root, encoding="unicode")}'


def _gates(case: ElementTree.Element) -> list[dict[str, Any]]:
    found = [p.get("value", "") for p in case.iterfind("properties/property") if p.get("name") == GATE]
    return [json.loads(value) for value in found]


def _case(test: ElementTree.Element, gate: dict[str, Any], first: bool) -> ElementTree.Element:
    """One gate's test case. The test's time and output go to its first gate: sums stay what they were."""
    case = ElementTree.Element("testcase", test.attrib)
    case.set("name", _name(test.get("name", ""), gate["metric"]))
    properties = ElementTree.SubElement(case, "properties")
    for name, value in ((METRIC, gate["metric"]), (STATUS, gate["status"])):
        ElementTree.SubElement(properties, "property", name=name, value=value)
    message = ILLEGAL.sub(lambda found: f"#x{ord(found.group()):02X}", gate["message"])
    ElementTree.SubElement(case, "failure", message=message).text = message
    if first:
        case.extend(child for child in test if child.tag not in ("properties", "failure"))
    else:
        case.set("time", "0.000")
    return case


def _name(test: str, metric: str) -> str:
    """The metric as one more parameter of the test."""
    if not metric:  # the whole cell
        return test
    return f"{test[:-1]}-{metric}]" if test.endswith("]") else f"{test}[{metric}]"
