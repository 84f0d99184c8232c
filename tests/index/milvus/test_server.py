"""The promises of galleries in Milvus, kept by a real Milvus server.

The pip package `milvus` 2.3.5 carries one. It wants old versions of other packages, so unpack it beside them and say
where: `pip download --no-deps milvus==2.3.5`, unzip, `DISTCAM_MILVUS_SERVER=FOLDER`. It listens on every interface, so
the tests start it in a network of its own that has nothing but the loopback (`unshare -n`, which needs root), and run
there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2] / "shared"
_SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import milvus
sys.argv = ["milvus-server", "--data", sys.argv[2]]
milvus.main()
"""


def _place_of_server() -> Path | None:
    """The folder that holds the package `milvus`, or None."""
    if given := os.environ.get("DISTCAM_MILVUS_SERVER"):
        return Path(given)
    spec = importlib.util.find_spec("milvus")
    found = spec is not None and spec.origin is not None and Path(spec.origin).with_name("data").is_dir()
    return Path(spec.origin).parent.parent if found and spec is not None and spec.origin is not None else None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A server in a network of its own: a process in that network, and the port."""
    place = _place_of_server()
    if place is None:
        pytest.skip("no Milvus server: DISTCAM_MILVUS_SERVER names no folder with the package milvus 2.3.5")
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("a network of its own needs Linux, root, unshare and nsenter")
    data = tmp_path_factory.mktemp("server")
    (data / "run.py").write_text(_SERVER)
    command = f'ip link set lo up && exec "{sys.executable}" -u "{data}/run.py" "{place}" "{data}/data"'
    with (data / "log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", "-n", "bash", "-c", command], stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "Welcome" not in (data / "log").read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(data / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield process.pid, _port(data / "data" / "configs" / "milvus.yaml")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


def _port(config: Path) -> int:
    """The proxy's; it is another one where 19530 was taken."""
    lines = iter(config.read_text().splitlines())
    next(line for line in lines if line.startswith("proxy:"))
    return int(next(line for line in lines if line.startswith("  port:")).split(":")[1].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["test_index_search_conformance.py", "test_index_milvus.py"])
def test_a_real_server_keeps_the_promises(server: tuple[int, int], file: str) -> None:
    process, port = server
    options = ["-q", "-x", "-m", "slow or not slow", "-k", "server", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [
            *("nsenter", f"--net=/proc/{process}/ns/net"),
            *(sys.executable, "-m", "pytest", *options, str(TESTS / file)),
        ],
        env={**os.environ, "DISTCAM_MILVUS_URI": f"milvus://127.0.0.1:{port}/any"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
