"""Plan and shards in a store far away: a real S3-speaking server, and fsspec's file systems."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import make_settings, result
from s3_server import BUCKET, SECRET, s3_server
from stub_drawer import LOADER, StubDrawer

from engine.errors import ConfigError, DatasetError, RunConflict, RunFailed
from engine.generation import durable
from engine.generation import lease as lease_module
from engine.generation.file_store import FileStore
from engine.generation.lease import lease
from engine.generation.lock import Busy
from engine.generation.object_store import ObjectStore
from engine.generation.objects import open_objects
from engine.generation.plan_file import load_plan, prepare
from engine.generation.run import generate, merge, pending_shards, resume, run_shard, verify
from engine.generation.run_file import check_out
from engine.generation.scratch import process_folder
from engine.generation.shard_state import BadShard, read_shard
from engine.generation.store import open_store

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture
def s3(server, monkeypatch, request) -> str:
    """A fresh place on the server."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.name.translate(str.maketrans('[]', '--'))}"


@pytest.fixture(params=["s3", "memory", "file"])
def place(request, tmp_path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    return f"memory://{tmp_path}" if request.param == "memory" else f"file://{tmp_path}/far"


@pytest.fixture
def quick_leases(monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT_S", 0.1)
    monkeypatch.setattr(lease_module, "STALE_S", 1.0)
    monkeypatch.setattr(lease_module, "LOOK_S", 0.05)


def test_a_run_in_a_store_gives_the_bytes_of_a_local_one(bench, unbroken, place):
    out = bench.generate(store=place)
    assert result(out) == result(unbroken) and verify(out, place) == []
    assert sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".") == [
        "annotations.json",
        "images",
        "manifest.json",
        "run.json",
    ]
    assert pending_shards(place) == []
    bench.drawn()
    (bench.root / "elsewhere").mkdir()
    merge(bench.root / "elsewhere", place)  # any machine can
    assert result(bench.root / "elsewhere") == result(unbroken)
    for damage in (lambda content: content[:-1] + b"!", lambda content: content[:-1]):
        image = min((bench.root / "elsewhere" / "images").iterdir())
        image.write_bytes(damage(image.read_bytes()))
        merge(bench.root / "elsewhere", place)  # a copy that is not whole is brought again
        assert result(bench.root / "elsewhere") == result(unbroken)
    assert result(bench.generate(store=place)) == result(unbroken)
    assert bench.drawn() == []


def test_workers_share_a_store(bench, unbroken, s3):
    assert result(bench.generate(store=s3, workers=2, shard_size=2)) == result(unbroken)


def test_killed_at_any_request_a_run_ends_in_the_same_bytes(tmp_path, server):
    command = [sys.executable, str(HERE / "kill_points_remote.py"), str(tmp_path)]
    environment = os.environ | server | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == []
    assert found["killed"] == found["points"] > 30
    assert found["interrupted"] > 25


def commit_of(objects, shard: int) -> dict:
    return json.loads(objects.get(f"shards/{shard:05d}.json"))


def damage_image(objects, how) -> None:
    commit = commit_of(objects, 1)
    name = min(name for name in commit["files"] if name.startswith("images/"))
    key = f"shards/00001-{commit['attempt']}/{name}"
    content = how(objects.get(key))
    objects.remove([key]) if content is None else objects.put(key, content)


def edit_commit(objects, **changes) -> None:
    objects.put("shards/00001.json", json.dumps(commit_of(objects, 1) | changes).encode())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda o: damage_image(o, lambda content: None), "jpg is missing"),
        (lambda o: damage_image(o, lambda content: content[:-1]), "bytes, not"),
        (lambda o: damage_image(o, lambda content: content[:-1] + b"!"), "jpg has changed"),
        (lambda o: o.put("shards/00001.json", b'{"version":1,"pl'), "not readable"),
        (lambda o: o.put("shards/00001.json", b""), "not readable"),
        (lambda o: edit_commit(o, attempt="../../elsewhere"), "names no attempt"),
        (lambda o: edit_commit(o, attempt="0" * 16), "is missing"),
        (lambda o: edit_commit(o, plan="0" * 64), "made by plan 000"),
    ],
)
def test_an_object_that_is_not_whole_is_named_and_its_shard_drawn_again(bench, unbroken, s3, damage, reason):
    out = bench.generate(store=s3)
    damage(open_objects(s3))
    assert [text for text in verify(out, s3) if text.startswith("shards/00001: ") and reason in text]
    with pytest.raises(BadShard, match=reason):
        read_shard(s3, load_plan(s3), 1, verify=True)
    bench.drawn()
    resume(out, loader=LOADER, verify=True)
    assert bench.drawn() == [6, 7, 8, 9, 10]
    assert result(out) == result(unbroken) and verify(out, s3) == []
    attempts = [name for name in open_objects(s3).names("shards") if not name.endswith(".json")]
    assert len(attempts) == 4  # the damaged one was removed at the merge


