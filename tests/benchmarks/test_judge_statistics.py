"""The simulation of the judge's statistics, in small: what it promises is what it prints."""

import pytest

from benchmarks import judge_statistics


def test_prompts_needed_reach_their_power_and_looking_again_does_not_keep_its_level(capsys):
    assert judge_statistics.powers(draws=300) and judge_statistics.looking_again(draws=300)
    again = capsys.readouterr().out.splitlines()[-1]
    assert float(again.split("|")[2].strip(" %")) > 12


@pytest.mark.slow
def test_every_promise_is_kept(capsys):
    assert judge_statistics.main() == 0
    assert "corrected win rate, 168 labelled pairs | 60" in capsys.readouterr().out
