"""More than two models: strengths that are known, intervals that cover them."""

import itertools

import numpy as np
import pytest

import utils
from evaluation import ranking


def met(**scores: list) -> dict:
    """`{(other, model): records}` from `model__other=[1, .5, 0, None]`."""
    return {
        tuple(reversed(names.split("__"))): [{"value": value} for value in values]
        for names, values in scores.items()
    }


def test_two_models_are_as_far_apart_as_their_win_rate():
    """30 of 40, smoothed by half a win each: the log odds are the difference in strength."""
    found = ranking.rank(met(b__a=[1.0] * 30 + [0.0] * 10))
    assert list(found) == ["b", "a"] and found["b"].n == 40
    odds = [np.log(found[name].value / (1 - found[name].value)) for name in "ba"]
    assert odds[0] - odds[1] == pytest.approx(np.log(30.5 / 10.5), abs=1e-6)
    assert found["b"].value + found["a"].value == pytest.approx(1)


def test_a_total_victory_is_no_certainty_and_failures_are_left_out():
    found = ranking.rank(met(b__a=[1.0] * 20 + [None] * 5, c__b=[1.0] * 20, c__a=[1.0] * 20))
    assert list(found) == ["c", "b", "a"] and found["c"].value < 1
    assert found["b"].low < 0.5 < found["b"].high and found["c"].n == 40


def test_models_that_never_met_cannot_be_ranked():
    with pytest.raises(utils.CourseError, match="never met"):
        ranking.rank(met(b__a=[1.0, 0.0], d__c=[1.0, 0.0]))


def test_intervals_cover_the_strengths():
    """Four models of known strength, 60 prompts: the strength of each is covered in 95 % or more of
    the samples, and they come out in order."""
    strength = np.array([-0.9, -0.2, 0.3, 0.8])
    truth = 1 / (1 + np.exp(-strength))
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        sample = {}
        for i, j in itertools.combinations(range(4), 2):
            chance = 1 / (1 + np.exp(strength[i] - strength[j]))
            sample[f"{j}__{i}"] = list((rng.random(60) < chance).astype(float))
        found = ranking.rank(met(**sample))
        inside += sum(found[str(i)].low <= truth[i] <= found[str(i)].high for i in range(4))
    assert 370 <= inside <= 396
