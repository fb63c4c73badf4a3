"""The kernels are compiled once per machine."""

from __future__ import annotations

from pathlib import Path

from .engine.gate import logs_of_two_processes, needs_kernels


@needs_kernels
def test_a_second_process_opens_the_kernels_that_the_first_built(tmp_path: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from bocage.models import native; assert native.why_unavailable() is None"
    )
    said = logs_of_two_processes(code, tmp_path)
    assert "compiled the kernels in" in said[0]
    assert "compiled" not in said[1]
    assert len(list(tmp_path.iterdir())) == 1
