"""Programs that want more than is theirs, and how each may end: for every sandbox with walls."""

from __future__ import annotations

from quintain.verifiers.sandbox.interface import Limits, Status

SHORT = Limits(wall_s=0.5, cpu_s=0.5, memory_bytes=192 << 20, output_bytes=100_000, processes=24, inodes=500)
LONG = Limits(wall_s=10, cpu_s=10, memory_bytes=192 << 20, output_bytes=100_000, processes=24, inodes=500)


def limits_of(statuses: set[Status]) -> Limits:
    """Short ones for a program that can only run into its time; for others time enough on a busy machine."""
    return SHORT if Status.TIMEOUT in statuses else LONG


FAILED = {Status.RUNTIME_ERROR, Status.MEMORY_LIMIT, Status.TIMEOUT}
HOSTILE: dict[str, tuple[str, set[Status]]] = {
    "an endless loop": ("while True: pass", {Status.TIMEOUT}),
    "an endless sleep": ("import time; time.sleep(1e9)", {Status.TIMEOUT}),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {Status.TIMEOUT}),
    "a quiet fork bomb": (
        "import os, time\nfor i in range(10**6):\n    try:\n        if os.fork() == 0: time.sleep(1e9)\n"
        "    except OSError: time.sleep(0.01)",
        {Status.TIMEOUT},
    ),
    "a thread bomb": (
        "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(9e9,)).start()\n"
        "    except RuntimeError: time.sleep(0.01)",
        {Status.TIMEOUT, Status.MEMORY_LIMIT},
    ),
    "a memory bomb": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {Status.MEMORY_LIMIT}),
    "one huge allocation": ("x = bytearray(1 << 40)", {Status.MEMORY_LIMIT}),
    "a memory bomb that goes on": (
        "x = []\nwhile True:\n    try: x.append(bytearray(1 << 20))\n    except MemoryError: pass",
        {Status.MEMORY_LIMIT, Status.TIMEOUT},
    ),
    "a memory bomb of many processes": (
        "import os, time\nfor _ in range(10): os.fork()\nx = bytearray(40 << 20)\ntime.sleep(1e9)",
        {Status.MEMORY_LIMIT, Status.TIMEOUT, Status.RUNTIME_ERROR},
    ),
    "endless output": ("while True: print('x' * 1000)", {Status.OUTPUT_LIMIT}),
    "endless output on stderr": ("import os\nwhile True: os.write(2, b'x' * 1000)", {Status.OUTPUT_LIMIT}),
    "endless output of a child": (
        "import subprocess; subprocess.run('yes', shell=True)",
        {Status.OUTPUT_LIMIT},
    ),
    "a full disk": ("f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", {Status.RUNTIME_ERROR}),
    "a full disk of many files": (
        "import itertools\nfor i in itertools.count(): open(f'f{i}', 'wb').write(bytes(1 << 20))",
        {Status.RUNTIME_ERROR, Status.MEMORY_LIMIT},
    ),
    "a million files": ("for i in range(10**6): open(f'/tmp/{i}', 'w')", {Status.RUNTIME_ERROR}),
    "a million folders": (
        "import os\nfor i in range(10**6): os.mkdir(f'/dev/shm/{i}')",
        {Status.RUNTIME_ERROR},
    ),
    "a million descriptors": ("import os\nwhile True: os.pipe()", {Status.RUNTIME_ERROR}),
    "shared memory": (
        "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 1 << 20))\n    x[-1].write(bytes(1 << 20))",
        {Status.MEMORY_LIMIT, Status.RUNTIME_ERROR},
    ),
    "every signal ignored": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        {Status.TIMEOUT},
    ),
    "a daemon left behind": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1e9)\n    os._exit(0)",
        {Status.OK},
    ),
    "a daemon that holds stdout": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1e9)\nprint('done')",
        {Status.OK},
    ),
    "a daemon that forks on": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        try:\n"
        "            if os.fork(): os._exit(0)\n        except OSError: pass",
        {Status.OK},
    ),
    "sleep at exit": ("import atexit, time; atexit.register(time.sleep, 1e9)", {Status.TIMEOUT}),
    "sleep in __del__": (
        "import time\nclass A:\n    def __del__(self): time.sleep(1e9)\na = A()",
        {Status.TIMEOUT},
    ),
    "a thread that does not end": (
        "import threading, time; threading.Thread(target=time.sleep, args=(1e9,)).start()",
        {Status.TIMEOUT},
    ),
    "a stopped process": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", {Status.TIMEOUT}),
    "kill(-1)": ("import os; os.kill(-1, 9)\nimport time; time.sleep(0.1)", {Status.OK, Status.RUNTIME_ERROR}),
    "kill(0)": ("import os; os.kill(0, 9)", {Status.RUNTIME_ERROR}),
    "kill its init": (
        "import os\nfor s in range(1, 65):\n    try: os.kill(1, s)\n    except OSError: pass\nprint('still here')",
        {Status.OK},
    ),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", FAILED),
    "deep recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
        FAILED,
    ),
    "exhausted processor time in children": (
        "import os\nfor _ in range(8):\n    if os.fork() == 0:\n        while True: pass\nos.wait()",
        {Status.TIMEOUT},
    ),
    "a message of its own to whoever listens": (
        "import os\nfor fd in range(3, 256):\n    for data in (b'ready', bytes(29), bytes(37)):\n"
        "        try: os.write(fd, data)\n        except OSError: pass\nraise SystemExit(5)",
        {Status.RUNTIME_ERROR},
    ),
    "a huge stack of threads": (
        "import threading, time\nthreading.stack_size(1 << 30)\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(9e9,)).start()",
        FAILED,
    ),
    "standard input that is never read": ("import time; time.sleep(1e9)", {Status.TIMEOUT}),
    "descriptors that are all closed": ("import os; os.closerange(0, 1 << 20); os._exit(9)", {Status.RUNTIME_ERROR}),
    "pipes that are kept full": (
        "import fcntl, os\nwhile True:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n"
        "    try: fcntl.fcntl(w, 1031, 1 << 20)\n    except OSError: pass\n    os.write(w, bytes(1 << 20))",
        FAILED,
    ),
    "sockets that are kept full": (
        "import socket\nx = []\nwhile True:\n    x.append(socket.socketpair())\n    x[-1][0].setblocking(False)\n"
        "    x[-1][0].send(bytes(1 << 17))",
        FAILED,
    ),
    "a crash that leaves a core": (
        "import resource, ctypes\ntry: resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\n"
        "except (OSError, ValueError): pass\nctypes.string_at(0)",
        {Status.RUNTIME_ERROR},
    ),
    "a storm of processes that end at once": (
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: os._exit(0)\n        os.wait()\n"
        "    except OSError: pass",
        {Status.TIMEOUT},
    ),
    "an interpreter that is hurt": (
        "import ctypes, sys\nctypes.memset(id(sys) - 16, 255, 4096)\nsys.exit",
        {Status.RUNTIME_ERROR, Status.OK, Status.TIMEOUT},
    ),
}
