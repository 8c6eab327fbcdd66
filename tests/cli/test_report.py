"""``gradwatch report`` on the logs of real trainings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.watcher import Watcher
from lightning_gradwatch.outputs import alerts_file
from tests.builders import attribution, birth
from tests.cli.command import alert, gradwatch, here
from tests.prescriptions import prescription
from tests.tasks import Classifier, fit, small_net
from tests.tensorboard.board import Board
from tests.tensorboard.browser import Log, write_run
from tests.tensorboard.logs import SICK_LAYERS
from tests.tensorboard.record import record

TABLE = {step: [1e-9, 1e-5, 0.1] for step in range(0, 40, 2)}
LAYERS = ["a", "b", "c"]


def test_a_sick_run_is_told_by_verdict_cause_remedies_and_picture(logs: Path, capsys: Any) -> None:
    status, out, err = here(capsys, "report", logs / "sick")
    assert (status, err) == (1, "")
    assert out.index("SICK") < out.index("Gradients vanish with depth") < out.index("Why") < out.index("Try")
    assert "11 sigmoids" in out
    assert "(saturating_activation)" in out
    assert "1. ReLU, GELU or SiLU with He initialisation" in out
    rows = [line.split() for line in out[out.index("input above") :].splitlines()[1:13]]
    assert [next(word for word in row if word.startswith("net.")) for row in rows] == SICK_LAYERS
    assert "12 layers" in out
    assert "steps 0 to 39" in out
    assert "loss 2." in out


def test_the_picture_shows_the_numbers_of_the_event_file(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, TABLE, alert())
    _, out, _ = here(capsys, "report", tmp_path)
    rows = [line.split() for line in out[out.index("input above") :].splitlines()[1:4]]
    assert [row[-2] for row in rows] == ["1.0e-09", "1.0e-05", "1.0e-01"]
    assert rows[0][:2] == ["✖", "a"]
    assert [set(row[-3]) for row in rows] == [{"▁"}, {"▄"}, {"█"}]


def test_a_run_whose_watch_has_failed_is_not_called_healthy(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = Watcher.observe

    def broken(watcher: Watcher, *args: Any, **options: Any) -> Any:
        if watcher.sampling.num_steps == 12:
            raise RuntimeError("on purpose")
        return observe(watcher, *args, **options)

    monkeypatch.setattr(Watcher, "observe", broken)
    with pytest.warns(GradWatchWarning, match="has switched itself off"):
        fit(GradWatch(), Classifier(small_net()), directory=tmp_path, max_steps=30)
    capsys.readouterr()
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 2
    assert "HEALTHY" not in out
    assert "GradWatch failed in this run, and watched it no more" in out
    with Board(tmp_path) as board:
        board.wait_for(".", 11)
        (row,) = board.get("runs").json["runs"]
    assert (row["status"], row["state_text"]) == ("unreadable", "not watched to its end")


@pytest.mark.parametrize(
    ("run", "status"), [("sick", 1), ("healthy", 0), ("recovered", 0), ("recurrent", 0), ("gan", 0)]
)
def test_the_exit_status_tells_whether_an_alert_is_open(logs: Path, capsys: Any, run: str, status: int) -> None:
    found, out, _ = here(capsys, "report", logs, "--run", run)
    assert found == status
    assert ("SICK" in out) == (status == 1)


def test_of_several_runs_all_are_listed_and_the_sickest_is_shown(logs: Path, capsys: Any) -> None:
    status, out, _ = here(capsys, "report", logs)
    assert status == 1
    lines = out.splitlines()
    assert lines[1].split()[1] == "sick"
    assert "plain" not in out  # nobody watches it
    assert "--run NAME" in lines[-1]
    assert {"sick", "healthy", "recovered", "recurrent", "gan", "clipped"} <= {
        w for line in lines[1:8] for w in line.split()
    }


def test_every_optimizer_has_its_picture(logs: Path, capsys: Any) -> None:
    _, out, _ = here(capsys, "report", logs / "gan")
    assert out.count("Optimizer ") == 2


def test_a_recurrent_layer_is_shown_along_its_time_steps(logs: Path, capsys: Any) -> None:
    _, out, _ = here(capsys, "report", logs / "recurrent")
    assert "Gradient norm along time" in out
    assert "64 time steps" in out


def test_a_nan_is_marked_in_the_picture(logs: Path, capsys: Any) -> None:
    _, out, _ = here(capsys, "report", logs / "recovered")
    assert "RECOVERED" in out
    assert "✕ NaN or Inf" in out


def test_another_quantity_is_shown_if_asked_for(logs: Path, capsys: Any) -> None:
    _, out, _ = here(capsys, "report", logs / "clipped", "--quantity", "clipped_fraction")
    assert "Clipped steps" in out
    assert "100 %" in out


def test_every_quantity_of_the_tab_can_be_asked_for(logs: Path, capsys: Any) -> None:
    _, out, _ = here(capsys, "report", logs / "recurrent", "--quantity", "memory_horizon")
    _, *rows = out[out.index("Memory horizon, in steps") :].splitlines()
    found = json.loads(here(capsys, "report", logs / "recurrent", "--json")[1])
    version = found["runs"][0]["optimizers"][0]["versions"][0]
    horizons = dict(zip(version["layers"], version["latest"]["memory_horizon"]["values"], strict=True))
    assert horizons["net.rnn"] > 1
    assert f" {horizons['net.rnn']:.3g} " in next(row for row in rows if "net.rnn" in row)
    assert "not recurrent" in out


def test_many_layers_share_rows_as_in_the_tab(tmp_path: Path, capsys: Any) -> None:
    layers = [f"blocks.{i}.{role}" for i in range(100) for role in ("norm", "attn", "mlp")]
    norms = [10 ** (-i / 50) * (0.01 if name.endswith("norm") else 1.0) for i, name in enumerate(layers)]
    write_run(
        tmp_path, layers, {1: norms, 2: [*norms[:200], float("nan"), *norms[201:]]}, alert(layer="blocks.40.attn")
    )
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    start = out.index("Gradient norm")
    rows = out[start : out.index(" steps  ", start)].splitlines()[1:-1]
    names = [row[2:].split(maxsplit=1)[0] for row in rows]
    assert len(names) <= 24
    assert [name for name in names if "-" not in name] == ["blocks.40.attn", "blocks.66.mlp"], "sick layers stand alone"
    assert " nan " in next(row for row in rows if "blocks.66.mlp" in row)
    assert next(row for row in rows if "blocks.40.attn" in row).startswith("✖")
    assert "300 layers" in out


@pytest.mark.parametrize(
    ("options", "title", "shown"),
    [
        ((), "Gradient norm per element (RMS)", {"norm": 0.5, "linear": 0.25}),
        (("--norm", "total"), "Gradient norm  ", {"norm": 1, "linear": 25}),
        (("--norm", "relative"), "Gradient norm relative to the layer's median", {"norm": 1, "linear": 1}),
        (("--matrices",), "Gradient norm per element (RMS)", {"linear": 0.25}),
    ],
)
def test_norms_are_shown_per_element_unless_another_way_is_asked_for(
    tmp_path: Path, capsys: Any, options: tuple[str, ...], title: str, shown: dict[str, float]
) -> None:
    with record(tmp_path / "run", ("norm", "linear"), elements=(4, 10_000), vectors=(0,)) as run:
        run.write(0, [[1, 25]] * 3)
    out = here(capsys, "report", tmp_path, *options)[1]
    assert title in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("  norm ", "  linear "))]
    assert {words[0]: float(words[2]) for words in rows} == pytest.approx(shown, rel=2e-3), out


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_it_fits_the_width_of_the_terminal(logs: Path, columns: int) -> None:
    found = gradwatch("report", logs, COLUMNS=str(columns))
    assert found.returncode == 1, found.stderr
    assert max(map(len, found.stdout.splitlines())) <= max(columns, 44)


def test_text_from_a_log_stays_text_and_steers_no_terminal(tmp_path: Path, capsys: Any) -> None:
    evil = "[bold red]x[/]\x1b]0;owned\x07\x1b[2J\u202e:smile:"
    message = f"{evil} <script>alert(1)</script>\nsecond line. Try: {evil}"
    tried = prescription(remedy=evil, why=evil, code=f"a = 1\n{evil}")
    found = alert(layer=evil, message=message, evidence=evil, remedies=(evil,), prescription=tried, summary=message)
    write_run(tmp_path / "[red]run[/]", [evil, "b", "c"], TABLE, found)
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert "[bold red]x[/]" in out
    assert ":smile:" in out
    assert "<script>alert(1)</script>" in out
    assert "[red]run[/]" in out


def test_bars_show_where_the_gradient_is_lost(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, TABLE, alert(attribution=attribution("2 [bold]sigmoids[/]\x1b[2J")))
    _, out, _ = here(capsys, "report", tmp_path)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    (start,) = [place for place, line in enumerate(lines) if line.startswith("Where ")]
    assert lines[start].startswith("Where 2 [bold]sigmoids[/]")
    assert lines[start].endswith("2.5 " + "█" * 24)
    assert lines[start + 1 : start + 4] == [
        "2 layers' weights 1.0 " + "█" * 10, "1 softmax 0.0", "other operations -0.5",
    ]  # fmt: skip
    assert "\x1b" not in out


def test_the_birth_of_nan_is_shown_with_the_line_of_code(tmp_path: Path, capsys: Any) -> None:
    evil = {**birth(), "module": "[red]net[/]\x1b[2J"}
    write_run(tmp_path, LAYERS, TABLE, alert(birth=evil))
    _, out, _ = here(capsys, "report", tmp_path)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    (start,) = [place for place, line in enumerate(lines) if line.startswith("Born ")]
    assert lines[start : start + 3] == [
        "Born batch > weights > ✕ forward pass > loss > backward pass > optimizer",
        "mynet.py · line 6 · [red]net[/]�[2J · sample 27",
        "return x / y",
    ]
    assert "\x1b" not in out


def test_what_was_tried_is_told_with_its_figures(tmp_path: Path, capsys: Any) -> None:
    found = alert(remedies=("ReLU (tried for 20 steps: loss 0.41 instead of 2.3)",), prescription=prescription())
    write_run(tmp_path / "run", LAYERS, TABLE, found)
    alerts_file.append(tmp_path / "run", "opened", alert())
    alerts_file.append(tmp_path / "run", "prescribed", found)
    _, out, _ = here(capsys, "report", tmp_path)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    start = lines.index("2 remedies tried on a copy of the model, 1 of them helped:")
    assert lines[start + 1 : start + 9] == [
        "remedy effect orders of magnitude lost loss parameters time",
        "as it is 11.1 2.3",
        "ReLU helps 0.4 0.41 0 %",
        "SiLU worse diverged +3 %",
        "The first of them in code:",
        "a = 1",
        "b = 2",
        "Not tried: skips (no two layers of the same shape).",
    ]
    _, out, _ = here(capsys, "report", tmp_path, "--json")
    (told,) = json.loads(out, parse_constant=refuse)["runs"][0]["alerts"]
    assert told["prescription"]["trials"][0]["loss_after"] == 0.41
    assert told["prescription"]["trials"][1]["loss_after"] in (None, "Infinity")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_a_terminal_that_knows_ascii_only_gets_ascii(logs: Path) -> None:
    found = gradwatch("report", logs / "recovered", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii()
    assert "RECOVERED" in found.stdout
    assert "x NaN or Inf" in found.stdout


def test_names_and_lines_that_are_no_utf8_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    write_run(tmp_path / "run", LAYERS, TABLE, alert())
    alerts_file.append(tmp_path / "run", "opened", alert(layer="a"))
    line = tmp_path / "run" / alerts_file.NAME
    line.write_bytes(line.read_bytes().replace(b'"a"', b'"\xff"'))
    (tmp_path / "run").rename(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff\xfen"))
    found = gradwatch("report", tmp_path)
    assert found.returncode == 1, found.stderr
    assert "steps 0 to 38" in found.stdout
    page = gradwatch("report", tmp_path, "--html", tmp_path / "page.html", "--json")
    (run,) = json.loads(page.stdout)["runs"]
    assert (os.fsencode(run["run"]), run["status"], run["damage"]) == (b"r\xff\xfen", "sick", [])
    assert len(run["optimizers"][0]["versions"][0]["layers"]) == 3


def test_colours_are_there_in_a_terminal_that_has_them_and_not_where_they_are_unwanted(logs: Path) -> None:
    coloured = gradwatch("report", logs / "sick", FORCE_COLOR="1", TERM="xterm-256color", COLORTERM="truecolor")
    plain = gradwatch("report", logs / "sick", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    piped = gradwatch("report", logs / "sick")
    assert "\x1b[48;2;" in coloured.stdout
    assert "\x1b[48;" not in plain.stdout
    assert "▁" in plain.stdout
    assert "\x1b" not in piped.stdout


def test_alerts_of_a_run_without_an_event_file_are_reported(tmp_path: Path, capsys: Any) -> None:
    alerts_file.append(tmp_path, "opened", alert())
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert "Gradients vanish with depth" in out
    alerts_file.append(tmp_path, "ended", alert(5, 9))
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 0
    assert "RECOVERED" in out


def test_an_alert_that_only_the_file_of_alerts_tells_of_is_not_missed(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, TABLE)
    assert here(capsys, "report", tmp_path)[0] == 0
    alerts_file.append(tmp_path, "opened", alert(39))
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert "since step 39" in out


def test_a_run_of_two_event_files_is_read_whole(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, {0: [1.0] * 3, 10: [1.0] * 3})
    second = Log(tmp_path, LAYERS)
    second.write(20, [1.0] * 3)
    second.close()
    assert "steps 0 to 20" in here(capsys, "report", tmp_path)[1]


def test_very_many_alerts_are_counted(tmp_path: Path, capsys: Any) -> None:
    ended = [alert(step, step + 1) for step in range(0, 60, 2)]
    write_run(tmp_path, LAYERS, TABLE, *ended, *(alert(step) for step in range(100, 109)))
    status, out, _ = here(capsys, "report", tmp_path)
    assert status == 1
    assert out.count("Why") == 4
    assert "and 32 more; --json lists them" in out
    assert len(json.loads(here(capsys, "report", tmp_path, "--json")[1])["runs"][0]["alerts"]) == 39


RUN_FIELDS = {
    "run", "status", "headline", "num_open", "last_step", "wall_time", "alerts", "num_dropped", "optimizers", "scalars",
    "loss_tag", "damage", "left_out", "state", "state_text",
}  # fmt: skip
VERSION_FIELDS = {
    "version", "layers", "first_step", "last_step", "num_samples", "quantities", "sequences", "latest",
}  # fmt: skip


def test_the_json_keeps_to_its_schema(logs: Path, capsys: Any) -> None:
    status, out, _ = here(capsys, "report", logs, "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(out, parse_constant=refuse)
    assert set(found) == {"schema", "directory", "exit_status", "runs"}
    assert (found["schema"], found["exit_status"], found["directory"]) == (1, status, str(logs))
    assert found["runs"][0]["run"] == "sick"
    for run in found["runs"]:
        assert set(run) == RUN_FIELDS
        for optimizer in run["optimizers"]:
            assert set(optimizer) == {"name", "versions"}
            for version in optimizer["versions"]:
                assert set(version) == VERSION_FIELDS
                for quantity, latest in version["latest"].items():
                    assert quantity in version["quantities"]
                    assert len(latest["values"]) == len(version["layers"])
    opened = found["runs"][0]["alerts"][0]
    assert set(opened) == set(alert().__dataclass_fields__)


def test_numbers_that_json_does_not_know_are_words(tmp_path: Path, capsys: Any) -> None:
    write_run(tmp_path, LAYERS, {1: [float("nan"), float("inf"), -1.0]})
    latest = json.loads(here(capsys, "report", tmp_path, "--json")[1])["runs"][0]["optimizers"][0]["versions"][0][
        "latest"
    ]
    assert latest["grad_norm"] == {"step": 1, "last_step": 1, "values": ["NaN", "Infinity", -1.0]}


def test_one_run_is_read_alone_if_it_is_asked_for(logs: Path, capsys: Any) -> None:
    found = json.loads(here(capsys, "report", logs, "--run", "healthy/", "--json")[1])
    assert [run["run"] for run in found["runs"]] == ["healthy"]


def refusals(logs: Path, tmp_path: Path) -> dict[str, list[Any]]:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    return {
        "which does not exist": [tmp_path / "nowhere"],
        "which is a file": [tmp_path / "file"],
        "no event file and no alerts.jsonl": [tmp_path / "empty"],
        "1 runs that GradWatch did not watch": [logs / "group"],
        "give one of those there are, such as": [logs, "--run", "nobody"],
        "`--html` must be a file that can be written": [logs / "healthy", "--html", tmp_path / "no" / "page.html"],
    }


def test_every_refusal_names_argument_rule_what_came_and_the_cure(logs: Path, tmp_path: Path, capsys: Any) -> None:
    for words, arguments in refusals(logs, tmp_path).items():
        status, out, err = here(capsys, "report", *arguments)
        assert (status, out) == (2, ""), words
        assert words in err
        assert err.startswith("gradwatch: `")
        assert " must " in err
        assert "To cure it: " in err
        assert str(arguments[-1]) in err
        assert len(err.splitlines()) == 1


def test_a_run_that_is_not_watched_is_not_called_healthy(logs: Path, capsys: Any) -> None:
    assert here(capsys, "report", logs, "--run", os.path.join("group", "plain"))[0] == 2


def test_a_copy_of_a_run_is_the_same_report(logs: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(logs / "healthy", tmp_path / "healthy")
    one, other = (json.loads(here(capsys, "report", d / "healthy", "--json")[1]) for d in (logs, tmp_path))
    assert [{**r, "wall_time": 0} for r in one["runs"]] == [{**r, "wall_time": 0} for r in other["runs"]]
