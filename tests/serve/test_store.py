"""The store: accepted jobs are never lost nor finished twice, turns are fair, and one transaction is all or nothing."""

import dataclasses
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.serve.databases import KINDS, emptied, hasty, url_of

from limner.errors import BadInput, NotSaved
from limner.serve import store as module
from limner.serve.store import ATTEMPTS, Store
from limner.serve.tables import Job, NewPicture

OWNERS, WORKERS, KEYS = ("anna", "ben", "cleo"), ("w1", "w2"), ("k1", "k2", None)
LEASE = 30.0


class Clock:
    """Seconds that pass by one a look."""

    now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, tmp_path)


@pytest.fixture
def store(url: str, clock: Clock):
    store = hasty(Store(url, clock))
    yield store
    store.close()


def add(store: Store, owner: str = "anna", key: str | None = None, count: int = 1, **wishes: object) -> Job:
    return store.add_job(owner, {"prompt": "a red apple", **wishes}, count, key, 24)


def picture(number: int = 0, sha256: str = "ab" * 32, **fields: object) -> NewPicture:
    made = {"bytes": 9, "width": 8, "height": 8, "prompt": "a red apple", "seed": 7, "recipe": {"seed": 7}} | fields
    return NewPicture(number, sha256, **made)


def painted(store: Store, *pictures: NewPicture, owner: str = "anna") -> Job:
    job = add(store, owner, count=len(pictures))
    claimed = next(mine for mine in store.claim("w", LEASE) if mine.id == job.id)
    assert store.finish(job.id, claimed.attempt, "w", pictures)
    return store.job(job.id)


def test_a_job_goes_from_accepted_to_done(store):
    wishes = {"prompt": "Ä\0 😀 \ud83d", "seed": 2**63 - 1, "size": [1, 2.5, None]}
    job = store.add_job("anna", wishes, 2, "k", 24)
    assert job == store.job(job.id) and job.wishes == wishes and job.id.startswith("j_") and len(job.id) == 18
    assert (job.state, job.attempt, job.place, job.worker, job.started) == ("queued", 0, 1.0, "", None)
    (mine,) = store.claim("w", LEASE)
    assert mine == dataclasses.replace(
        job, state="running", attempt=1, worker="w", started=mine.started, lease=mine.started + LEASE
    )
    assert store.progress(job.id, 1, 5) and store.job(job.id).steps_done == 5
    new = [picture(0), picture(1, "cd" * 32)]
    assert store.finish(job.id, 1, "w", new)
    done = store.job(job.id)
    assert (done.state, done.steps_done, done.lease) == ("done", 24, 0.0) and done.finished > done.started
    kept = store.pictures_of([job.id, "j_none"])
    assert [one.id for one in kept[job.id]] == [one.id for one in new] and kept["j_none"] == []
    assert kept[job.id][0].owner == "anna" and kept[job.id][0].recipe == {"seed": 7}
    assert store.claim("w", LEASE) == []


@pytest.mark.parametrize("attempt, worker", [(0, "w"), (2, "w"), (1, "v")])
def test_who_does_not_hold_a_job_cannot_end_it(store, attempt, worker):
    job = add(store)
    store.claim("w", LEASE)
    assert not store.finish(job.id, attempt, worker, [picture()])
    assert not store.fail(job.id, attempt, worker, "no")
    assert store.renew(worker, [(job.id, attempt)], LEASE) == []
    assert store.pictures() == [] and store.job(job.id).state == "running"
    assert store.finish(job.id, 1, "w", [picture()]) and not store.finish(job.id, 1, "w", [picture()])
    assert not store.fail(job.id, 1, "w", "too late") and len(store.pictures()) == 1


def test_a_finish_that_breaks_leaves_no_row_and_the_job_running(store):
    job = add(store, count=2)
    store.claim("w", LEASE)
    with pytest.raises(NotSaved, match=r"cannot be used: .*(UNIQUE|unique).*; nothing was changed"):
        store.finish(job.id, 1, "w", [picture(0), picture(0)])
    assert store.pictures() == [] and store.job(job.id).state == "running"
    assert store.finish(job.id, 1, "w", [picture(0), picture(1)])