def test_the_merge_checks_what_it_copies(bench, s3):
    bench.generate(store=s3)
    damage_image(open_objects(s3), lambda content: content[:-1] + b"!")
    (bench.root / "elsewhere").mkdir()
    with pytest.raises(RunFailed, match=r"00001: images/.*has changed.*de resume .*--verify"):
        merge(bench.root / "elsewhere", s3)
    assert not (bench.root / "elsewhere" / "manifest.json").exists()


def test_an_upload_that_is_cut_short_is_not_committed(bench, unbroken, s3, monkeypatch):
    put = ObjectStore.put

    def loses_a_byte(self, key, content):
        put(self, key, content[:-1] if "/00001-" in key and key.endswith(".jpg") else content)

    monkeypatch.setattr(ObjectStore, "put", loses_a_byte)
    with pytest.raises(RunFailed, match="shard 1: OSError.*jpg has .* bytes in the store, not"):
        bench.generate(store=s3)
    objects = open_objects(s3)
    assert [name for name in objects.names("shards") if name.startswith("00001")] == []  # nor anything left of it
    monkeypatch.undo()
    assert pending_shards(open_store(s3)) == [1]


def test_a_full_scratch_disk_fails_the_run_and_leaves_nothing_of_the_shard(bench, unbroken, s3, monkeypatch):
    written = []

    def fills_up(path, mode="r", *args):
        if "w" in mode and "shard" in Path(path).parts:
            written.append(path)
            if len(written) == 9:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return builtins.open(path, mode, *args)

    monkeypatch.setattr(durable, "open", fills_up, raising=False)
    monkeypatch.setattr("engine.generation.run.secrets.randbelow", lambda n: 0)
    with pytest.raises(RunFailed, match="shard 1: OSError.*No space left.*same command again"):
        bench.generate(store=s3)
    assert len(written) == 9  # no further shard was begun
    assert [name[:5] for name in open_objects(s3).names("shards")] == ["00000", "00000"]
    assert not [path for path in process_folder().iterdir() if path.is_dir()]  # files are copies of plans
    assert open_objects(s3).names("leases") == []


