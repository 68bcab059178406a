"""Child processes of `warmfleet up`: heard, mourned, and never left behind."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from warmfleet_router.local.children import Child, ChildDied, stop

READY = (
    "import json, sys, time; print('noise'); print(json.dumps({'ready': True, 'grpc': 'a:1'}), flush=True);"
)
SLEEP = READY + "time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    made = Child("w", tmp_path / "w.log")
    yield made
    await stop([made], grace_s=0.1)


async def _start(child: Child, code: str) -> dict[str, object]:
    await child.start([sys.executable, "-c", code], os.environ)
    async with asyncio.timeout(60):
        return await child.ready()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_ready_line_is_found_among_others(child: Child) -> None:
    assert await _start(child, SLEEP) == {"ready": True, "grpc": "a:1"}
    assert child.log.read_text().startswith("noise\n")


async def test_a_child_that_dies_early_says_its_last_lines(child: Child) -> None:
    with pytest.raises(ChildDied, match=r"w ended with exit status 3\n  .*\n  no such model$"):
        await _start(child, "import sys; print('a\\nno such model', file=sys.stderr); sys.exit(3)")


async def test_a_signal_is_named(child: Child) -> None:
    with pytest.raises(ChildDied, match="w ended with SIGKILL"):
        await _start(child, "import os; os.kill(os.getpid(), 9)")


async def test_log_records_are_shown_as_words(child: Child) -> None:
    record = '{"time": "t", "level": "info", "logger": "w", "event": "loading", "done": 0.5}'
    with pytest.raises(ChildDied, match=r"\n  loading done=0.5$"):
        await _start(child, f"import sys; print({record!r}, file=sys.stderr)")


async def test_a_line_without_end_blocks_nobody(child: Child) -> None:
    flood = "sys.stderr.write('x' * (3 << 20)); sys.stderr.flush();"
    assert await _start(child, "import sys;" + flood + SLEEP)


async def test_stop_ends_even_those_that_will_not(child: Child) -> None:
    await _start(child, STUBBORN)
    assert not child.has_ended
    await stop([child], grace_s=0.2)
    assert child.has_ended


async def test_stop_ends_the_children_of_children(child: Child) -> None:
    grandchild = (
        "import subprocess as s; p = s.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    )
    code = "import sys;" + grandchild + READY.replace("'a:1'", "p.pid") + "time.sleep(600)"
    said = await _start(child, code)
    pid = said["grpc"]
    assert isinstance(pid, int)
    assert _alive(pid)
    await stop([child], grace_s=5)  # returns only when the grandchild's end of the pipe is closed too


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_children_die_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = f"""
import asyncio, os, sys
from pathlib import Path
from warmfleet_router.local.children import Child
async def main():
    child = Child("w", Path({str(tmp_path / "w.log")!r}))
    code = {READY.replace("'a:1'", "__import__('os').getpid()") + "time.sleep(600)"!r}
    await child.start([sys.executable, "-c", code], os.environ)
    print((await child.ready())["grpc"], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        pid = int(process.stdout.readline())
    waiter = os.pidfd_open(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        ended, _, _ = select.select([waiter], [], [], 60)
        assert ended, "the child outlived its parent"
    finally:
        os.close(waiter)
