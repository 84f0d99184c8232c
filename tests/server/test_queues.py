"""The queue to the network, kept queries, rates, and the lock: parts of the server that need no gallery."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import threading
import time

import pytest
import torch

pytest.importorskip("fastapi", reason="the server needs pip install 'distcam[serve]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from distcam.encoders import Encoding
from distcam.server.live_gallery import ReadWriteLock
from distcam.server.middleware import RateLimit
from distcam.server.queues import Batcher
from distcam.server.refusals import ApiError
from distcam.server.service import CachedQuery, QueryCache


def run(test, work, **options):
    """Run a test with a queue of its own."""

    async def main():
        batcher = Batcher(work, **{"max_batch": 4, "window_s": 0.05, "capacity": 8, **options})
        try:
            return await test(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


def test_everybody_gets_the_result_of_his_own_item_and_batches_are_never_too_large():
    sizes = []

    async def test(batcher):
        return [done.result for done in await asyncio.gather(*(batcher.submit(i) for i in range(8)))]

    def work(items):
        sizes.append(len(items))
        return [item * item for item in items]

    assert run(test, work) == [i * i for i in range(8)]
    assert max(sizes) <= 4
    assert len(sizes) < 8


def test_what_arrives_while_the_network_works_shares_the_next_batch():
    started, go_on = threading.Event(), threading.Event()
    batches = []

    def work(items):
        batches.append(items)
        started.set()
        go_on.wait(5)
        return items

    async def test(batcher):
        first = asyncio.ensure_future(batcher.submit("a"))
        await asyncio.to_thread(started.wait, 5)
        others = [asyncio.ensure_future(batcher.submit(name)) for name in "bcd"]
        await asyncio.sleep(0)
        assert len(batcher) == 3
        go_on.set()
        await asyncio.gather(first, *others)

    run(test, work)
    assert batches == [["a"], ["b", "c", "d"]]


def test_the_first_waits_for_those_on_their_way_but_not_for_nobody():
    batches = []

    async def late(batcher):
        with batcher.expecting():
            await asyncio.sleep(0.02)
        return await batcher.submit("late")

    async def test(batcher):
        second = asyncio.ensure_future(late(batcher))
        await asyncio.sleep(0)
        await asyncio.gather(batcher.submit("early"), second)
        start = time.perf_counter()
        await batcher.submit("alone")
        return time.perf_counter() - start

    alone = run(test, lambda items: batches.append(items) or items, window_s=2.0)
    assert batches == [["early", "late"], ["alone"]]
    assert alone < 1.0  # it did not wait for the window


def test_the_window_ends_the_waiting():
    async def test(batcher):
        with batcher.expecting():  # never comes
            return await asyncio.wait_for(batcher.submit(1), 5)

    assert run(test, lambda items: items, window_s=0.01).result == 1


def test_an_exception_reaches_everyone_in_its_batch_and_nobody_else():
    def work(items):
        if "bad" in items:
            raise ValueError("no")
        return items

    async def test(batcher):
        with batcher.expecting():
            both = asyncio.gather(batcher.submit("bad"), batcher.submit("good"), return_exceptions=True)
            errors = await both
        return errors, (await batcher.submit("good")).result

    errors, later = run(test, work, max_batch=2)
    assert [type(error) for error in errors] == [ValueError, ValueError]
    assert later == "good"


def test_who_is_cancelled_while_waiting_is_left_out():
    go_on, seen = threading.Event(), []

    def work(items):
        go_on.wait(5)
        seen.extend(items)
        return items

    async def test(batcher):
        first = asyncio.ensure_future(batcher.submit("first"))
        await asyncio.sleep(0.02)
        others = [asyncio.ensure_future(batcher.submit(name)) for name in ("gone", "stays")]
        await asyncio.sleep(0)
        others[0].cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, others[1])

    run(test, work)
    assert seen == ["first", "stays"]


def test_a_full_queue_and_a_closed_one_refuse_with_503_and_a_time():
    go_on = threading.Event()

    async def test(batcher):
        tasks = [asyncio.ensure_future(batcher.submit(0))]
        await asyncio.sleep(0.05)  # that one is at work
        tasks += [asyncio.ensure_future(batcher.submit(i)) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="2 images wait") as full:
            await batcher.submit(9)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="shutting down") as closed:
            await batcher.submit(9)
        go_on.set()
        await closing
        assert [done.result for done in await asyncio.gather(*tasks)] == [0, 0, 1]  # those that waited are served
        return full.value, closed.value

    for refusal in run(test, lambda items: go_on.wait(5) and items, capacity=2):
        assert refusal.status == 503
        assert int(refusal.response().headers["Retry-After"]) >= 1


def encoding(channels=4, batch=1):
    return Encoding(torch.ones(batch, channels, 2, 2), torch.ones(batch, channels), torch.ones(batch, channels))


def test_kept_queries_are_bounded_in_bytes_and_the_least_recently_used_leave():
    one = CachedQuery(encoding(), (1, 1), 0.0).nbytes
    kept = QueryCache(max_bytes=2 * one, max_age_s=100)
    a, b = kept.put(encoding(), (1, 1)), kept.put(encoding(), (2, 2))
    assert kept.nbytes == 2 * one
    kept.get(a)
    c = kept.put(encoding(), (3, 3))
    assert kept.get(a).size == (1, 1)
    assert kept.get(c).size == (3, 3)
    with pytest.raises(ApiError, match="send the image again") as refused:
        kept.get(b)
    assert refused.value.status == 410
    assert kept.nbytes == 2 * one
    with pytest.raises(ApiError):
        kept.get(kept.put(encoding(channels=100), (4, 4)))  # larger than all that may be kept


@pytest.mark.parametrize("how", ["alone", "of a batch", "expanded", "one tensor twice", "halves", "turned"])
def test_kept_queries_count_all_memory_that_their_tensors_hold(how):
    made = {
        "alone": encoding(),
        "of a batch": encoding(batch=8)[3],
        "expanded": Encoding(torch.ones(1).expand(1, 4, 2, 2), torch.ones(1).expand(1, 4), torch.ones(1, 4)),
        "one tensor twice": Encoding(torch.ones(1, 4, 2, 2), *[torch.ones(1, 4)] * 2),
        "halves": Encoding(torch.ones(1, 4, 2, 2).half(), torch.ones(1, 4).half(), torch.ones(1, 4).half()),
        "turned": Encoding(torch.ones(1, 2, 2, 4).permute(0, 3, 1, 2), torch.ones(1, 8)[:, ::2], torch.ones(1, 4)),
    }[how]
    kept = QueryCache(max_bytes=1 << 20, max_age_s=100)
    held = kept.get(kept.put(made, (1, 1))).encoding
    storages = [part.untyped_storage() for part in (held.feature_map, held.pooled, held.embedding)]
    assert kept.nbytes >= sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    whole = CachedQuery(encoding(batch=8)[3], (1, 1), 0.0)  # not copied, it would hold its whole batch
    assert whole.nbytes >= encoding(batch=8).feature_map.nbytes


def test_kept_queries_grow_old():
    now = [0.0]
    kept = QueryCache(max_bytes=1 << 20, max_age_s=10, clock=lambda: now[0])
    token = kept.put(encoding(), (1, 1))
    now[0] = 9
    kept.get(token)
    now[0] = 18
    kept.get(token)
    now[0] = 29
    with pytest.raises(ApiError):
        kept.get(token)
    assert kept.nbytes == 0


def test_a_kept_query_does_not_hold_the_batch_it_came_in_and_tokens_do_not_repeat():
    kept = QueryCache(max_bytes=1 << 20, max_age_s=10)
    tokens = {kept.put(encoding(batch=8)[3], (1, 1)) for _ in range(50)}
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 22
    held = kept.get(tokens.pop()).encoding
    assert held.feature_map.untyped_storage().nbytes() == held.feature_map.numel() * 4


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.5, 20))
def test_no_more_requests_pass_than_the_rate_and_one_bucket_allow(gaps, rate):
    now = [0.0]
    limit = RateLimit(rate, clock=lambda: now[0])
    passed = 0
    for gap in gaps:
        now[0] += gap
        wait = limit.wait_for("client")
        passed += wait == 0
        assert wait >= 0
    assert passed <= max(1, 2 * rate) + now[0] * rate + 1e-6


def test_who_waits_as_long_as_he_is_told_may_pass():
    now = [0.0]
    limit = RateLimit(0.25, clock=lambda: now[0])
    assert limit.wait_for("a") == 0
    wait = limit.wait_for("a")
    assert wait == 4
    now[0] += wait
    assert limit.wait_for("a") == 0


def test_clients_are_forgotten_before_there_are_too_many(monkeypatch):
    monkeypatch.setattr("distcam.server.middleware._MOST_CLIENTS", 100)
    limit = RateLimit(1)
    for i in range(110):
        limit.wait_for(str(i))
    assert len(limit._buckets) == 100


def test_readers_share_and_a_writer_is_alone_and_not_starved():
    lock, log = ReadWriteLock(), []
    inside = threading.Event()

    def write():
        with lock.writing():
            log.append("write")

    def read():
        with lock.reading():
            log.append("read")

    with lock.reading(), lock.reading():
        writer = threading.Thread(target=write)
        writer.start()
        inside.wait(0.05)
        reader = threading.Thread(target=read)  # comes after the writer, so it waits for him
        reader.start()
        inside.wait(0.05)
        assert log == []
    writer.join(5)
    reader.join(5)
    assert log == ["write", "read"]


def test_the_doctests_are_right():
    for name in ("answers", "refusals"):
        module = importlib.import_module(f"distcam.server.{name}")
        result = doctest.testmod(module)
        assert (result.failed, result.attempted > 0) == (0, True)
