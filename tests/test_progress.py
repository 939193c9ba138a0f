import io

import pytest
from rich.console import Console

from edgeprune.progress import bar, doing


def test_nothing_where_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("adapt", 3) as tick:
        tick(1, loss=0.5)
    out, err = capfd.readouterr()
    assert out == err == ""


def test_a_log_has_a_line_every_half_minute(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 10.0, 30.0, 30.0, 40.0, 61.0, 61.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with bar("adapt [x]", 300, done=100) as tick:
        for step in range(4):
            tick(10, loss=0.5 - 0.1 * step)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "adapt [x] 120/300  loss 0.4\nadapt [x] 140/300  loss 0.2\n")


def test_a_terminal_shows_name_count_and_numbers() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with bar("adapt", 10, done=2, console=console) as tick:
        tick(3, loss=0.123456, stage="warm")
        with bar("inner", 4, console=console) as inner:
            inner(4)
        tick()
    text = screen.getvalue()
    for expected in ("adapt", "6/10", "0.1235", "stage warm", "inner", "4/4", "ETA"):
        assert expected in text


def test_a_narrow_terminal_shows_all_numbers() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=60)
    with bar("slice-1", 100, console=console) as tick:
        tick(100, MACs="50%", agreement="91.2%", loss=0.123456, source=0.25, distill=0.75)
    words = screen.getvalue().split()
    for expected in ("100/100", "MACs", "50%", "agreement", "91.2%", "loss", "0.1235", "distill", "0.75"):
        assert expected in words


def test_what_has_no_steps_is_named_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with doing("cut 1: ranking [x]"):
        assert capfd.readouterr().err == "cut 1: ranking [x]\n"
    screen = io.StringIO()
    with doing("cut 1", console=Console(file=screen, force_terminal=True, width=80)):
        pass
    assert "cut 1" in screen.getvalue()


def test_an_error_inside_leaves_the_next_bar_alive() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="x"), bar("a", 1, console=console):
        raise ValueError("x")
    with bar("b", 1, console=console) as tick:
        tick()
