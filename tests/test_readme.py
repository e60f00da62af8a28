"""What the README shows is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dmlfast
import dmlfast.losses
import dmlfast.miners

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_the_table_names_every_function():
    named = re.search(r"\| `dmlfast\.functional` \|(.*)\|", README)
    functions = {name for name in dmlfast.functional.__all__ if name.islower()}
    assert set(re.findall(r"`(\w+)`", named.group(1))) == functions


@pytest.mark.parametrize("module", [dmlfast.losses, dmlfast.miners], ids=lambda m: m.__name__)
def test_the_table_names_every_class(module):
    named = re.search(rf"\| `{re.escape(module.__name__)}` \|(.*)\|", README)
    assert set(re.findall(r"`(\w+)`", named.group(1))) == set(module.__all__)


def test_every_file_it_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (Path(__file__).resolve().parents[1] / target).is_file(), target
