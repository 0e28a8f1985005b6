"""SandboxFusion's wire, as its clients speak it, and the holes that ours has not."""

from __future__ import annotations

import base64
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quintain.verifiers.service.limits import ServiceLimits


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def run(service, code: str, language: str = "python", **more: Any) -> dict[str, Any]:
    response = service.post("/run_code", {"code": code, "language": language, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert set(answer) == {"status", "message", "compile_result", "run_result", "executor_pod_name", "files"}
    return answer


def refused(service, **more: Any) -> str:
    response = service.post("/run_code", {"code": "1", "language": "python", **more})
    assert response.status_code == 400, response.text
    message: str = response.json()["failure"]["message"]
    return message


def test_ping_is_answered_with_pong(service):
    assert service.get("/v1/ping").json() == "pong"


def test_a_program_has_its_output_its_exit_code_and_its_time(service):
    answer = run(service, "import sys\nprint(input())\nprint('oh', file=sys.stderr)", stdin="7\n", unknown=1)
    assert (answer["status"], answer["message"], answer["compile_result"]) == ("Success", "", None)
    result = answer["run_result"]
    assert 0 < result.pop("execution_time") < 10
    assert result == {"status": "Finished", "return_code": 0, "stdout": "7\n", "stderr": "oh\n"}


def test_a_program_that_fails_says_how(service):
    answer = run(service, "raise SystemExit(3)")
    assert (answer["status"], answer["run_result"]["return_code"]) == ("Failed", 3)
    answer = run(service, "1/0")
    assert answer["run_result"]["return_code"] == 1
    assert "ZeroDivisionError" in answer["run_result"]["stderr"]


def test_a_program_that_is_too_slow_is_told_from_one_that_fails(service):
    answer = run(service, "print('begun', flush=True)\nwhile True: pass", run_timeout=0.5)
    assert (answer["status"], answer["run_result"]["status"]) == ("Failed", "TimeLimitExceeded")
    assert (answer["run_result"]["stdout"], answer["run_result"]["return_code"]) == ("begun\n", None)


def test_a_program_may_not_take_more_memory_than_it_was_given(service):
    hungry = "x = bytearray(300 << 20)\nprint(len(x))"
    assert run(service, hungry, memory_limit_MB=-1)["status"] == "Success"
    answer = run(service, hungry, memory_limit_MB=64)
    assert answer["status"] == "Failed"
    assert answer["run_result"]["return_code"] != 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_beyond_a_pipes_size_comes_whole(service, stream):
    answer = run(service, f"import sys\nsys.{stream}.write('xy' * 1_000_000)", run_timeout=20)
    assert answer["status"] == "Success"
    assert answer["run_result"][stream] == "xy" * 1_000_000


def test_output_without_end_is_cut_and_said_to_be(service):
    answer = run(service, "while True: print('x' * 10_000)", run_timeout=30)
    assert (answer["status"], answer["run_result"]["return_code"]) == ("Failed", -9)
    assert len(answer["run_result"]["stdout"]) <= 8 << 20
    assert "output" in answer["message"]


def test_bytes_that_are_no_text_do_not_break_the_answer(service):
    answer = run(service, r"import sys; sys.stdout.buffer.write(b'a\xff\x00b\xed\xa0\x80')")
    assert answer["run_result"]["stdout"].startswith("a\ufffd\x00b")


def test_stdin_without_end_is_no_trouble(service):
    assert run(service, "print('done')", stdin="x" * 2_000_000)["run_result"]["stdout"] == "done\n"


def test_files_are_there_before_and_can_be_fetched_after(service):
    code = """
import os
text = open("in/a.txt").read()
open("in/b.bin", "wb").write(bytes(range(256)) * 400)
os.makedirs("out"); open("out/c", "w").write(text * 2)
"""
    fetch = ["in/a.txt", "in/b.bin", "out/c", "out/none", "out"]
    answer = run(service, code, files={"in/a.txt": b64("héllo\n"), "skipped": None}, fetch_files=fetch)
    assert answer["status"] == "Success", answer
    found = {path: base64.b64decode(text) for path, text in answer["files"].items()}
    assert found == {
        "in/a.txt": "héllo\n".encode(),
        "in/b.bin": bytes(range(256)) * 400,
        "out/c": "héllo\n".encode() * 2,
    }


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "", "a\0b", "a/", ".."])
def test_no_file_is_written_or_fetched_outside_of_the_folder(service, path):
    assert refused(service, files={path: b64("x")}).startswith("files: ")
    assert refused(service, fetch_files=[path]).startswith("fetch_files: ")


