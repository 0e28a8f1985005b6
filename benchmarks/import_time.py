"""How long a user waits for `import quintain.envs` and for `quintain --help`, against a bare Python.

`quintain.envs` imports its names when they are first used, so what an environment's author imports from it is
measured too. Every round starts each command once, in turn, so that whatever else the machine does falls on
all alike; the figures are medians over the rounds. The first round warms the disk cache and is not counted.
The aims are 0.3 s for the imports and 0.5 s for the help. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AIM_S = {"import_envs": 0.3, "author_envs": 0.3, "help": 0.5}


def seconds_for(command: list[str], cwd: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds is {rounds}, expected at least 1")

    python = sys.executable
    commands = {
        "bare": [python, "-c", "pass"],
        "import_envs": [python, "-c", "import quintain.envs"],
        "author_envs": [python, "-c", "from quintain.envs import Environment, SingleTurnEnv, Task"],
        "help": [str(Path(python).with_name("quintain")), "--help"],
    }
    samples: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as elsewhere:  # what is measured is the installed package
        for counted in [False] + [True] * rounds:
            for name, command in commands.items():
                elapsed = seconds_for(command, elsewhere)
                if counted:
                    samples[name].append(elapsed)

    medians = {name: statistics.median(values) for name, values in samples.items()}
    for name, median in medians.items():
        aim = f"  (aim: {AIM_S[name]:.1f} s)" if name in AIM_S else ""
        print(f"{name:12} median {median:.3f} s, best {min(samples[name]):.3f} s{aim}")
    result = {
        "benchmark": "import_time",
        "ratios": {name: round(medians[name] / medians["bare"], 2) for name in AIM_S},
        "detail": {
            **{f"{name}_s": round(median, 4) for name, median in medians.items()},
            "aim_s": AIM_S,
            "rounds": rounds,
            "python": sys.version.split()[0],
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
