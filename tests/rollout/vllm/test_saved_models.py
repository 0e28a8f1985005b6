"""Models that trainers save, in a vLLM that knows nothing of us."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...launch.runs import newest, stage
from ...tiny_llama import tiny_llama
from .real import PROMPT, ROOT, logprobs, vllm_python

pytestmark = [pytest.mark.needs_vllm, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_fine_tuned_model_and_a_merged_adapter_say_in_vllm_what_they_say_in_transformers(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "SmolLM2-135M-Instruct")
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    before = tiny_llama(
        0, words=len(tokenizer), length=64, hidden_size=128, num_attention_heads=2, num_key_value_heads=1, **special
    )
    before.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}:", "completion": " gold"}) + "\n" for n in range(16)))
    for name, lora in (("whole", None), ("adapter", {"r": 4})):
        model = {"path": str(tmp_path / "model"), "lora": lora}
        stage(tmp_path / name, model, data, algorithm="sft", max_steps=2, learning_rate=0.05)
    folders = [newest(tmp_path / name) for name in ("whole", "adapter")]
    environ = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [vllm_python(), Path(__file__).with_name("load_saved.py"), *folders, json.dumps(PROMPT.tolist())],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for folder, found in zip(folders, told, strict=True):
        after = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        assert np.abs(np.array(found) - logprobs(after, PROMPT)).max() < 1e-4
        assert np.abs(np.array(found) - logprobs(before, PROMPT)).max() > 0.01, "it was trained"