def test_a_job_whose_worker_is_silent_is_claimed_anew(store, clock):
    job = add(store)
    store.claim("w", LEASE)
    assert store.claim("v", LEASE) == []
    assert store.renew("w", [(job.id, 1)], LEASE) == [job.id]
    clock.now += LEASE
    (mine,) = store.claim("v", LEASE)
    assert (mine.id, mine.attempt, mine.worker) == (job.id, 2, "v")
    assert store.renew("w", [(job.id, 1)], LEASE) == [] and not store.progress(job.id, 1, 3)
    assert not store.finish(job.id, 1, "w", [picture()]) and store.finish(job.id, 2, "v", [picture()])


def test_what_kills_every_worker_is_given_up_and_kills_nobody_beside_it(store, clock):
    bad, good = add(store, key="k"), add(store, "ben", key="k")
    assert {job.id for job in store.claim("w", LEASE)} == {bad.id, good.id}
    for attempt in range(2, ATTEMPTS + 1):
        clock.now += 2 * LEASE
        for _ in range(2 if attempt == 2 else 1):
            (mine,) = store.claim("w", LEASE)  # alone, though the key is one
            if mine.id == good.id:
                assert store.finish(good.id, mine.attempt, "w", [picture()])
            else:
                assert (mine.id, mine.attempt) == (bad.id, attempt)
    clock.now += 2 * LEASE
    assert store.claim("w", LEASE) == []
    assert store.job(good.id).state == "done" and store.job(bad.id).state == "failed"
    assert store.job(bad.id).error == "its worker died 5 times at it, so it is not tried again"


def test_a_job_that_saw_a_worker_die_rides_with_nobody(store):
    bad = add(store, key="k")
    store.claim("w", LEASE)
    store.give_back("w", died=True)
    good = add(store, "ben", key="k")
    assert [job.id for job in store.claim("w", LEASE)] == [good.id]  # whose turn it is
    assert [job.id for job in store.claim("w", LEASE)] == [bad.id]


def test_a_worker_that_stops_gives_back_what_it_holds(store):
    job, other = add(store), add(store, "ben")
    for _ in range(ATTEMPTS + 1):  # which counts against nobody
        assert next(mine.id for mine in store.claim("w", LEASE, most=1)) in (job.id, other.id)
        assert len(store.give_back("w")) == 1 and store.give_back("v") == []
    assert store.queue_length() == 2 and store.job(job.id).state == "queued"
    for _ in range(2 * ATTEMPTS):
        assert store.claim("w", LEASE, most=1)
        store.give_back("w", died=True)
    assert store.claim("w", LEASE) == []
    assert [one.state for one in store.jobs()] == ["failed", "failed"]


def test_owners_take_turns(store):
    for owner, jobs in (("anna", 6), ("ben", 2), ("cleo", 3)):
        for _ in range(jobs):
            add(store, owner)
    order = sorted(store.ahead(), key=store.ahead().get)
    claimed = [store.claim("w", LEASE)[0] for _ in range(11)]
    assert [job.owner[0] for job in claimed] == list("abcabcacaaa")
    assert [job.id for job in claimed] == order  # as was told before
    add(store, "anna"), add(store, "ben")
    assert store.claim("w", LEASE)[0].owner == "ben"  # served longest ago
    assert [job.owner for job in store.claim("w", LEASE)] == ["anna"]


def test_jobs_of_one_key_are_painted_together_and_owners_take_turns_there_too(store):
    for owner, key, count in (
        ("anna", "k", 3), ("anna", "k", 2), ("anna", "l", 1), ("anna", "k", 1), ("ben", "k", 2), ("ben", None, 1),
        ("cleo", None, 1),
    ):  # fmt: skip
        add(store, owner, key, count)
    assert [(job.owner, job.count) for job in store.claim("w", LEASE)] == [
        ("anna", 3),
        ("ben", 2),
        ("anna", 2),
        ("anna", 1),
    ]
    assert [(job.owner, job.key) for job in store.claim("w", LEASE)] == [("cleo", None)]
    assert [(job.owner, job.key) for job in store.claim("w", LEASE)] == [("anna", "l")]
    big = add(store, "cleo", "k", 50)
    assert big.id in [job.id for _ in range(2) for job in store.claim("w", LEASE)]  # too many, so alone