def test_scratch_of_a_killed_process_goes_with_the_next_start(tmp_path):
    code = (
        "import os, signal, sys; from engine.generation.scratch import process_folder; "
        "(process_folder() / 'half').write_bytes(b'x' * 1000); print(process_folder(), flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1:] else None"
    )

    def run(*arguments) -> Path:
        environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
        )
        return Path(ended.stdout.strip())

    killed = run("kill")
    assert (killed / "half").exists()
    live = subprocess.Popen(
        [sys.executable, "-c", code + "; sys.stdin.read()"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    working = Path(live.stdout.readline().strip())
    assert not killed.exists() and (working / "half").exists()
    run()
    assert (working / "half").exists()  # its owner lives
    live.communicate("")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_runs_on_one_store_share_no_shard(bench, unbroken, server, s3):
    bench.behave(sleep_s=0.05)
    program = (
        "import sys; from pathlib import Path; from conftest import Bench; root = Path(sys.argv[1])\n"
        "from engine.generation import lease; lease.BEAT_S, lease.LOOK_S = 0.2, 0.05\n"
        "Bench(root, root / 'data', root / 'adapter').generate(sys.argv[2], shard_size=2, store=sys.argv[3])"
    )
    path = os.pathsep.join([os.getcwd(), str(HERE)])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(bench.root), name, s3],
            env=os.environ | {"PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    drawn = bench.drawn()
    assert len(drawn) == len(set(drawn)) == 17
    for run, error in zip(runs, errors, strict=True):
        assert run.returncode == 0 or "in the hands of another live process" in error, error
    assert 0 in {run.returncode for run in runs}
    for name in ("one", "two"):
        assert result(bench.generate(name, shard_size=2, store=s3)) == result(unbroken)


def test_a_live_owner_keeps_its_shard_and_a_dead_one_is_taken_over(bench, s3, quick_leases, caplog):
    prepare(bench.data, s3, 17, 1, make_settings(), StubDrawer(bench.adapter).identity)
    store = open_store(s3)
    with store.own(1):
        time.sleep(0.3)
        with pytest.raises(Busy, match=rf"Shard 1 of {s3} .*process {os.getpid()} on .*Wait for it to end"):
            run_shard(s3, 1, StubDrawer(bench.adapter))
    foreign = {"owner": "f" * 16, "host": "far-away", "pid": os.getpid(), "start": 1, "space": "another", "beat": 3}
    open_objects(s3).put("leases/00001.json", json.dumps(foreign).encode())
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert run_shard(s3, 1, StubDrawer(bench.adapter)).planned == 5
    assert time.monotonic() - begin >= 1.0  # no sooner than its counter has stood still for so long
    assert f"owner (process {os.getpid()} on far-away) stopped without finishing; taken over" in caplog.text
    assert open_objects(s3).names("leases") == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner":1,"pid":"x"}'])
def test_a_torn_lease_blocks_nobody_for_long(s3, quick_leases, content):
    objects = open_objects(s3)
    objects.put("leases/00000.json", content)
    with lease(objects, "leases/00000.json", "It"):
        assert json.loads(objects.get("leases/00000.json"))["pid"] == os.getpid()


def test_who_waits_for_a_lease_gets_it_in_turn(place, quick_leases):
    objects, inside, most = open_objects(place), [], []

    def work():
        for _ in range(3):
            with lease(objects, "leases/it.json", "It", wait=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 9 and objects.names("leases") == []


def test_two_owners_of_one_shard_leave_one_whole_shard(bench, unbroken, s3, monkeypatch):
    """A lease is only a courtesy: without any, the last commit stands, and it is whole."""
    from contextlib import nullcontext

    from engine.generation.remote import RemoteStore

    plan = prepare(bench.data, s3, 17, 1, make_settings(), StubDrawer(bench.adapter).identity)
    monkeypatch.setattr(RemoteStore, "own", lambda self, shard: nullcontext())
    monkeypatch.setattr("engine.generation.shard._committed", lambda *_: None)
    threads = [
        threading.Thread(target=run_shard, args=(s3, shard, StubDrawer(bench.adapter))) for shard in (0, 0, 1, 2, 3, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(read_shard(s3, plan, shard, verify=True) for shard in range(4))
    (bench.root / "out").mkdir()
    merge(bench.root / "out", s3)
    assert result(bench.root / "out") == result(unbroken)
    assert len([name for name in open_objects(s3).names("shards") if "-" in name]) == 4


def test_attempts_of_a_live_owner_are_no_garbage(bench, s3, quick_leases):
    out = bench.generate(store=s3)
    objects, store = open_objects(s3), open_store(s3)
    objects.put(f"shards/00002-{'a' * 16}/records.jsonl", b"half")
    objects.put(f"shards/00003-{'b' * 16}/records.jsonl", b"half")
    with store.own(2):
        merge(out, s3)
        assert [name for name in objects.names("shards") if name[6:] in ("a" * 16, "b" * 16)] == [f"00002-{'a' * 16}"]
    merge(out, s3)
    assert not [name for name in objects.names("shards") if name.endswith("a" * 16)]
    assert verify(out, s3) == []


def test_nothing_tells_where_the_store_is_or_how_it_is_opened(bench, s3, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    out = bench.generate(store=s3)
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content and b"AKIDEXAMPLE" not in content
            assert s3.encode() not in content or path.name == "run.json"
    objects = open_objects(s3)
    assert all(SECRET.encode() not in objects.get(f"shards/{key}") for key in objects.sizes("shards"))
    printed = capfd.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("s3://no-such-bucket/x", "no such bucket"),
        ("s3:/shards/x", "two slashes"),
        ("nothing://x/y", "nothing"),
        ("s3://", "names no place"),
        ("s3://[::1/x", "cannot be read"),
        ("s3://shards/../x", "holds '..'"),
    ],
)
def test_a_store_that_cannot_be_used_is_a_users_error(s3, url, word):
    with pytest.raises(ConfigError, match=word):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "sftp://me:word@host/x",
        "s3://key:word@shards/x",
        "sftp://me:wo/word@host/x",
        "https://host/x?signature=word@",
        "zip://a::sftp://me:word@127.0.0.1:1/x",
        "simplecache::sftp://me:word@127.0.0.1:1/x",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_before_anything_shows_it(bench, url):
    out = bench.generate()
    for use in (lambda: open_objects(url), lambda: check_out(out, url)):  # the latter would name both stores
        with pytest.raises(ConfigError, match="The store's URL") as caught:
            use()
        assert "word" not in str(caught.value).replace("password", "")


def test_what_a_file_system_raises_is_an_error_of_the_network_or_the_users():
    with pytest.raises(OSError, match="http://127.0.0.1:9/x"):
        FileStore("http://127.0.0.1:9/x").create("a", b"x")  # it can read only: NotImplementedError


def test_a_store_is_looked_at_before_models_are_loaded(bench, s3):
    with pytest.raises(ConfigError, match="no such bucket"):
        generate(
            bench.data,
            "missing",
            bench.adapter,
            bench.root / "o",
            17,
            1,
            make_settings(),
            1,
            LOADER,
            "s3://no-such-bucket/x",
        )


def test_missing_credentials_are_said(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("engine.generation.object_store.RETRY", {"max_retries": 0})
    store = ObjectStore(s3)
    with pytest.raises(ConfigError, match="there are no credentials"):
        with store._plainly("x"):
            raise store._calls.exceptions.GenericError("Error performing PUT http://169.254.169.254/latest/api/token")


def test_a_server_that_is_not_there_is_an_error_of_the_network(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("engine.generation.object_store.RETRY", {"max_retries": 0})
    with pytest.raises(OSError, match="error sending request|Error performing") as caught:
        open_objects("s3://shards/x")
    assert SECRET not in str(caught.value)


def test_a_store_belongs_to_one_plan_and_a_folder_to_one_store(bench, s3):
    out = bench.generate(store=s3)
    before = result(out)
    with pytest.raises(RunConflict, match="holds another run.*seed: 1 -> 2"):
        bench.generate("other", seed=2, store=s3)
    with pytest.raises(RunConflict, match=rf"{s3}, not in the folder itself"):
        bench.generate()
    local = bench.generate("local")
    with pytest.raises(RunConflict, match=f"in the folder itself, not {s3}"):
        bench.generate("local", store=s3)
    with pytest.raises(ConfigError, match="no URL"):
        bench.generate("third", store=str(bench.root / "far"))
    assert result(out) == before == result(local)
    open_objects(f"{s3}/full").put("mine", b"x")
    with pytest.raises(RunConflict, match="is not empty \\(mine\\)"):
        bench.generate("fourth", store=f"{s3}/full")
    with pytest.raises(DatasetError, match=r"holds no plan\.json"):
        load_plan(f"{s3}/nothing")


def test_a_file_beside_the_plan_can_be_mapped(place):
    store = open_store(place)
    sha256 = store.write_bytes("items.npy", [b"one", b"two"])
    path = store.local_copy("items.npy")
    assert path.read_bytes() == b"onetwo" == store.read_bytes("items.npy") and len(sha256) == 64
    assert store.local_copy("items.npy") == path
    store.write_bytes("items.npy", [b"three"])
    assert store.local_copy("items.npy").read_bytes() == b"three" and path.read_bytes() == b"onetwo"
    assert store.names() == ["items.npy"]
