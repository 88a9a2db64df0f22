"""From a name in a config to an object: `smoothsa_jax/parts.py`."""

import sys
import types

import pytest
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import check_one_of, choose, make, scheduled_settings, settings_of


class Plain:
    def __init__(self, width, *, depth, name_of_it="x", rngs=None):
        self.width, self.depth, self.name_of_it, self.rngs = width, depth, name_of_it, rngs


class Scheduled:
    scheduled = ("strength",)

    def __init__(self, width, *, inner, rate):
        self.width, self.inner, self.rate = width, inner, rate


class Bare:
    """A class without settings and rngs."""


TABLE = {"plain": Plain, "scheduled": Scheduled, "bare": Bare, "none": None}
COSINE = {"schedule": "cosine", "begin": 0.0, "end": 1.0}


def test_a_class_gets_sizes_settings_and_what_else_it_takes():
    found = make("model.part", {"name": "plain", "depth": 2}, TABLE, 7, rngs="keys", other="unused")
    assert (found.width, found.depth, found.name_of_it, found.rngs) == (7, 2, "x", "keys")
    assert set(settings_of(Plain)) == {"depth", "name_of_it", "rngs"}
    assert isinstance(make("losses.bare", {"name": "bare"}, TABLE, rngs="keys"), Bare)


@pytest.mark.parametrize("kind", [dict, ConfigDict])
def test_a_part_inside_a_part_is_made_first(kind):
    settings = {"name": "scheduled", "rate": 0.5, "strength": 1.0}
    inner = {"name": "plain", "depth": 3}
    found = make("model.part", kind({**settings, "inner": inner}), TABLE, 7, rngs="keys")
    assert isinstance(found.inner, Plain) and (found.inner.width, found.inner.depth) == (7, 3)
    assert found.inner.rngs == "keys" and found.rate == 0.5
    twice = make("model.part", kind({**settings, "inner": {**settings, "inner": inner}}), TABLE, 7)
    assert twice.inner.inner.depth == 3


@pytest.mark.parametrize("value", [1.0, COSINE])
def test_a_scheduled_setting_is_not_passed_to_the_constructor(value):
    inner = {"name": "plain", "depth": 3}
    config = ConfigDict({"name": "scheduled", "rate": 0.5, "strength": value, "inner": inner})
    found = make("model.part", config, TABLE, 7)
    assert not hasattr(found, "strength")
    settings = scheduled_settings("model.part", config, TABLE)
    assert {key: dict(x) if value is COSINE else x for key, x in settings.items()} == {
        "strength": value
    }
    around = ConfigDict({"name": "scheduled", "rate": 0.5, "strength": 0.0, "inner": config})
    assert scheduled_settings("model.part", around, TABLE)["strength"] == 0.0  # the outer one's
    assert scheduled_settings("model.part", inner, TABLE) == {}


def test_a_class_from_elsewhere(monkeypatch):
    module = types.ModuleType("a_package_of_mine")
    module.Mine, module.number = Plain, 3
    monkeypatch.setitem(sys.modules, "a_package_of_mine", module)
    config = {"name": "a_package_of_mine:Mine", "depth": 1}
    found = make("model.part", config, TABLE, 7)
    assert isinstance(found, Plain) and found.depth == 1
    with pytest.raises(
        UserError, match="model.part.depht is not a setting of .*Mine'.*mean 'depth'"
    ):
        make("model.part", {"name": "a_package_of_mine:Mine", "depht": 1}, TABLE, 7)
    for name, words in (
        ("a_package_of_mine:Other", "which cannot be imported"),
        ("no_such_package:Mine", r"which cannot be imported \(No module named"),
        ("a_package_of_mine:number", "which is not a class; name a class"),
    ):
        with pytest.raises(UserError, match=f"model.part.name is '{name}', {words}") as refused:
            choose("model.part", name, TABLE)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "plane"}, "model.part.name is 'plane'; expected one of .*mean 'plain'"),
        ({}, "model.part.name is None; expected one of bare, none, plain, scheduled"),
        ({"name": "plain", "depht": 2}, "model.part.depht is not a setting of .*mean 'depth'"),
        ({"name": "plain", "depth": 2, "rngs": 0}, "model.part.rngs is not a setting of"),
        ({"name": "plain", "depth": 2, "width": 3}, "model.part.width is not a setting of"),
        ({"name": "plain"}, "model.part.name='plain' needs model.part.depth: add it"),
        ({"name": "bare", "depth": 2}, "model.part.depth is not a setting .*expected among none"),
        ({"name": "none", "depth": 2}, "model.part.depth is not a setting .*which has none"),
        (
            {"name": "scheduled", "rate": 1.0, "inner": {"name": "bare"}},
            "needs model.part.strength: add it",
        ),
        (
            {"name": "scheduled", "rate": 1.0, "strength": 1.0, "inner": {"name": "plain"}},
            "model.part.inner.name='plain' needs model.part.inner.depth",
        ),
        (
            {"name": "scheduled", "rate": 1.0, "strenth": 1.0, "inner": {"name": "bare"}},
            "model.part.strenth is not a setting .*mean 'strength'",
        ),
    ],
)
def test_what_a_class_does_not_take_is_refused(settings, words):
    with pytest.raises(UserError, match=words) as refused:
        make("model.part", settings, TABLE, 7, rngs="keys")
    assert "\n" not in str(refused.value)


def test_a_choice_of_numbers_is_told():
    with pytest.raises(UserError, match="orders is 0; expected one of 1, 2, 3"):
        check_one_of("orders", 0, range(1, 4))


def test_a_row_without_a_class_is_no_part():
    assert make("model.part", {"name": "none"}, TABLE, 7) is None
    assert choose("model.part", "none", TABLE) is None