def test_a_job_that_waits_moves_before_another_of_its_owner(store):
    a, b, c, d = (add(store) for _ in range(4))
    other, order = add(store, "ben"), lambda: [id for id in store.ahead() if store.job(id).owner == "anna"]
    assert store.move(d.id, "anna", b.id) and order() == [a.id, d.id, b.id, c.id]
    assert store.move(a.id, "anna", None) and order() == [d.id, b.id, c.id, a.id]
    assert store.move(a.id, "anna", d.id) and order() == [a.id, d.id, b.id, c.id]
    assert not store.move(a.id, "anna", other.id) and not store.move(a.id, "ben", None)
    assert not store.move("j_none", "anna", None) and not store.move(a.id, "anna", a.id)
    assert store.claim("w", LEASE)[0].id == a.id
    assert not store.move(a.id, "anna", None) and not store.move(b.id, "anna", a.id)  # it runs
    place = store.job(a.id).place
    assert store.move(b.id, "anna", d.id) and store.job(a.id).place == place  # what runs keeps its own
    with store.engine.begin() as connection:  # as two servers may have given one place twice
        connection.execute(module.jobs_.update().values(place=1.0))
    for one in (b, c, d):
        rest = [id for id in order() if id != one.id]
        assert store.move(one.id, "anna", rest[0]) and order() == [one.id, *rest]


def test_a_job_is_cancelled_by_its_owner_in_the_queue_and_at_work(store):
    waits, runs = add(store), add(store)
    assert not store.cancel(waits.id, "ben") and store.move(runs.id, "anna", waits.id)
    (mine,) = store.claim("w", LEASE)
    assert store.cancel(waits.id, "anna") and store.cancel(runs.id)
    assert not store.cancel(waits.id, "anna")
    assert store.renew("w", [(runs.id, mine.attempt)], LEASE) == [] and not store.progress(runs.id, mine.attempt, 3)
    assert not store.finish(runs.id, mine.attempt, "w", [picture()]) and store.claim("w", LEASE) == []
    assert [job.state for job in store.jobs()] == ["cancelled"] * 2 and store.queue_length() == 0


def test_jobs_are_listed_in_pages(store):
    made = [add(store, owner).id for owner in ("anna", "ben", "anna", "anna")][::-1]
    assert [job.id for job in store.jobs(limit=3)] == made[:3]
    assert [job.id for job in store.jobs(before=made[1], limit=1)] == made[2:3]
    assert [job.id for job in store.jobs("anna")] == [made[0], made[1], made[3]]
    assert store.jobs(before="j_none") == [] and len(store.jobs(states=["running"])) == 0
    store.claim("w", LEASE, 1)
    assert len(store.jobs(states=("queued", "done"))) == 3 and store.queue_length("anna") == 2
    assert store.ahead() == {id: i for i, id in enumerate([made[2], made[1], made[0]], 1)}  # one runs


def test_pictures_are_found_by_the_words_of_their_prompt(store):
    prompts = ["A red Äpfel, 50% off", "ein roter apfel", "red_apple ﬁsh", "a\0b"]
    ids = [store.pictures_of([painted(store, picture(prompt=prompt)).id]) for prompt in prompts]
    ids = [next(iter(found.values()))[0].id for found in ids]

    def found(query: str) -> list[int]:
        return sorted(ids.index(one.id) for one in store.pictures(query=query))

    assert found("") == [0, 1, 2, 3] and found("  RED ") == [0, 2] and found("äpfel red") == [0]
    assert found("apfel red") == [] and found("50%") == [0] and found("d_a") == [2] and found("d%a") == []
    assert (
        found("fish") == [2] and found("'; drop table pictures; --") == [] and found("\\") == [] and found("ab") == [3]
    )


