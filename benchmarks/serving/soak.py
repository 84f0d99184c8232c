"""What hostile clients cost the others: `python benchmarks serving/soak [--minutes 10] [--images 100000]`.

A server in a process of its own, on 127.0.0.1 alone, with its default limits and a gallery of that many images (most of
them vectors without an image). Honest clients, each with an address of its own (127.0.1.x), search, explain and look
around with pauses, first by themselves, then beside hostile ones (127.0.2.x) that do everything known here, over and
over: images that cost much to decode, filters that cost much to evaluate, heads and bodies that drip, end early, lie
or never end, many connections, wrong types. Printed are the honest clients' latencies without and with them, what was
refused, who had the processor (clients and server share one machine: what the clients take, the server lacks), and what
is left in the server afterwards: threads, processes, descriptors, memory, work.

Exit status 1 if the honest clients' p99 is more than three times as long beside hostile ones, if they were refused, or
if anything is left. Wall-clock: it wants a quiet machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from machine import describe_machine
from serving import hostile_clients
from serving.hostile_clients import FORM, JSON, form, image_file

from distcam.server import ServerSettings

SPARE_MIB = 50  # beside the queries that can still be explained


def main() -> int:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        gallery = gallery_of(arguments, Path(folder))
        print(describe_machine("torch", "fastapi", "uvicorn", "pillow"))
        print(f"{arguments.images} images, {arguments.honest} honest and {arguments.hostile} hostile clients, "
              f"{arguments.minutes:g} minutes, seed {arguments.seed}\n")  # fmt: skip
        with serving(gallery) as (process, port):
            honest(arguments, port, 5.0)  # warm
            before = state_of(process.pid)
            attackers = attacking(arguments, port)
            work = [work_until_now(process.pid, attackers.pid)]
            alone = honest(arguments, port, 60 * arguments.minutes * 0.3)
            work.append(work_until_now(process.pid, attackers.pid))
            attackers.send_signal(signal.SIGUSR1)
            beside = honest(arguments, port, 60 * arguments.minutes * 0.7)
            work.append(work_until_now(process.pid, attackers.pid))
            hostile = ended(attackers)
            good = report(alone, beside, hostile)
            report_work(*work)
            time.sleep(12)  # what hostile clients left open is given up after its time
            return 0 if left(process, before) and good else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--honest", type=int, default=40)
    parser.add_argument("--hostile", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds an honest client rests, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of the hostile ways alone")
    return parser.parse_args()


# --- The server -------------------------------------------------------------------------------------------------------


def gallery_of(arguments: argparse.Namespace, folder: Path) -> Path:
    """Some images, and many more vectors."""
    from distcam.encoders import Encoder
    from distcam.images import Transform
    from distcam.index import Gallery
    from distcam.index.backends import opened_for_writing
    from distcam.index.storage.segments import Entries, RowVectors
    from distcam.synthetic import blueprints, write_scenes

    write_scenes(folder / "set", classes=blueprints(8), splits={"photos": 12}, size=96, two_object_share=0.0)
    encoder = Encoder.load("conv4", weights="random", transform=Transform(64, fit="squash"))
    gallery = Gallery.build(folder / "set" / "photos", encoder, out=folder / "soak.gallery", precision="fp32")
    more, generator = max(0, arguments.images - len(gallery)), np.random.default_rng(arguments.seed)
    with opened_for_writing(gallery.folder) as writer:
        for start in range(0, more, 10_000):
            count = min(10_000, more - start)
            vectors = generator.normal(size=(count, gallery.spec.pooled_dim)).astype(np.float32)
            entries = Entries(
                ids=np.zeros(count, np.uint64),
                paths=[f"made/{number % 97}/{start + number:07d}.jpg" for number in range(count)],
                sha256=generator.integers(0, 256, (count, 32), np.uint8),
                size=np.full(count, 1000, np.uint64),
                mtime_ns=np.zeros(count, np.int64),
                columns={"label": [f"class {number % 50}" for number in range(count)]},
            )
            writer.append(entries, RowVectors(vectors, vectors))
        writer.commit(complete=True)
    return gallery.folder


@contextmanager
def serving(gallery: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "distcam", "serve", str(gallery), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield process, int(line.split("http://127.0.0.1:")[1].split(",")[0])
    finally:
        process.kill()
        process.wait()


def state_of(pid: int) -> dict[str, int]:
    """Threads, processes, descriptors and memory of the server."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "threads": int(status["Threads"]),
        "processes": len(children_of(pid)),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "MiB": int(status["VmRSS"].split()[0]) // 1024,
    }


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def processor_s(pid: int, *, with_children: bool = True) -> float:
    """Seconds of the processor that a process has had, and its children, those that have ended too."""
    total = 0
    for each in (pid, *(children_of(pid) if with_children else ())):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15] if with_children and each == pid else fields[11:13]))
    return total / TICKS_A_SECOND


def work_until_now(server: int, attackers: int) -> dict[str, float]:
    """Seconds of the processor until now, by who had them, of the clock and of the whole machine, which they share."""
    own = processor_s(server, with_children=False)
    user, nice, system, _idle, _io, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return {
        "server": own,
        "its decoders": processor_s(server) - own,
        "honest clients": time.process_time(),
        "hostile clients": processor_s(attackers),
        "clock": time.monotonic(),
        "all": (user + nice + system + sum(others)) / TICKS_A_SECOND,
    }


