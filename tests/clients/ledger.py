"""Whether the gate's ledger has what a client was told: asked before and after each request."""

import json
import os
import subprocess

from report import expect

NAMES = ("requests", "prompt_tokens", "completion_tokens", "estimated")


def sums():
    """What the gate has of the model so far, without asking the gate: the row is in its journal."""
    done = subprocess.run(
        [
            os.environ["GATE_BINARY"], "usage", "--data-dir", os.environ["GATE_DATA"],
            "--by", "model", "--format", "json",
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    expect(done.returncode == 0, f"`portcullis usage` ended with {done.returncode}: {done.stderr}")
    model = f"{os.environ['MODEL']}:latest"
    rows = [row for row in json.loads(done.stdout) if row["model"] == model]
    return [sum(row[name] for row in rows) for name in NAMES]


def told(what, ask):
    """`ask` makes one request and gives the tokens of prompt and completion that the client was told."""
    before = sums()
    prompt, completion = ask()
    row = [after - before for after, before in zip(sums(), before)]
    wanted = [1, prompt, completion, 0]
    expect(row == wanted, f"{what}: {NAMES} are {row} in the ledger, the client was told {wanted}")
    expect(prompt > 0, f"{what}: the client was told of no prompt")