def test_pictures_are_listed_in_pages_by_owner(store):
    painted(store, picture(0), picture(1), picture(2)), painted(store, picture(0), owner="ben")
    every = [(one.owner, one.number) for one in store.pictures()]
    assert every == [("ben", 0), ("anna", 2), ("anna", 1), ("anna", 0)]
    second = store.pictures("anna", limit=2)[-1]
    assert [one.number for one in store.pictures("anna", before=second.id)] == [0]


def test_a_deleted_picture_can_be_restored_until_it_is_purged(store, clock):
    (
        painted(store, picture(0, "aa" * 32), picture(1, "bb" * 32), picture(2, "cc" * 32)),
        painted(store, picture(0, "bb" * 32)),
    )
    store.add_job("anna", {"image": f"upload:{store.add_upload('anna', 'cc' * 32, 9, 'image/png').id}"}, 1, None, 1)
    first = {one.number: one for one in store.pictures() if one.job == store.pictures()[-1].job}
    assert not store.delete(first[0].id, "ben") and store.delete(first[0].id, "anna") and not store.delete(first[0].id)
    assert [one.id for one in store.pictures(deleted=True)] == [first[0].id]
    assert store.picture(first[0].id).deleted and store.pictures_of([first[0].job])[first[0].job] == [
        first[1],
        first[2],
    ]
    assert store.restore(first[0].id) and not store.restore(first[0].id) and store.picture(first[0].id) == first[0]
    assert [store.delete(one.id) for one in first.values()] == [True] * 3
    assert store.purge(clock.now - 1) == [] or len(store.pictures(deleted=True)) < 3
    assert store.purge(clock.now + 1) in (["aa" * 32], []) and store.pictures(deleted=True) == []
    assert store.digests() == {"bb" * 32, "cc" * 32} and not store.restore(first[0].id)


def test_the_words_of_a_job_go_with_its_last_picture_and_uploads_with_their_last_job(store, clock):
    used, unused = (store.add_upload("anna", letter * 32, 9, "image/png").id for letter in ("ab", "cd"))
    job = store.add_job("anna", {"controls": [{"image": f"canny:upload:{used}"}]}, 2, "k", 1)
    held = store.claim("w", 9.0)[0]
    store.finish(job.id, held.attempt, "w", [picture(0, "aa" * 32), picture(1, "bb" * 32)])
    waits, failed = (store.add_job("anna", {"prompt": words}, 1, None, 1).id for words in ("waits", "failed"))
    store.cancel(failed)
    clock.now += 100
    assert store.purge(clock.now - 1) == ["cd" * 32] and store.upload(unused) is None
    assert store.job(failed) is None and store.job(waits) and store.job(job.id) and store.upload(used)
    first, second = store.pictures_of([job.id])[job.id]
    store.delete(first.id)
    clock.now += 100
    assert store.purge(clock.now - 1) == ["aa" * 32] and store.job(job.id), "its other picture is still there"
    store.delete(second.id)
    assert store.purge(clock.now - 1) == [], "what was just deleted can be restored"
    clock.now += 100
    assert store.purge(clock.now - 1) == ["ab" * 32, "bb" * 32] and store.job(job.id) is None
    assert store.upload(used) is None and store.job(waits)


def test_uploads_tokens_meta_and_the_log(store, clock):
    upload = store.add_upload("anna", "ab" * 32, 2**33, "image/webp")
    assert store.upload(upload.id) == upload and store.upload("u_none") is None
    token = store.add_token("laptop", "hash", "paint read", expires=clock.now + 500)
    assert store.find_token("hash").id == token.id and store.find_token("other") is None
    used = store.tokens()[0].used
    store.find_token("hash")
    assert store.tokens()[0].used == used  # the same minute
    clock.now += module.USED
    store.find_token("hash")
    assert store.tokens()[0].used > used
    clock.now += 500
    assert store.find_token("hash") is None  # expired
    second = store.add_token("phone", "hash2", "read")
    assert store.revoke(second.id) and not store.revoke(second.id) and store.find_token("hash2") is None
    assert store.meta("x") is None
    for value in ("1", "2"):
        store.set_meta("x", value)
        assert store.meta("x") == value
    store.audit("anna", "paint", "j_1", "a\0b"), store.audit("ben", "look")
    assert [(line.who, line.detail) for line in store.audits()] == [("ben", ""), ("anna", "ab")]


