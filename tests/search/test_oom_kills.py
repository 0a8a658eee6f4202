"""Whether the kernel ended processes for memory is read from its own counters."""

from __future__ import annotations

from pathlib import Path

from lorafront.search.oom_kills import KernelKills, count


def test_kills_are_counted_where_the_kernel_says(tmp_path: Path) -> None:
    """In the form of a container's counter and of a machine's; a file that is missing counts none."""
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 7\n")
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 1\n")
    assert count((tmp_path / "memory.events", tmp_path / "vmstat", tmp_path / "none")) == 3
    assert count((tmp_path / "none",)) == 0


def test_only_new_kills_are_told(tmp_path: Path) -> None:
    """Each once."""
    counter = tmp_path / "vmstat"
    counter.write_text("oom_kill 4\n")
    kills = KernelKills((counter,))
    assert not kills.more()
    counter.write_text("oom_kill 5\n")
    assert kills.more()
    assert not kills.more()
