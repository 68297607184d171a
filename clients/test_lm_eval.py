"""lm-evaluation-harness against the server: its log-likelihoods are those of `bruchteil score`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_completions import score

TASKS = Path(__file__).parent / "lm_eval_task"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}


def evaluate(server, scratch, **options):
    """Runs both tasks; every sample of each."""
    arguments = {
        "model": server.model, "base_url": f"{server.url}/v1/completions", "num_concurrent": 4,
        "max_length": 8192, "max_retries": 1, "tokenizer_backend": "remote",
    } | options  # fmt: skip
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks", "bruchteil_choices,bruchteil_continue", "--include_path", str(TASKS),
        "--output_path", str(scratch / "out"), "--log_samples",
    ]  # fmt: skip
    home = {"HF_HOME": str(scratch / "hf")}
    ran = subprocess.run(
        command, cwd=TASKS, env=os.environ | OFFLINE | home, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    samples = {}
    for task in ["choices", "continue"]:
        [file] = (scratch / "out").rglob(f"samples_bruchteil_{task}_*.jsonl")
        lines = file.read_text(encoding="utf-8").splitlines()
        samples[task] = [json.loads(line) for line in lines]
    return samples


@pytest.mark.parametrize("tokenized", [True, False])
def test_log_likelihoods_equal_those_of_score(server, tmp_path, tokenized):
    samples = evaluate(server, tmp_path, tokenized_requests=tokenized)
    assert len(samples["choices"]) == 6 and len(samples["continue"]) == 4
    rows, starts, found = [], [], []
    for sample in samples["choices"]:
        question = sample["doc"]["question"]
        responses = [response[0] for response in sample["resps"]]
        for choice, response in zip(sample["doc"]["choices"], responses, strict=True):
            rows.append(server.tokens(f"{question} {choice}"))
            starts.append(len(server.tokens(question)))
            found.append(response)
    for row, start, scored, (loglikelihood, greedy) in zip(
        rows, starts, score(server, rows, tmp_path), found, strict=True
    ):
        assert sum(scored[start:]) == float(loglikelihood), row
        assert str(greedy) in ("True", "False")
    for sample in samples["continue"]:
        [[text]] = sample["resps"]
        body = {"model": server.model, "prompt": sample["doc"]["question"], "temperature": 0,
                "max_tokens": 24, "stop": ["\n", "five"]}  # fmt: skip
        assert server.json("/v1/completions", body)["choices"][0]["text"] == text
