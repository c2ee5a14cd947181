"""Progress where there is no terminal: lines in a log, and nothing where nothing was asked for."""

import re
import time

from slicewise.progress import counting_bar


def test_without_a_terminal_a_line_tells_every_task_in_work(capsys):
    with counting_bar(True, every_s=0.05) as bar:
        bar.add_task("headers", total=2, completed=2)
        task = bar.add_task("volumes", total=40, note="")
        for n in range(3):
            time.sleep(0.06)
            bar.update(task, advance=1, note=f"loss {n}")
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert re.fullmatch(r"volumes \d/40, 0:00:0\d passed(, 0:0\d:\d\d left)?(, loss \d)?", lines[-1]), lines
    assert not any("headers" in line for line in lines), "what is done is not told again"


def test_nothing_is_said_where_nothing_is_shown_or_all_is_quick(capsys):
    with counting_bar(False, every_s=0.01) as bar:
        bar.add_task("volumes", total=40)
        time.sleep(0.05)
    with counting_bar(True) as bar:
        bar.add_task("volumes", total=40)
    assert capsys.readouterr().err == ""