def report_work(*work: dict[str, float]) -> None:
    """Print who had the cores: clients take what the server then lacks, and would not on machines of their own."""
    print(f"\n| of {os.cpu_count()} cores | {' | '.join(list(work[0])[:4])} | others |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, before, after in zip(("alone", "beside"), work[:-1], work[1:], strict=True):
        *shares, clock, everything = (after[each] - before[each] for each in before)
        shares.append(everything - sum(shares))
        print(f"| {name} | {' | '.join(f'{seconds / clock:.2f}' for seconds in shares)} |")


def left(process: subprocess.Popen[str], before: dict[str, int]) -> bool:
    """Print what is left when all clients are gone, and how the server ends; whether that is nothing."""
    after, worked = state_of(process.pid), processor_s(process.pid)
    time.sleep(3)
    worked = processor_s(process.pid) - worked
    children = children_of(process.pid)
    print("\n| in the server | before | afterwards |\n|---|---:|---:|")
    for name, value in before.items():
        print(f"| {name} | {value} | {after[name]} |")
    start = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    try:
        status: int | str = process.wait(60)
    except subprocess.TimeoutExpired:
        status = "still running"
    print(f"\nat work in three seconds of rest: {worked:.2f} s; SIGTERM: status {status} after "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    time.sleep(0.5)
    orphans = [child for child in children if Path(f"/proc/{child}").exists()]
    print(f"processes left: {len(orphans)}")
    within = after["descriptors"] <= before["descriptors"] + 10 and after["threads"] <= before["threads"] + 10
    within &= after["MiB"] <= before["MiB"] + (ServerSettings.kept_bytes + ServerSettings.match_bytes >> 20) + SPARE_MIB
    return status == 0 and not orphans and worked < 0.5 and within


# --- Honest clients ---------------------------------------------------------------------------------------------------


Answers = dict[str, list[tuple[int, float]]]


def honest(arguments: argparse.Namespace, port: int, seconds: float) -> Answers:
    """Status and seconds of each kind of request."""
    answers: Answers = defaultdict(list)
    lock, end = threading.Lock(), time.monotonic() + seconds
    uploads = [form(image_file(seed=seed)) for seed in range(20)]

    def requests(chance: random.Random) -> tuple[str, str, str, bytes | None, dict[str, str]]:
        image = chance.randrange(1, 90)
        stored = json.dumps({"id": image, "k": 10}).encode()
        return chance.choices(
            [
                ("stored", "POST", "/api/v1/search/stored", stored, JSON),
                ("upload", "POST", "/api/v1/search?k=10", chance.choice(uploads), FORM),
                ("explain", "POST", "/api/v1/explain", stored, JSON),
                ("filter", "GET", f"/api/v1/images?limit=20&where=label%3D'class%20{image % 50}'", None, {}),
                ("thumbnail", "GET", f"/api/v1/images/{image}/picture?side=320", None, {}),
                ("health", "GET", "/health", None, {}),
            ],
            [30, 30, 10, 15, 10, 5],
        )[0]

    def client(number: int) -> None:
        chance = random.Random(arguments.seed * 1000 + number)
        connection = None
        time.sleep(chance.random() * arguments.pause)
        while time.monotonic() < end:
            name, method, path, body, headers = requests(chance)
            start = time.perf_counter()
            try:
                if connection is None:
                    own = (f"127.0.1.{number + 1}", 0)
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90, source_address=own)
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                connection, status = None, 0
            with lock:
                answers[name].append((status, time.perf_counter() - start))
            time.sleep(chance.expovariate(1 / arguments.pause))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(arguments.honest)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def report(alone: Answers, beside: Answers, hostile: Counter[str]) -> bool:
    """Print latencies; whether the target is met."""
    print("| honest clients | requests | p50 alone | p99 alone | p50 beside | p99 beside | p99 ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    ratio = 0.0
    for name in [*sorted(alone), "all"]:
        columns: list[str] = []
        tails = []
        for answers in (alone, beside):
            times = [s for kind, own in answers.items() if name in (kind, "all") for status, s in own if status == 200]
            p50, p99 = np.percentile(times, [50, 99]) * 1000 if times else (np.nan, np.nan)
            tails.append(p99)
            columns += [f"{p50:.0f} ms", f"{p99:.0f} ms"]
        ratio = tails[1] / tails[0]
        count = sum(len(own) for kind, own in beside.items() if name in (kind, "all"))
        print(f"| {name} | {count} | {' | '.join(columns)} | {ratio:.2f} |")
    refused = {name: Counter(status for own in answers.values() for status, _ in own if status != 200)
               for name, answers in (("alone", alone), ("beside", beside))}  # fmt: skip
    print("\nhonest requests without an answer of 200: " + "; ".join(f"{n} {dict(c)}" for n, c in refused.items()))
    print("hostile: " + ", ".join(f"{what} {count}" for what, count in sorted(hostile.items())))
    print(f"p99 beside hostile clients is {ratio:.2f} times as long (target: at most 3)")
    return ratio <= 3 and not refused["beside"]


def attacking(arguments: argparse.Namespace, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, hostile_clients.__file__, str(port), str(arguments.hostile)]
    command += [arguments.only] if arguments.only else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # its images are made
    return process


def ended(attackers: subprocess.Popen[str]) -> Counter[str]:
    """What the hostile clients were answered, by way and status."""
    attackers.terminate()
    out, _ = attackers.communicate(timeout=60)
    return Counter(json.loads(out or "{}"))