def test_what_was_accepted_is_there_after_a_restart(url):
    store = Store(url)
    job = add(store)
    store.close()
    again = Store(url)
    assert again.job(job.id) == job
    again.close()


def test_a_database_of_a_later_limner_is_left_alone(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'x.db'}")
    store.set_meta("schema", "99")
    store.close()
    with pytest.raises(BadInput, match=r"x\.db is a database of version 99; this Limner knows up to 1"):
        Store(str(tmp_path / "x.db"))


def test_ids_and_words_of_any_kind_find_nothing_and_break_nothing(store):
    for odd in ("", "\0", "j_\0", "\ud800", "x" * 100_000, "';--"):
        assert store.job(odd) is None and store.picture(odd) is None and store.upload(odd) is None
        assert not store.cancel(odd, odd) and not store.move(odd, odd, odd) and not store.delete(odd)
        assert store.find_token(odd) is None and store.jobs(odd, before=odd) == [] and store.meta(odd) is None
        assert store.pictures(odd, query=odd, before=odd) == []


def test_a_database_that_is_none_or_cannot_be_made_is_told(tmp_path):
    (tmp_path / "x.db").write_bytes(b"a diary, not a database" * 100)
    with pytest.raises(NotSaved, match=r"x\.db cannot be used: file is not a database; nothing was changed"):
        Store(str(tmp_path / "x.db"))
    with pytest.raises(NotSaved, match=r"could not be made: (Not a directory|File exists)"):
        Store(str(tmp_path / "x.db" / "y.db"))
    Store(str(tmp_path / "new" / "z.db")).close()
    assert (tmp_path / "new" / "z.db").stat().st_mode & 0o077 == 0


def test_a_server_that_is_away_is_told_without_its_password():
    with pytest.raises(
        NotSaved, match=r"^postgresql\+psycopg://limner:\*\*\*@127\.0\.0\.1:1/x cannot be used: "
    ) as told:
        Store("postgres://limner:secret@127.0.0.1:1/x")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite:", "https://example.org/x"])
def test_other_databases_are_refused_in_words(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "://" in url:
        with pytest.raises(BadInput, match=r"is no database that jobs can be kept in"):
            Store(url)
    else:
        Store(url).close()
        assert Path("sqlite:").exists()  # a path, however odd


def test_the_journal_and_the_syncs_keep_the_promise(tmp_path, monkeypatch):
    def kept(name: str) -> tuple[str, int]:
        store = Store(str(tmp_path / name))
        with store.engine.connect() as c:
            said = c.exec_driver_sql("PRAGMA journal_mode").scalar(), c.exec_driver_sql("PRAGMA synchronous").scalar()
        store.close()
        return said

    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    assert kept("old.db") == ("delete", 3)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert kept("new.db") == ("wal", 3)


def test_the_store_needs_no_torch():
    look = "import sys, limner.serve.store, limner.serve.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


def test_a_full_database_says_so_and_keeps_what_it_has(tmp_path, clock):
    store = Store(f"sqlite:///{tmp_path / 'x.db'}", clock)
    jobs = [add(store) for _ in range(3)]
    full = store.engine.pool.connect()
    pages = full.execute("PRAGMA page_count").fetchone()[0]
    full.close()
    sa.event.listen(store.engine, "begin", lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}"))
    with pytest.raises(NotSaved, match=r"x\.db cannot be used: database or disk is full; nothing was changed"):
        add(store, text="x" * 20_000)
    (mine,) = store.claim("w", LEASE)
    with pytest.raises(NotSaved, match="database or disk is full"):
        store.finish(mine.id, 1, "w", [picture(recipe={"x": "x" * 20_000})])
    assert store.job(mine.id).state == "running" and store.pictures() == []
    assert store.finish(mine.id, 1, "w", [picture()])  # a smaller one has room
    assert [job.id for job in store.jobs()][::-1] == [job.id for job in jobs]


def test_two_servers_start_on_one_empty_database_and_share_its_jobs(url):
    wait = threading.Barrier(2)

    def start(_: int) -> Store:
        wait.wait()
        return Store(url)

    with ThreadPoolExecutor(4) as pool:
        stores = [hasty(store) for store in pool.map(start, range(2))]
        jobs = list(pool.map(lambda i: add(stores[i % 2], OWNERS[i % 3], "k").id, range(36)))
        assert stores[0].ahead() == stores[1].ahead() and set(stores[0].ahead()) == set(jobs)

        def work(i: int) -> list[str]:
            store, worker, done = stores[i % 2], f"w{i}", []
            while claimed := store.claim(worker, LEASE, most=3):
                done += [job.id for job in claimed if store.finish(job.id, job.attempt, worker, [picture()])]
            return done

        assert Counter(id for done in pool.map(work, range(4)) for id in done) == Counter(jobs)
    assert {job.attempt for job in stores[0].jobs(limit=99)} == {1} and len(stores[1].pictures(limit=99)) == 36
    for store in stores:
        store.close()


def test_a_writer_waits_for_another_and_readers_wait_for_nobody_long(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'x.db'}")
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda i: add(store, OWNERS[i % 3]).id, range(32)))) == 32
        assert set(pool.map(lambda _: store.queue_length(), range(32))) == {32}
    store.close()


