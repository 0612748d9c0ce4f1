"""Damages drawn at random end with a sentence or with the results of the undamaged study."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_campaign import Campaign, make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("campaign") / "study")


def hold_to_the_rule(study: Path, work: Path, seed: int, damages: int) -> None:
    campaign = Campaign(study, work, seed)
    wrong = [case for case in (campaign.case() for _ in range(damages)) if case.fault]
    assert not wrong, f"seed {seed}\n" + "\n".join(map(str, wrong))


@pytest.mark.slow
def test_five_damages_end_well(study: Path, tmp_path: Path) -> None:
    hold_to_the_rule(study, tmp_path, seed=0, damages=5)


@pytest.mark.slow
def test_five_hundred_damages_end_well(study: Path, tmp_path: Path) -> None:
    import random

    hold_to_the_rule(study, tmp_path, seed=random.SystemRandom().randrange(2**32), damages=500)