def test_links_lead_nowhere_that_fetching_follows(service, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the host's own")
    code = f"""
import os
os.symlink("/etc/passwd", "a"); os.symlink("/etc", "d"); os.symlink("/proc/self/environ", "e")
os.symlink({str(secret)!r}, "s"); os.mkfifo("f"); os.symlink("loop", "loop"); open("ok", "w").write("1")
"""
    fetch = ["a", "d/passwd", "e", "s", "f", "loop", "ok"]
    assert run(service, code, fetch_files=fetch)["files"] == {"ok": b64("1")}


def test_a_program_that_replaces_what_fetching_needs_fools_only_itself(service):
    code = "open('os.py', 'w').write('1/0'); open('sys.py', 'w').write('1/0'); open('ok', 'w').write('1')"
    assert run(service, code, fetch_files=["ok"])["files"] in ({"ok": b64("1")}, {})


def test_code_runs_behind_walls(service):
    told = run(service, "import os\nprint(os.environ.get('PYTHONPATH'), os.path.exists('/work'), os.getpid())")
    assert told["run_result"]["stdout"].split()[:2] == ["None", "False"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        answer = run(service, f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
    assert answer["status"] == "Failed"
    kill = f"import os, signal; os.kill({service.process.pid}, 9)"
    assert run(service, kill)["status"] == "Failed"
    assert service.process.poll() is None


def test_one_run_knows_nothing_of_another(service):
    with ThreadPoolExecutor(4) as pool:
        codes = [
            f"import os\nopen('me', 'w').write('{n}')\nprint(sorted(os.listdir('.')), open('me').read())"
            for n in range(12)
        ]
        answers = list(pool.map(lambda code: run(service, code), codes))
    assert [answer["run_result"]["stdout"] for answer in answers] == [f"['main.py', 'me'] {n}\n" for n in range(12)]


def test_bash_has_its_arguments_and_its_exit_code(service):
    answer = run(service, 'read line; echo "$1 $line"; exit 4', "bash", stdin="in\n", args=["one"])
    assert (answer["run_result"]["stdout"], answer["run_result"]["return_code"]) == ("one in\n", 4)


@pytest.mark.needs_gxx
def test_a_compiled_program_tells_compiling_from_running(service):
    source = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n * 2; return n; }"
    answer = run(service, source, "cpp", stdin="0", compile_timeout=60)
    assert answer["compile_result"]["status"] == "Finished"
    assert (answer["status"], answer["run_result"]["stdout"]) == ("Success", "0")
    broken = run(service, "int main() { return x; }", "cpp", compile_timeout=60)
    assert (broken["status"], broken["run_result"]) == ("Failed", None)
    assert "was not declared" in broken["compile_result"]["stderr"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"language": "pyton"}, "did you mean 'python'?"),
        ({"language": "cobol"}, "nodejs"),
        ({"run_timeout": 0}, "run_timeout must be more than 0"),
        ({"run_timeout": 1e9}, "at most 300"),
        ({"compile_timeout": -1}, "compile_timeout must be more than 0"),
        ({"memory_limit_MB": 0}, "memory_limit_MB"),
        ({"memory_limit_MB": 1_000_000}, "at most 1024"),
        ({"files": {"a": "not base64!"}}, "is not base64"),
        ({"code": None}, "code"),
        ({"args": ["a\0"]}, "NUL"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(service, more, message):
    assert message in refused(service, **more)


def test_a_client_that_hangs_up_ends_its_program(serve, gone):
    service = serve()
    run(service, "1")
    idle = {process.pid for process in service.tree()}
    body = json.dumps({"code": "import time; time.sleep(100)", "language": "python", "run_timeout": 100}).encode()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(f"POST /run_code HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        service.wait_metric("items_queued", 1)
    service.wait_metric("items_queued", 0)
    assert run(service, "print(1)")["status"] == "Success"
    assert gone([process for process in service.tree() if process.pid not in idle]) == []
    processes = service.tree()
    assert service.stop() == 0
    assert gone(processes) == []


def test_a_run_counts_against_the_limits(serve):
    service = serve(limits=ServiceLimits(items_per_minute=2))
    assert [service.post("/run_code", {"code": "1", "language": "python"}).status_code for _ in range(3)] == [
        200,
        200,
        429,
    ]


HUMAN_EVAL = {
    "id": 0,
    "content": 'def add(a, b):\n    """The sum."""\n',
    "labels": json.dumps({"task_id": "HumanEval/0"}),
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n",
}
MBPP = {
    "id": 11,
    "content": "Write a function to add.",
    "test": json.dumps(["assert add(1, 2) == 3", "assert set([add(2, 2)]) == set([4])"]),
    "labels": json.dumps({"test_setup_code": ""}),
}
STDIO = {"id": 1, "test": [{"input": {"stdin": f"{n}\n"}, "output": {"stdout": f"{2 * n}\n"}} for n in range(3)]}
RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
WRONG = "```python\ndef add(a, b):\n    return a - b\n```"
DOUBLE = "```python\nprint(int(input()) * 2)\n```"
SQUARE = "```python\nprint(int(input()) ** 2)\n```"


def submit(service, kind: str, row: Any, completion: str, **config: Any) -> Any:
    config = {"dataset_type": kind, "provided_data": row, **config}
    return service.post("/submit", {"dataset": "mine", "id": 1, "completion": completion, "config": config})


@pytest.mark.parametrize(
    ("kind", "row", "right", "wrong"),
    [
        ("HumanEvalDataset", HUMAN_EVAL, RIGHT, WRONG),
        ("MBPPDataset", MBPP, RIGHT, WRONG),
        ("CommonOJDataset", STDIO, DOUBLE, SQUARE),
        ("CommonOJDataset", [{**STDIO, "id": 7}, STDIO], DOUBLE, SQUARE),
    ],
)
def test_a_submission_is_judged_with_the_data_it_brings(service, kind, row, right, wrong):
    answer = submit(service, kind, row, f"Here it is:\n{right}").json()
    assert answer["accepted"] is True
    assert answer["id"] == 1
    assert all(test["passed"] and test["exec_info"]["status"] == "Success" for test in answer["tests"])
    answer = submit(service, kind, row, wrong).json()
    assert answer["accepted"] is False
    assert not all(test["passed"] for test in answer["tests"])
    assert submit(service, kind, row, "I do not know.").json()["accepted"] is False


def test_all_cases_are_run_where_the_client_asks_for_it(service):
    answer = submit(service, "CommonOJDataset", STDIO, SQUARE, extra={"run_all_cases": True}).json()
    assert [test["passed"] for test in answer["tests"]] == [True, False, True]
    assert (answer["accepted"], round(answer["extra"]["score"], 2)) == (False, 0.67)


def test_a_slow_submission_is_told_from_a_wrong_one(service):
    answer = submit(service, "CommonOJDataset", STDIO, "```python\nwhile True: pass\n```", run_timeout=0.5).json()
    assert answer["accepted"] is False
    assert answer["tests"][0]["exec_info"]["run_result"]["status"] == "TimeLimitExceeded"


def test_a_submission_in_another_language_is_run_in_it(service):
    answer = submit(service, "CommonOJDataset", STDIO, "```bash\nread n; echo $((2 * n))\n```", language="bash").json()
    assert answer["accepted"] is True


@pytest.mark.parametrize(
    ("kind", "row", "config", "message"),
    [
        ("HumanEvalDatset", HUMAN_EVAL, {}, "did you mean 'HumanEvalDataset'?"),
        (None, HUMAN_EVAL, {}, "expected one of HumanEvalDataset"),
        ("HumanEvalDataset", None, {}, "no dataset is stored"),
        ("HumanEvalDataset", [{"id": 5}], {}, "no dataset is stored"),
        ("HumanEvalDataset", {"content": "", "test": "pass"}, {}, "entry_point"),
        ("HumanEvalDataset", {"content": ""}, {}, "test is the test's source"),
        ("HumanEvalDataset", HUMAN_EVAL, {"language": "cpp"}, "is Python, not 'cpp'"),
        ("HumanEvalDataset", HUMAN_EVAL, {"custom_extract_logic": "import os"}, "is not run here"),
        ("MBPPDataset", {"test": ["assert f(1)", "assert g(1)"]}, {}, "one and the same function"),
        ("CommonOJDataset", {"test": []}, {}, "at least one case"),
        ("CommonOJDataset", {"test": [{"input": {"a.txt": ""}, "output": {"stdout": ""}}]}, {}, "not other files"),
        ("CommonOJDataset", STDIO, {"language": "cobol"}, "cobol"),
        ("CommonOJDataset", STDIO, {"run_timeout": 1e6}, "limits.wall_s must be more than 0 and at most 300"),
    ],
)
def test_a_submission_that_cannot_be_judged_is_an_error_and_never_wrong(service, kind, row, config, message):
    response = submit(service, kind, row, RIGHT, **config)
    assert response.status_code == 400, response.text
    assert message in response.json()["failure"]["message"]


def test_the_environment_of_the_service_stays_its_own(serve, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hush")
    assert os.environ["A_SECRET"] == "hush"
    service = serve()
    told = run(service, "import os\nprint(dict(os.environ))\nprint(open('/proc/1/environ', 'rb').read())")
    assert "hush" not in json.dumps(told)