class Queue(RuleBasedStateMachine):
    """The store beside a model of it: lists in which order is plain to see."""

    url = ""
    lease = 9.0  # of Clock's seconds: a few steps, so that jobs are often stolen

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = emptied(hasty(Store(self.url, self.clock)))
        self.line: dict[str, list[str]] = {owner: [] for owner in OWNERS}  # every job of an owner, in its order
        self.jobs: dict[str, Job] = {}  # as they should be
        self.held: list[Job] = []  # what workers believe to hold
        self.finished: Counter[str] = Counter()
        self.served = dict.fromkeys(OWNERS, 0.0)
        self.tries: Counter[str] = Counter()  # claims that were not given back in peace

    def teardown(self) -> None:
        self.store.close()

    def set(self, id: str, **changes: object) -> None:
        self.jobs[id] = dataclasses.replace(self.jobs[id], **changes)

    def open(self, job: Job) -> bool:
        return job.state == "queued" or (job.state == "running" and job.lease < self.clock.now)

    def turns(self) -> list[Job]:
        """The jobs in the order in which they should be taken, one by one."""
        queues = {owner: [self.jobs[id] for id in ids if self.open(self.jobs[id])] for owner, ids in self.line.items()}
        since = {owner: min((job.created for job in queue), default=0) for owner, queue in queues.items()}
        found, owners = [], cycle(sorted(queues, key=lambda owner: (self.served[owner], since[owner])))
        while any(queues.values()):
            if queue := queues[next(owners)]:
                found.append(queue.pop(0))
        return found

    def end(self, job: Job, ended: bool, state: str) -> None:
        now = self.jobs[job.id]
        assert ended == (now.state == "running" and (now.attempt, now.worker) == (job.attempt, job.worker))
        if ended:
            self.set(job.id, state=state)

    @initialize()
    def there_is_a_queue(self):
        for i in range(9):
            self.add(OWNERS[i % 3 and i % 2], KEYS[i % 3], 1 + i % 3)

    @rule(owner=st.sampled_from(OWNERS), key=st.sampled_from(KEYS), count=st.integers(1, 4))
    def add(self, owner, key, count):
        job = self.store.add_job(owner, {}, count, key, 24)
        self.jobs[job.id] = job
        self.line[owner].append(job.id)

    @rule(worker=st.sampled_from(WORKERS), most=st.integers(1, 8))
    def claim(self, worker, most):
        claimed = self.store.claim(worker, self.lease, most)
        for job in list(self.jobs.values()):
            if self.open(job) and self.tries[job.id] >= ATTEMPTS:
                self.set(job.id, state="failed")
        expected, room, line = [], most, self.turns()
        for job in line:
            first = not expected
            alike = not first and job.key == line[0].key is not None and not self.tries[line[0].id]
            if first or (alike and not self.tries[job.id] and job.count <= room):
                expected.append(job.id)
                room -= job.count
        assert [job.id for job in claimed] == expected
        for job in claimed:
            assert job.attempt == self.jobs[job.id].attempt + 1 and job.state == "running"
            self.jobs[job.id] = job
            self.tries[job.id] += 1
            self.served[job.owner] = self.clock.now
        self.held += claimed

    @precondition(lambda self: self.held)
    @rule(back=st.integers(0, 5), how=st.sampled_from(["finish", "finish", "fail", "renew"]))
    def end_or_renew(self, back, how):
        job = self.held[-1 - back % len(self.held)]  # mostly one of the last, which may be held still
        if how == "finish":
            new = [picture(number) for number in range(job.count)]
            ended = self.store.finish(job.id, job.attempt, job.worker, new)
            self.finished[job.id] += ended
            self.end(job, ended, "done")
        elif how == "fail":
            self.end(job, self.store.fail(job.id, job.attempt, job.worker, "it could not be done"), "failed")
        else:
            kept = self.store.renew(job.worker, [(job.id, job.attempt)], self.lease)
            self.end(job, kept == [job.id], "running")
            if kept:
                self.set(job.id, lease=self.clock.now + self.lease)

    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def cancel(self, data, owner):
        if self.line[owner]:
            id = data.draw(st.sampled_from(self.line[owner]))
            assert self.store.cancel(id, owner) == (self.jobs[id].state in ("queued", "running"))
            if self.jobs[id].state in ("queued", "running"):
                self.set(id, state="cancelled")

    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def move(self, data, owner):
        line = self.line[owner]
        waiting = [id for id in line if self.jobs[id].state == "queued"]
        if not line:
            return
        id, before = data.draw(st.sampled_from(line)), data.draw(st.sampled_from([*line, None]))
        can = id in waiting and before != id and (before is None or before in waiting)
        assert self.store.move(id, owner, before) == can
        if can:
            order = [other for other in waiting if other != id]
            order.insert(order.index(before) if before else len(order), id)
            dealt = iter(order)
            self.line[owner] = [next(dealt) if other in waiting else other for other in line]

    @rule(worker=st.sampled_from(WORKERS), died=st.booleans())
    def give_back(self, worker, died):
        back = self.store.give_back(worker, died)
        assert sorted(back) == sorted(
            job.id for job in self.jobs.values() if job.state == "running" and job.worker == worker
        )
        for id in back:
            self.set(id, state="queued")
            self.tries[id] -= not died

    @rule()
    def leases_run_out(self):
        self.clock.now += self.lease

    @invariant()
    def nothing_is_lost_and_nothing_is_doubled(self):
        assert {job.id: job.state for job in self.store.jobs(limit=999)} == {
            i: job.state for i, job in self.jobs.items()
        }
        kept = self.store.pictures_of(self.jobs)
        done = {id for id, job in self.jobs.items() if job.state == "done"}
        assert all(len(kept[id]) == (job.count if id in done else 0) for id, job in self.jobs.items())
        assert all(count <= 1 for count in self.finished.values())

    @invariant()
    def everybody_is_told_the_order_that_is_kept(self):
        told = list(self.store.ahead())
        assert told == [job.id for job in self.turns()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_queue_is_what_its_model_says(kind, tmp_path):
    queue = type("Queue", (Queue,), {"url": url_of(kind, tmp_path)})
    examples = 8 if kind == "sqlite" else 2
    run_state_machine_as_test(queue, settings=settings(max_examples=examples, stateful_step_count=50))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_queue_is_what_its_model_says_for_long(kind, tmp_path):
    queue = type("Queue", (Queue,), {"url": url_of(kind, tmp_path)})
    run_state_machine_as_test(queue, settings=settings(max_examples=100, stateful_step_count=60))
