"""The policies together: what a user may write for each, and that every list of them is the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from jsonargparse import ArgumentParser

import lightning_gradwatch
from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.clip import (
    AGC,
    NAMES,
    POLICIES,
    AdaGC,
    Band,
    ClipPolicy,
    MaxNorm,
    MaxValue,
    Percentile,
    ZScore,
    make_policies,
    make_policy,
)

ROOT = Path(__file__).parents[3]


def literals(annotation: Any) -> Iterator[tuple[Any, ...]]:
    """The values of each ``Literal`` in an annotation."""
    if get_origin(annotation) is Literal:
        yield get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from literals(part)


def test_whatever_names_the_policies_names_all_of_them() -> None:
    arguments = get_type_hints(GradWatch.__init__)["auto_clip"]
    assert list(literals(arguments)) == [NAMES, NAMES]  # one, or one of several
    assert all(getattr(lightning_gradwatch, policy.__name__) is policy for policy in POLICIES)
    for name, policy in zip(NAMES, POLICIES, strict=True):
        assert f'"{name}"' in (GradWatch.__doc__ or "")
        rows = re.findall(
            rf'^\| .*`"{name}"`, `{policy.__name__}`.* \|$', (ROOT / "docs/clipping.md").read_text(), re.M
        )
        assert len(rows) == 1, f"docs/clipping.md has no row for {name}"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_lies_in_the_file_of_its_name_needs_no_argument_and_explains_each(policy: type[ClipPolicy]) -> None:
    assert policy.__module__ == f"lightning_gradwatch.core.clip.{policy.name}"
    documented = (policy.__doc__ or "").split("Attributes:")[1]
    for field in fields(policy):  # type: ignore[arg-type]
        assert field.default is not MISSING
        assert f"\n        {field.name}: " in documented


@pytest.mark.parametrize(
    "choice",
    ["percentil", "", False, None, -1.0, math.inf, [MaxNorm()], ClipPolicy()],
    ids=lambda choice: type(choice).__name__,
)
def test_an_unknown_choice_is_refused_with_its_cure(choice: Any) -> None:
    with pytest.raises(ValueError, match=r"must be .* came\. To cure it: "):
        make_policy(choice)


def test_a_refusal_names_every_choice() -> None:
    with pytest.raises(ValueError, match=r"`auto_clip` must be True, .* a number or a policy") as refused:
        make_policy("percentil")
    assert all(f'"{name}", ' in str(refused.value) for name in NAMES)


@pytest.mark.parametrize(
    ("choice", "policy"),
    [
        ("band", Band()),
        ("percentile", Percentile()),
        ("zscore", ZScore()),
        ("agc", AGC()),
        ("adagc", AdaGC()),
        ("norm", MaxNorm(1.0)),
        ("value", MaxValue(1.0)),
        (0.25, MaxNorm(0.25)),
        (1, MaxNorm(1.0)),
        (AGC(0.1), AGC(0.1)),
    ],
)
def test_a_choice_names_its_policy(choice: Any, policy: ClipPolicy) -> None:
    assert make_policy(choice) == policy


def test_the_default_needs_no_number_with_the_unit_of_the_loss() -> None:
    assert isinstance(make_policy(True), Band)


@pytest.mark.parametrize(
    ("choice", "policies"),
    [(None, ()), (False, ()), ([], ()), (True, (Band(),)), (["agc", 2.0], (AGC(), MaxNorm(2.0)))],
)
def test_one_policy_or_several_or_none(choice: Any, policies: tuple[ClipPolicy, ...]) -> None:
    assert make_policies(choice) == policies


class Owner:
    """Stands for the callback: the annotation under test is what LightningCLI reads."""

    def __init__(self, auto_clip: bool | float | str | ClipPolicy | Sequence[ClipPolicy] | None = None) -> None:
        self.auto_clip = auto_clip


def parse(arguments: list[str] | None = None, choice: Any = None) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Owner, "owner")
    parsed = (
        parser.parse_object({"owner": {"auto_clip": choice}}) if arguments is None else parser.parse_args(arguments)
    )
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    return instantiate(parsed).owner.auto_clip


PATH = "lightning_gradwatch.core.clip"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (True, True),
        (None, None),
        (0.5, 0.5),
        ("zscore", "zscore"),
        ({"class_path": f"{PATH}.ZScore"}, ZScore()),
        (
            {"class_path": f"{PATH}.Percentile", "init_args": {"percentile": 20, "window": 50, "include": "net.*"}},
            Percentile(20.0, 50, include="net.*"),
        ),
        (
            [
                {"class_path": f"{PATH}.MaxNorm", "init_args": {"max_norm": 2, "optimizer": "critic"}},
                {"class_path": f"{PATH}.AGC", "init_args": {"exclude": ["head", "norm*"]}},
            ],
            [MaxNorm(2.0, optimizer="critic"), AGC(exclude=["head", "norm*"])],
        ),
    ],
    ids=str,
)
def test_a_configuration_file_can_say_every_choice(choice: Any, expected: Any) -> None:
    assert parse(choice=choice) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["true"], True),
        (["0.5"], 0.5),
        (["adagc"], "adagc"),
        ([f"{PATH}.MaxNorm", "--owner.auto_clip.max_norm=2.5"], MaxNorm(2.5)),
    ],
    ids=str,
)
def test_a_command_line_can_say_it_too(arguments: list[str], expected: Any) -> None:
    first, *rest = arguments
    assert parse([f"--owner.auto_clip={first}", *rest]) == expected


@pytest.mark.parametrize(
    ("init_args", "message"), [({"max_nrm": 1}, "max_nrm"), ({"max_norm": -1}, "`max_norm` must be a number, positive")]
)
def test_a_mistake_in_a_configuration_is_named(init_args: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        parse(choice={"class_path": f"{PATH}.MaxNorm", "init_args": init_args})
