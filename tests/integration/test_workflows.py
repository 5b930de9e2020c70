"""The workflow files against GitHub's schema, a security linter, bash, and what this project has."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paths import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
NIGHTLY = GITHUB / "workflows" / "nightly-gpu.yml"
ISSUE = GITHUB / "nightly-issue.sh"

workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs(path):
    return read(path)["jobs"]


def steps(path):
    return [step for job in jobs(path).values() for step in job["steps"]]


def shell_blocks():
    found = [
        (f"{path.stem}: {step['run'].splitlines()[0]}", step["run"])
        for path in WORKFLOWS
        for step in steps(path)
        if "run" in step
    ]
    return [*found, (ISSUE.name, ISSUE.read_text(encoding="utf-8"))]


def test_all_are_there():
    assert [path.name for path in WORKFLOWS] == ["nightly-gpu.yml", "nightly-tests.yml", "pull-request.yml"]


def test_a_change_and_the_night_run_every_test_between_them():
    """Each folder of tests belongs to one target of make, and each target to one workflow, or to .ci/run."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = dict(re.findall(r"^(test[a-z-]*):.*\n.*?(tests/[a-z]+)", makefile, re.MULTILINE))
    folders = {path.parent.relative_to(ROOT).parts[1] for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(targets.values()) == {f"tests/{folder}" for folder in folders}
    pushed = {step.get("run") for step in steps(GITHUB / "workflows" / "pull-request.yml")}
    nightly = {step.get("run") for step in steps(GITHUB / "workflows" / "nightly-tests.yml")}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for target, folder in targets.items():
        if target != "test-fast":  # a part of `test`
            assert (f"make {target}" in pushed) != (f"make {target}" in nightly), folder
            assert (f"make {target}" in pushed) == (re.search(rf"make {target}\b(?!-)", script) is not None)


# -- the published schema ---------------------------------------------------------------------------


def against_schema(path):
    """GitHub's schema for workflows, as SchemaStore publishes it and check-jsonschema carries it along."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@workflows
def test_schema(path):
    done = against_schema(path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    runs-on: [self-hosted, linux, gpu]\n", ""),
        ("timeout-minutes: 480", "timeout-minuts: 480"),
        ("issues: write", "issues: sometimes"),
        ("    needs: gate\n", "    needs: 3\n"),
        ("        run: bash .github", "        runs: bash .github"),
    ],
)
def test_the_schema_rejects_a_broken_copy(tmp_path, before, after):
    text = NIGHTLY.read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "broken.yml").write_text(text.replace(before, after, 1), encoding="utf-8")
    done = against_schema(tmp_path / "broken.yml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken.yml" in done.stdout


# -- a linter for what makes workflows unsafe ---------------------------------------------------------


def linted(folder):
    zizmor = Path(sys.executable).with_name("zizmor")
    command = [
        str(zizmor),
        "--offline",
        "--no-progress",
        "--persona",
        "pedantic",
        "--format",
        "plain",
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_linter_finds_nothing():
    done = linted(GITHUB)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "after", "audit"),
    [
        ("@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2", "@main", "unpinned-uses"),
        ("        with:\n          persist-credentials: false\n", "", "artipacked"),
        ("permissions: {}", "permissions: write-all", "excessive-permissions"),
        ('-k "$SELECT"', '-k "${{ inputs.select }}"', "template-injection"),
    ],
)
def test_the_linter_finds_what_is_unsafe(tmp_path, before, after, audit):
    text = NIGHTLY.read_text(encoding="utf-8")
    assert before in text
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "unsafe.yml").write_text(text.replace(before, after, 1), encoding="utf-8")
    done = linted(tmp_path)
    assert done.returncode != 0
    assert f"[{audit}]" in done.stdout


# -- rules of this house ------------------------------------------------------------------------------


@workflows
def test_actions_are_pinned_to_a_commit_and_say_its_version(path):
    uses = re.findall(r"uses: (\S+)(.*)", path.read_text(encoding="utf-8"))
    assert uses
    for action, comment in uses:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


@workflows
def test_every_job_has_an_end_and_no_right_it_does_not_need(path):
    assert read(path)["permissions"] == {}
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 480
        allowed = {"contents": "read"} | ({"issues": "write"} if name == "report" else {})
        assert job["permissions"] == allowed, name


def test_a_secret_is_known_to_one_step():
    """Where it is used, never on a command line, and not where something is fetched or installed."""
    for path in WORKFLOWS:
        for step in steps(path):
            secrets = re.findall(r"secrets\.(\w+)", yaml.safe_dump(step))
            assert sorted(secrets) == (["HF_TOKEN", "QSAE_HISTORY"] if step.get("id") == "gate" else [])
            assert "secrets." not in step.get("run", "")
        text = path.read_text(encoding="utf-8")
        assert text.count("secrets.") == sum(yaml.safe_dump(step).count("secrets.") for step in steps(path))


def test_what_the_night_leaves_is_kept_whatever_happened():
    uploads = [
        step for path in WORKFLOWS for step in steps(path) if "upload-artifact" in step.get("uses", "")
    ]
    kept = {step["with"]["name"] for step in uploads}
    assert kept == {"bench", "nightly", "screenshots"}
    assert {step["if"] for step in uploads} == {"always()"}


# -- the shell ----------------------------------------------------------------------------------------


def parses(text):
    return subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("name", "text"), shell_blocks(), ids=lambda value: value if len(value) < 80 else ""
)
def test_shell_parses(name, text):
    done = parses(text)
    assert done.returncode == 0, f"{name}: {done.stderr}"
    assert "${{" not in text, "values go through the environment: in a script they are code"


def test_shell_that_does_not_parse_is_found():
    assert parses("if [ 1 ]; then\n").returncode != 0


def make_targets(text):
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", text))


def test_make_targets_exist():
    known = set(
        re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text(encoding="utf-8")).group(1).split()
    )
    named = {target for _, text in shell_blocks() for target in make_targets(text)}
    assert {"lint", "test", "bench", "backends"} <= named
    assert named <= known


def options(text):
    """Long options of the commands that run pytest, lines that go on joined."""
    lines = text.replace("\\\n", " ").splitlines()
    ours = [line for line in lines if re.search(r"\bpytest\b|\bgate --", line)]
    return {word for line in ours for word in re.findall(r"(?<=\s)--[a-z][a-z-]*", line)}


def test_pytest_knows_every_option():
    command = [sys.executable, "-m", "pytest", "benchmarks", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    known = set(re.findall(r"--[a-z][a-z-]*", done.stdout))
    found = {option for _, text in shell_blocks() for option in options(text)}
    assert {"--strict", "--resume", "--isolate", "--junit-xml", "--qsae-dir"} <= found
    assert found <= known


def test_options_that_do_not_exist_would_be_found():
    assert options('"$VENV/bin/pytest" benchmarks \\\n  --strct -k "$A" "$@"\nls --all') == {"--strct"}


# -- what the scripts do --------------------------------------------------------------------------------


def stub(folder, name, body):
    """A command that notes how it was called."""
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$@" >> "$CALLS"; echo >> "$CALLS"\n{body}\n')
    script.chmod(0o755)


def calls(tmp_path):
    path = tmp_path / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def sh(script, tmp_path, **environment):
    """As a runner starts a step: bash -e, from a file."""
    (tmp_path / "step.sh").write_text(script, encoding="utf-8")
    return subprocess.run(
        ["bash", "-e", "step.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), **environment},
    )  # fmt: skip


def step_named(name):
    return next(step["run"] for step in steps(NIGHTLY) if step.get("name") == name)


@pytest.mark.parametrize(
    ("attempt", "statuses", "resumed", "status"),
    [
        (1, [0], [False], 0), (1, [1], [False], 1), (1, [3], [False], 3), (1, [2], [False], 2),
        (2, [0], [True], 0), (2, [1], [True], 1),
        (2, [2, 0], [True, False], 0),  # there was nothing to go on with
        (3, [2, 3], [True, False], 3),
    ],
)  # fmt: skip
def test_the_gate_ends_as_pytest_does_and_goes_on_where_it_was_killed(
    tmp_path, attempt, statuses, resumed, status
):
    (tmp_path / "out").mkdir()
    (tmp_path / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    body = (
        'status=$(head -1 ../statuses 2>/dev/null || head -1 statuses); sed -i 1d statuses; exit "$status"'
    )
    stub(tmp_path / "bin", "pytest", body)
    done = sh(
        step_named("Gate"), tmp_path, VENV=str(tmp_path), SELECT="gemma3_12b and nf4", QSAE_DIR="/kept/qsae",
        GITHUB_RUN_ATTEMPT=str(attempt), GITHUB_OUTPUT=str(tmp_path / "output"),
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (tmp_path / "output").read_text() == f"status={status}\n"
    made = calls(tmp_path)
    assert ["--resume" in call for call in made] == resumed
    for call in made:
        assert call[0] == "benchmarks"
        assert call[call.index("-k") + 1] == "gemma3_12b and nf4"
        assert {"--strict", "--isolate"} <= set(call)


def test_last_nights_run_is_not_taken_for_this_ones(tmp_path):
    """Where the gate got no run written, `latest` is still the one before."""
    latest = tmp_path / "qsae" / "latest"
    latest.mkdir(parents=True)
    (latest / "run.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "started").touch()
    os.utime(latest / "run.json", (1, 1))
    environment = {"QSAE_DIR": str(tmp_path / "qsae")}
    assert sh(step_named("Gather"), tmp_path, **environment).returncode == 0
    assert not (tmp_path / "out" / "run").exists()
    os.utime(tmp_path / "out" / "started", (1, 1))
    os.utime(latest / "run.json", (2, 2))
    assert sh(step_named("Gather"), tmp_path, **environment).returncode == 0
    assert (tmp_path / "out" / "run" / "run.json").exists()


def issue(tmp_path, opened, result, status, page="## red\n"):
    """Calls of gh, less the first, which asks for the open issue."""
    if page is not None:
        (tmp_path / "summary.md").write_text(page, encoding="utf-8")
    keep = 'for a in "$@"; do [ "${b:-}" = --body-file ] && cp "$a" body; b=$a; done'
    stub(tmp_path / "bin", "gh", f'if [ "$2" = list ]; then echo "{opened}"; fi; {keep}; true')
    done = sh(
        f"bash {shlex.quote(str(ISSUE))} summary.md", tmp_path, RESULT=result, STATUS=status, RUN_URL="https://x/1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *rest = calls(tmp_path)
    assert first[:2] == ["issue", "list"]
    return rest


def test_green_with_no_issue_says_nothing(tmp_path):
    assert issue(tmp_path, "", "success", "0") == []


def test_green_closes_the_issue(tmp_path):
    assert issue(tmp_path, "7", "success", "0") == [
        ["issue", "close", "7", "--comment", "Green again: https://x/1"]
    ]


@pytest.mark.parametrize(
    ("result", "status", "title"),
    [
        ("failure", "1", "regression"),
        ("failure", "3", "no regression seen, but nothing measured, invalid, or not stored"),
        ("failure", "2", "could not start"), ("failure", "4", "could not start"),
        ("failure", "", "did not finish"), ("cancelled", "", "did not finish"),
    ],
)  # fmt: skip
def test_red_opens_one_issue_or_comments_on_it(tmp_path, result, status, title):
    label, create = issue(tmp_path, "", result, status)
    assert label[:3] == ["label", "create", "nightly-gpu"]
    assert create[:3] == ["issue", "create", "--title"]
    assert title in create[3]
    assert create[4:6] == ["--label", "nightly-gpu"]
    body = (tmp_path / "body").read_text(encoding="utf-8")
    assert "https://x/1" in body and "## red" in body
    (tmp_path / "calls").unlink()
    edit, comment = issue(tmp_path, "7", result, status)
    assert edit[:4] == ["issue", "edit", "7", "--title"]
    assert title in edit[4]
    assert comment[:4] == ["issue", "comment", "7", "--body-file"]


def test_a_night_without_a_summary_still_opens_the_issue(tmp_path):
    assert issue(tmp_path, "", "failure", "", page=None)[-1][:2] == ["issue", "create"]


def test_a_long_summary_fits_into_an_issue(tmp_path):
    issue(tmp_path, "", "failure", "1", page="é" * 50_000)
    body = (tmp_path / "body").read_bytes()
    assert 60_000 < len(body) < 65_536
    assert body.decode("utf-8").rstrip("é").endswith("\n\n")  # cut between letters
