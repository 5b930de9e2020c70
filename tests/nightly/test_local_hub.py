"""The stand-in hub, asked by hand and by the libraries as users have them.

The libraries read their environment at import, so they run in processes of their own: this file, started
as a script. Each of its two parts runs once and answers for many tests.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

import hub_repos
from local_hub import LocalHub

ONE_B, FOUR_B = "google/gemma-3-1b-pt", "google/gemma-3-4b-pt"
SCOPE, RELEASE, SAE_ID = (
    "google/gemma-scope-2-4b-pt",
    "gemma-scope-2-4b-pt-res",
    "layer_17_width_16k_l0_medium",
)
TOKEN = "hf_of_someone_with_access"


def ask(url: str, method: str, path: str, body: str | None = None, **headers: str):
    """(status, headers, body) of one request by hand."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    try:
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def error_of(answer) -> tuple[int, str | None]:
    return answer[0], answer[1]["X-Error-Code"]


@pytest.fixture
def hub(tmp_path):
    """A hub with one small repository of each kind; the model is gated."""
    folder = tmp_path / "served"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    (folder / "sub" / "deep" / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    with LocalHub() as hub:
        hub.add("org/open", folder)
        hub.add("org/gated", folder, gated_token=TOKEN)
        hub.add("org/data", folder, kind="dataset")
        yield hub


# -- by hand --------------------------------------------------------------------------------------


def test_a_large_file_is_known_by_its_sha256(hub):
    status, headers, body = ask(hub.url, "HEAD", "/org/open/resolve/main/model.safetensors")
    etag = f'"{hashlib.sha256(bytes(range(100))).hexdigest()}"'
    assert (status, body) == (200, b"")
    assert (headers["ETag"], headers["X-Linked-ETag"]) == (etag, etag)
    assert (headers["Content-Length"], headers["X-Linked-Size"]) == ("100", "100")
    assert headers["X-Repo-Commit"] == hub.repositories["models", "org/open"].commit
    assert headers["Accept-Ranges"] == "bytes"
    assert not [name for name in headers if name.lower().startswith("x-xet")]


def test_another_file_is_known_by_its_git_blob(hub):
    _, headers, _ = ask(hub.url, "HEAD", "/org/open/resolve/main/config.json")
    assert headers["ETag"] == '"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"'  # git's empty blob
    assert headers["X-Linked-ETag"] is None


@pytest.mark.parametrize(
    "asked,status,start,end",
    [
        (None, 200, 0, 100), ("bytes=10-19", 206, 10, 20), ("bytes=90-", 206, 90, 100),
        ("bytes=-7", 206, 93, 100), ("bytes=50-999", 206, 50, 100), ("nonsense", 200, 0, 100),
    ],
)  # fmt: skip
def test_ranges(hub, asked, status, start, end):
    headers = {"Range": asked} if asked else {}
    answer = ask(hub.url, "GET", "/datasets/org/data/resolve/main/model.safetensors", **headers)
    assert answer[0] == status
    assert answer[2] == bytes(range(start, end))
    assert answer[1]["Content-Range"] == (f"bytes {start}-{end - 1}/100" if status == 206 else None)
    assert hub.requests[-1].range == asked


def test_a_range_beyond_the_end(hub):
    status, headers, _ = ask(hub.url, "GET", "/org/open/resolve/main/model.safetensors", Range="bytes=100-")
    assert (status, headers["Content-Range"]) == (416, "bytes */100")


def test_what_is_missing_is_named_as_on_the_hub(hub):
    assert error_of(ask(hub.url, "GET", "/org/none/resolve/main/a")) == (401, "RepoNotFound")
    bearer = {"Authorization": "Bearer hf_any"}
    assert error_of(ask(hub.url, "GET", "/api/models/org/none", **bearer)) == (404, "RepoNotFound")
    assert error_of(ask(hub.url, "GET", "/org/data/resolve/main/a")) == (401, "RepoNotFound")
    assert error_of(ask(hub.url, "GET", "/org/open/resolve/v9/config.json")) == (404, "RevisionNotFound")
    missing = ask(hub.url, "HEAD", "/org/open/resolve/main/none.json")
    assert error_of(missing) == (404, "EntryNotFound")
    assert missing[1]["X-Repo-Commit"] == hub.repositories["models", "org/open"].commit


def test_a_gate_opens_to_its_token_only(hub):
    path = "/org/gated/resolve/main/config.json"
    stranger = ask(hub.url, "GET", path)
    other = ask(hub.url, "GET", path, Authorization="Bearer hf_other")
    assert (error_of(stranger), error_of(other)) == ((401, "GatedRepo"), (403, "GatedRepo"))
    assert "Please log in" in stranger[1]["X-Error-Message"]
    assert "not in the authorized list" in other[1]["X-Error-Message"]
    assert ask(hub.url, "GET", path, Authorization=f"Bearer {TOKEN}")[0] == 200
    assert [(r.status, r.had_authorization) for r in hub.asked_for("/gated/")] == [
        (401, False), (403, True), (200, True)
    ]  # fmt: skip
    info = json.loads(ask(hub.url, "GET", "/api/models/org/gated")[2])
    assert info["gated"] == "manual", "what is known about the files stays public, as on the Hub"


def test_information_by_branch_and_by_commit(hub):
    info = json.loads(ask(hub.url, "GET", "/api/datasets/org/data/revision/main?blobs=True")[2])
    names = [sibling["rfilename"] for sibling in info["siblings"]]
    assert names == ["config.json", "model.safetensors", "sub/b.txt", "sub/deep/a.txt"]
    assert info["siblings"][1]["lfs"]["sha256"] == hashlib.sha256(bytes(range(100))).hexdigest()
    again = json.loads(ask(hub.url, "GET", f"/api/datasets/org/data/revision/{info['sha']}")[2])
    assert again["sha"] == info["sha"]
    assert len(info["sha"]) == 40


def test_trees(hub):
    def paths(below: str) -> list[str]:
        listed = json.loads(ask(hub.url, "GET", f"/api/models/org/open/tree/main{below}")[2])
        return [f"{row['path']}/" if row["type"] == "directory" else row["path"] for row in listed]

    assert paths("") == ["config.json", "model.safetensors", "sub/"]
    assert paths("/sub") == ["sub/b.txt", "sub/deep/"]
    assert paths("/sub?recursive=true") == ["sub/b.txt", "sub/deep/", "sub/deep/a.txt"]
    assert paths("/sub%2Fdeep") == ["sub/deep/a.txt"]
    assert error_of(ask(hub.url, "GET", "/api/models/org/open/tree/main/none")) == (404, "EntryNotFound")


def test_paths_info(hub):
    body = urlencode({"paths": ["sub", "model.safetensors", "none"], "expand": "false"}, doseq=True)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = ask(hub.url, "POST", "/api/datasets/org/data/paths-info/main", body, **form)
    rows = json.loads(answer[2])
    assert [(row["path"], row["type"]) for row in rows] == [
        ("sub", "directory"), ("model.safetensors", "file")
    ]  # fmt: skip


def test_what_it_does_not_know_is_kept(hub):
    assert ask(hub.url, "GET", "/api/whoami-v2")[0] == 404
    assert hub.unknown == ["/api/whoami-v2"]


def test_the_commit_is_that_of_the_contents(hub, tmp_path):
    before = hub.repositories["models", "org/open"].commit
    assert hub.add("org/open", tmp_path / "served").commit == before
    (tmp_path / "served" / "config.json").write_text("{}")
    assert hub.add("org/open", tmp_path / "served").commit != before


@pytest.mark.parametrize("kind", ["401", "403", "404", "500"])
def test_a_refusal_happens_as_often_as_asked(hub, kind):
    hub.fault(kind, r"config\.json$", times=2, skip=1, method="GET")
    path = "/org/open/resolve/main/config.json"
    assert ask(hub.url, "HEAD", path)[0] == 200
    assert [ask(hub.url, "GET", path)[0] for _ in range(4)] == [200, int(kind), int(kind), 200]


def test_a_cut_leaves_half(hub):
    hub.fault("cut", "safetensors")
    path = "/org/open/resolve/main/model.safetensors"
    assert ask(hub.url, "HEAD", path)[0] == 200
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(hub.url, "GET", path)
    assert (caught.value.partial, caught.value.expected) == (bytes(range(50)), 50)
    assert ask(hub.url, "GET", path)[2] == bytes(range(100))


def test_damage_flips_one_byte_of_the_file(hub):
    hub.fault("damage", "safetensors", times=None)
    path = "/org/open/resolve/main/model.safetensors"
    whole = ask(hub.url, "GET", path)[2]
    assert [i for i in range(100) if whole[i] != i] == [50]
    assert ask(hub.url, "GET", path, Range="bytes=0-49")[2] == bytes(range(50))
    assert ask(hub.url, "GET", path, Range="bytes=40-59")[2] == whole[40:60]


@pytest.mark.alone
def test_a_stall_ends_with_the_hub(hub):
    hub.fault("stall", "config")
    failed = threading.Event()

    def wait() -> None:
        try:
            ask(hub.url, "GET", "/org/open/resolve/main/config.json")
        except (OSError, http.client.HTTPException):
            failed.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    while not hub.requests:
        time.sleep(0.01)
    assert not failed.is_set()
    started = time.monotonic()
    hub.stop()
    waiting.join(timeout=5)
    assert failed.is_set() and time.monotonic() - started < 2
    assert hub.requests[-1].status == 0


def test_no_such_fault(hub):
    with pytest.raises(ValueError, match="no fault 'slow'"):
        hub.fault("slow")


def test_the_environment_has_nothing_of_ours(hub, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "https_proxy"):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("QSAE_KEPT", "kept")
    found = hub.environment(tmp_path, HF_HUB_ETAG_TIMEOUT="2")
    assert "ours" not in found.values()
    assert (found["HF_ENDPOINT"], found["HF_HOME"]) == (hub.url, str(tmp_path))
    assert (found["HF_HUB_ETAG_TIMEOUT"], found["QSAE_KEPT"]) == ("2", "kept")
    assert hub.environment(tmp_path, token="mine")["HF_TOKEN"] == "mine"


# -- by the libraries -----------------------------------------------------------------------------


def in_child(
    hub: LocalHub, home: Path, part: str, given: object, token: str | None = None, **environment: str
) -> Any:
    """What a part of this file, run as a script against the hub, says as JSON."""
    done = subprocess.run(
        [sys.executable, __file__, part],
        input=json.dumps(given),
        env=hub.environment(home, token, OMP_NUM_THREADS="1", **environment),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def chain(error: BaseException | None) -> list[str]:
    """Names of an exception's class and of its causes'."""
    names = []
    while error is not None:
        names.append(type(error).__name__)
        error = error.__cause__
    return names


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Every kind of repository, the models with all their layers."""
    root = tmp_path_factory.mktemp("repositories")
    hub_repos.gemma3_text(root / "text")
    hub_repos.gemma3_multimodal(root / "multimodal")
    hub_repos.gemma_scope_2(root / "scope", [17], 2560)
    hub_repos.pile_10k(root / "pile", 30)
    hub_repos.wikitext(root / "wikitext")
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def well(folders, tmp_path_factory) -> dict[str, Any]:
    """What the libraries made of a hub on which all goes well, and what it was asked."""
    with LocalHub() as hub:
        hub.add(ONE_B, Path(folders["text"]))
        hub.add(FOUR_B, Path(folders["multimodal"]), gated_token=TOKEN)
        hub.add(SCOPE, Path(folders["scope"]))
        hub.add("NeelNanda/pile-10k", Path(folders["pile"]), kind="dataset")
        hub.add("Salesforce/wikitext", Path(folders["wikitext"]), kind="dataset")
        hub.add("org/gated-data", Path(folders["pile"]), kind="dataset", gated_token=TOKEN)
        said = in_child(hub, tmp_path_factory.mktemp("home"), "all_goes_well", folders, TOKEN)
        return said | {"requests": hub.requests, "unknown": hub.unknown}


def all_goes_well(folders: dict[str, str]) -> dict[str, Any]:
    """In the child: load everything, unmodified, and compare it with what was written."""
    import datasets
    import torch
    from huggingface_hub import hf_hub_download
    from sae_lens import SAE
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)

    def model(repository: str, folder: str, prefix: str) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(repository)
        loaded, info = AutoModelForCausalLM.from_pretrained(
            repository, dtype=torch.float32, output_loading_info=True
        )
        text = loaded.config.get_text_config()
        written: dict[str, Any] = {}
        for path in Path(folder).glob("*.safetensors"):
            written |= load_file(path)
        decoder = loaded.model if prefix == "model." else loaded.model.language_model
        ids = torch.tensor([tokenizer.encode("The old captain saw the harbour.")])
        with torch.inference_mode():
            logits = loaded(ids).logits
        return {
            "class": type(loaded).__name__, "layers": text.num_hidden_layers, "width": text.hidden_size,
            "info": {name: sorted(map(str, value)) for name, value in info.items()},
            "same": all(
                torch.equal(value, written[prefix + name].float())
                for name, value in decoder.state_dict().items()
            ),
            "bos": [tokenizer.bos_token_id, int(ids[0, 0])], "words": [len(tokenizer), text.vocab_size],
            "finite": bool(logits.isfinite().all()),
        }  # fmt: skip

    def sae() -> dict[str, bool]:
        loaded = SAE.from_pretrained(RELEASE, SAE_ID, device="cpu", dtype="float32")
        written = load_file(Path(folders["scope"]) / "resid_post" / SAE_ID / "params.safetensors")
        names = {"w_enc": "W_enc", "w_dec": "W_dec"}
        same = {
            name: torch.equal(getattr(loaded, names.get(name, name)), value)
            for name, value in written.items()
        }
        return same | {"hook": loaded.cfg.metadata.hook_name == "blocks.17.hook_resid_post"}

    def raised(call: Callable[[], object]) -> list[str]:
        try:
            call()
        except Exception as error:
            return chain(error)
        return []

    def rows(*what: str, split: str) -> list[dict[str, Any]]:
        return list(datasets.load_dataset(*what, split=split, streaming=True))

    def file(token: str | bool) -> Callable[[], object]:
        return lambda: hf_hub_download(FOUR_B, "config.json", token=token, force_download=True)

    def data(token: str | bool) -> Callable[[], object]:
        return lambda: datasets.load_dataset("org/gated-data", split="train", streaming=True, token=token)

    return {
        # before anything is cached
        "gated": {
            "nobody": raised(lambda: hf_hub_download(FOUR_B, "config.json", token=False)),
            "other": raised(lambda: hf_hub_download(FOUR_B, "config.json", token="hf_other")),
            "tokenizer": raised(lambda: AutoTokenizer.from_pretrained(FOUR_B, token=False)),
            "model": raised(lambda: AutoModelForCausalLM.from_pretrained(FOUR_B, token="hf_other")),
            "data": raised(data(False)),
            "other's data": raised(data("hf_other")),
            "invited": raised(file(TOKEN)),
        },
        "text": model(ONE_B, folders["text"], "model."),
        "multimodal": model(FOUR_B, folders["multimodal"], "language_model.model."),
        "sae": sae(),
        "pile": rows("NeelNanda/pile-10k", split="train"),
        "wikitext": [
            row["text"] for row in rows("Salesforce/wikitext", "wikitext-2-raw-v1", split="train")
        ],
        "missing": raised(lambda: hf_hub_download("org/none", "config.json")),
        "revision": raised(lambda: hf_hub_download(ONE_B, "config.json", revision="v9")),
        "entry": raised(lambda: hf_hub_download(ONE_B, "none.json")),
    }


@pytest.mark.parametrize(
    "name,cls,layers,width",
    [("text", "Gemma3ForCausalLM", 26, 1152), ("multimodal", "Gemma3ForConditionalGeneration", 34, 2560)],
)
def test_a_model_is_loaded_whole(well, name, cls, layers, width):
    found = well[name]
    assert (found["class"], found["layers"], found["width"]) == (cls, layers, width)
    assert all(value == [] for value in found["info"].values()), found["info"]
    assert found["same"] and found["finite"]


@pytest.mark.parametrize("name", ["text", "multimodal"])
def test_its_tokenizer_comes_along(well, name):
    assert well[name]["bos"] == [2, 2]
    words, rows = well[name]["words"]
    assert words <= rows <= words + 64


def test_an_sae_is_what_was_written(well):
    assert well["sae"] == dict.fromkeys(["w_enc", "w_dec", "b_enc", "b_dec", "threshold", "hook"], True)


def test_the_pile_streams(well, folders):
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    (file,) = Path(folders["pile"]).rglob("*.parquet")
    assert well["pile"] == pq.read_table(file).to_pylist()
    assert len(well["pile"]) == 30
    assert set(well["pile"][0]["meta"]) == {"pile_set_name"}
    tokenizer = Tokenizer.from_file(str(hub_repos.TINY_MODEL / "tokenizer.json"))
    assert min(len(tokenizer.encode(row["text"]).ids) for row in well["pile"]) > 700


def test_wikitext_streams_line_by_line(well):
    lines = well["wikitext"]
    titles = [line for line in lines if line.startswith(" = ") and not line.startswith(" = = ")]
    assert lines[0] == lines[2] == "" and lines[1] == titles[0]
    assert len(titles) == 20 and all(title.endswith(" = \n") for title in titles)
    assert sum(line.startswith(" = = ") for line in lines) > 20


def test_a_gate_is_the_librarys_error(well):
    gated = well["gated"]
    assert gated["nobody"][0] == gated["other"][0] == "GatedRepoError"
    assert gated["tokenizer"][:2] == gated["model"][:2] == ["OSError", "GatedRepoError"]
    # datasets raises its own with "from None"
    assert gated["data"] == gated["other's data"] == ["DatasetNotFoundError"]
    assert gated["invited"] == []


def test_what_is_missing_is_the_librarys_error(well):
    assert well["missing"][0] == "RepositoryNotFoundError"
    assert well["revision"][0] == "RevisionNotFoundError"
    assert well["entry"][0] == "RemoteEntryNotFoundError"


def test_the_token_goes_along(well):
    weights = [r for r in well["requests"] if FOUR_B in r.path and r.path.endswith(".safetensors")]
    assert {r.had_authorization for r in weights} == {True}
    assert {r.status for r in weights if r.method == "GET"} == {200}


def test_ranges_are_what_saes_and_streams_ask_for(well):
    ranged = [r for r in well["requests"] if r.range]
    assert {r.status for r in ranged} == {206}
    assert {Path(r.path).suffix for r in ranged} == {".safetensors", ".parquet"}


def test_nothing_was_asked_that_the_hub_does_not_know(well):
    assert well["unknown"] == []


# -- by the libraries, going wrong ----------------------------------------------------------------


class Case(NamedTuple):
    """A fault of one repository's files, and the names of the exceptions that come of it."""

    loader: str
    kind: str
    match: str
    ends: list[str]
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        details = [f"{name}={value}" for name, value in self.options.items()]
        return "-".join([self.loader, self.kind, self.match.strip("$") or "all", *details])


ALWAYS = {"times": None}
GET = {"method": "GET", "times": None}
ONCE = {"method": "GET"}
SAE_FILE = "params.safetensors$"
BODY = GET | {"skip": 2}  # after the two requests by which sae-lens reads a header

CASES = [
    # a file, by huggingface_hub itself: resumed where it can be, and compared with no checksum
    Case("file", "cut", ".safetensors$", ["ok"], ONCE),
    Case("file", "stall", ".safetensors$", ["ok"], ONCE),
    Case("file", "damage", ".safetensors$", ["other bytes"]),
    # AutoModelForCausalLM
    Case("model", "401", "", ["OSError", "HfHubHTTPError"], ALWAYS),
    Case("model", "403", "", ["OSError", "LocalEntryNotFoundError", "HfHubHTTPError"], ALWAYS),
    Case("model", "404", "config.json$", ["ValueError"], ALWAYS),
    Case("model", "500", ".safetensors$", ["OSError", "HfHubHTTPError"], GET),
    Case("model", "cut", ".safetensors$", ["OSError", "RemoteProtocolError"], GET),
    Case("model", "stall", ".safetensors$", ["OSError", "ReadTimeout"], GET),
    Case("model", "damage", ".safetensors$", ["SafetensorError"], {"at": 12}),
    # AutoTokenizer
    Case("tokenizer", "401", "", ["OSError", "HfHubHTTPError"], ALWAYS),
    Case("tokenizer", "403", "", ["OSError", "LocalEntryNotFoundError", "HfHubHTTPError"], ALWAYS),
    Case("tokenizer", "404", "tokenizer.json$", ["ValueError"], ALWAYS),
    Case("tokenizer", "500", "tokenizer.json$", ["OSError", "HfHubHTTPError"], GET),
    Case("tokenizer", "cut", "tokenizer.json$", ["OSError"], GET),
    Case("tokenizer", "stall", "tokenizer.json$", ["OSError"], GET),
    Case("tokenizer", "damage", "tokenizer.json$", ["JSONDecodeError"], {"at": 2}),
    # SAE: reads the header with requests, and takes a config that it can't get for one that isn't there
    Case("sae", "401", "", ["HfHubHTTPError"], ALWAYS),
    Case("sae", "403", "", ["HTTPError"], ALWAYS),
    Case("sae", "404", SAE_FILE, ["HTTPError"], ALWAYS),
    Case("sae", "500", SAE_FILE, ["HTTPError"], GET),
    Case("sae", "500", SAE_FILE, ["HfHubHTTPError"], BODY),
    Case("sae", "cut", SAE_FILE, ["ChunkedEncodingError"], GET),
    Case("sae", "cut", SAE_FILE, ["RemoteProtocolError"], BODY),
    Case("sae", "stall", SAE_FILE, ["ReadTimeout"], GET),
    Case("sae", "stall", SAE_FILE, ["ReadTimeout"], BODY),
    Case("sae", "damage", SAE_FILE, ["UnicodeDecodeError"], ALWAYS | {"at": 5}),
    Case("sae", "damage", SAE_FILE, ["KeyError"], ALWAYS | {"at": 12}),
    # load_dataset, streamed
    Case("dataset", "401", "", ["HfHubHTTPError"], ALWAYS),
    Case("dataset", "403", "", ["FileNotFoundError"], ALWAYS),
    Case("dataset", "404", ".parquet$", ["RemoteEntryNotFoundError"], ALWAYS),
    Case("dataset", "500", ".parquet$", ["HfHubHTTPError"], ALWAYS),
    Case("dataset", "500", ".parquet$", ["ok"], ONCE),
    Case("dataset", "cut", ".parquet$", ["ConnectionError", "RemoteProtocolError"], ALWAYS),
    Case("dataset", "stall", ".parquet$", ["ConnectionError", "ReadTimeout"], ALWAYS),
    Case("dataset", "damage", ".parquet$", ["ArrowInvalid"], ALWAYS | {"at": -2}),
]


@pytest.fixture(scope="module")
def going_wrong(tmp_path_factory) -> dict[str, Any]:
    """Every case at once, each in a thread and with files of its own: what they do is mostly wait."""
    root = tmp_path_factory.mktemp("small")
    model, pile = hub_repos.gemma3_text(root / "model", 2, 64), hub_repos.pile_10k(root / "pile", 5)
    names = {"widths": ("16k", "65k"), "l0s": ("small", "medium")}
    scope = hub_repos.gemma_scope_2(root / "scope", [9, 17, 22, 29], 64, 32, **names)
    saes = sorted(path.name for path in (scope / "resid_post").iterdir())
    (parquet,) = pile.rglob("*.parquet")
    given = []
    with LocalHub() as hub:
        hub.add(SCOPE, scope)
        for number, case in enumerate(CASES):
            asked = saes.pop() if case.loader == "sae" else f"org/case-{number}"
            if case.loader == "dataset":
                hub.add(asked, pile, kind="dataset")
            elif case.loader != "sae":
                hub.add(asked, model)
            options = dict(case.options)
            if options.get("at", 0) < 0:
                options["at"] += parquet.stat().st_size
            hub.fault(case.kind, f"/{asked}/.*{case.match}", **options)
            given.append([case.name, case.loader, asked])
        seconds = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
        home = tmp_path_factory.mktemp("home")
        return in_child(hub, home, "each_goes_wrong", [str(model), given], **seconds)


def each_goes_wrong(given: tuple[str, list[tuple[str, str, str]]]) -> dict[str, Any]:
    """In the child: (how it ended, after how many seconds) of every case."""
    import datasets
    import torch
    from huggingface_hub import hf_hub_download
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local, cases = given
    # by default datasets tries 20 times, every 5 seconds, each of them a series of 6 requests
    datasets.config.STREAMING_READ_MAX_RETRIES, datasets.config.STREAMING_READ_RETRY_INTERVAL = 1, 0
    AutoModelForCausalLM.from_pretrained(local)  # imports what the threads would all import at once
    AutoTokenizer.from_pretrained(local)
    right = (Path(local) / "model.safetensors").read_bytes()

    def file(asked: str) -> str:
        found = Path(hf_hub_download(asked, "model.safetensors")).read_bytes()
        return "ok" if found == right else "other bytes" if len(found) == len(right) else "other length"

    loaders: dict[str, Callable[[str], object]] = {
        "file": file,
        "model": lambda asked: AutoModelForCausalLM.from_pretrained(asked, dtype=torch.float32),
        "tokenizer": AutoTokenizer.from_pretrained,
        "sae": lambda asked: SAE.from_pretrained(RELEASE, asked),
        "dataset": lambda asked: list(datasets.load_dataset(asked, split="train", streaming=True)),
    }
    ended: dict[str, Any] = {}

    def run(name: str, loader: str, asked: str) -> None:
        started = time.monotonic()
        try:
            result = loaders[loader](asked)
            how = [result if isinstance(result, str) else "ok"]
        except Exception as error:
            how = chain(error)
        ended[name] = [how, time.monotonic() - started]

    threads = [threading.Thread(target=run, args=case, daemon=True) for case in cases]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + 120
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    return ended


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_ends_in_time_and_as_known(going_wrong, case):
    assert case.name in going_wrong, "didn't end"
    how, seconds = going_wrong[case.name]
    assert how[: len(case.ends)] == case.ends, how
    assert seconds < 60


if __name__ == "__main__":
    part = {"all_goes_well": all_goes_well, "each_goes_wrong": each_goes_wrong}[sys.argv[1]]
    print(json.dumps(part(json.load(sys.stdin))))
