"""What `quintain env new` writes is sound and passes its own tests as it is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from quintain.cli import cli
from quintain.config.load import load_config
from quintain.envs.new import KINDS, class_name, write_new
from quintain.failure import QuintainError


@pytest.mark.slow
def test_every_kind_passes_the_check_and_its_own_tests_and_can_be_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        name = f"my_{kind.replace('-', '_')}"
        told = CliRunner().invoke(cli, ["env", "new", name, "--kind", kind], standalone_mode=False)
        assert told.exception is None
        assert f"quintain env check {name}.py:{class_name(name)}" in told.output
        assert len(list((tmp_path / name).iterdir())) <= 5
        assert load_config(tmp_path / name / f"{name}.yaml").environment.name == f"{name}.py:{class_name(name)}"
    pytest_of_theirs = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    ran = subprocess.run(pytest_of_theirs, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    for kind in KINDS:
        assert ran.stdout.count(f"test_my_{kind.replace('-', '_')}.py::") == 2, ran.stdout
    assert f"{2 * len(KINDS)} passed" in ran.stdout


def test_the_class_is_told_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli, ["env", "new", "word2count"], standalone_mode=False)
    assert "word2count.py:Word2count;" in told.output
    assert "class Word2count(" in (tmp_path / "word2count" / "word2count.py").read_text()


def test_nothing_is_written_over_and_a_wrong_name_or_kind_is_one_line(tmp_path):
    write_new(tmp_path, "mine", "chat")
    for name, kind, complaint in (
        ("mine", "chat", "is there already"),
        ("My-Env", "chat", "a name is lower-case letters"),
        ("yours", "tools", "no kind 'tools': did you mean 'tool'"),
    ):
        with pytest.raises(QuintainError, match=complaint):
            write_new(tmp_path, name, kind)
