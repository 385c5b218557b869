"""The table of recipes: each row builds on the one before, and its figures are those of scores."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.detector_page import Row, draw, to_markdown
from benchmarks.recipes import STEPS, Recipe, recipes
from trainer.config import notebook_recipe


def test_recipes_build_on_each_other_from_the_notebooks() -> None:
    """The first is the notebook's but for what all share; every step changes something."""
    configs = [recipe.config for recipe in recipes(epochs=24)]
    shared = {"weights": "none", "epochs": 24, "precision": "bf16"}
    expected = notebook_recipe().model_copy(update=shared)
    assert configs[0] == expected
    assert len(set(configs)) == len(STEPS)
    assert {config.epochs for config in configs} == {24}


def test_table_has_the_means_over_seeds_and_what_a_row_gained() -> None:
    """By scikit-learn, for rows of three and two seeds, of which they share one; of clips whose
    sound tells nothing, too. Rows that share no seed are not compared.
    """
    rng = np.random.default_rng(0)
    targets_N = np.arange(80) % 2
    tells_N = np.arange(80) < 60
    rows = [
        Row(recipe, seeds, rng.normal(shift * targets_N[:, None], 1.0, (80, len(seeds))), 90.0)
        for recipe, shift, seeds in zip(
            recipes(epochs=3), (0.5, 1.5), ((0, 1, 2), (2, 5)), strict=False
        )
    ]
    lines = to_markdown(rows, targets_N, tells_N, epochs=3, share_of_fakes=0.5).splitlines()
    means = [
        np.mean([roc_auc_score(targets_N, log_odds_N) for log_odds_N in row.log_odds_NS.T])
        for row in rows
    ]
    first, second, together = (line.split(" | ") for line in lines[-10:-7])
    assert first[3].startswith(f"{means[0]:.3f} (")
    assert second[3].startswith(f"{means[1]:.3f} (")
    shared = [rows[0].log_odds_NS[:, 2], rows[1].log_odds_NS[:, 0]]
    was, now = (roc_auc_score(targets_N, log_odds_N) for log_odds_N in shared)
    assert float(second[7].split()[0]) == pytest.approx(now - was, abs=1e-3)
    assert (first[8], second[8], second[9]) == ("0, 1, 2", "2, 5", "1.5 |")
    averaged_N = rows[1].log_odds_NS.mean(axis=1)
    assert together[3].startswith(f"{roc_auc_score(targets_N, averaged_N):.3f} (")
    alone = roc_auc_score(targets_N[tells_N], averaged_N[tells_N])
    assert together[6].startswith(f"{alone:.3f} (")
    rows[1] = replace(rows[1], seeds=(3, 5))
    lines = to_markdown(rows, targets_N, tells_N, epochs=3, share_of_fakes=0.5).splitlines()
    assert lines[-9].split(" | ")[7] == ""


def test_temperature_makes_sure_scores_honest() -> None:
    """Log-odds that are ten times too large: all but AUC get better."""
    rng = np.random.default_rng(0)
    targets_N = np.arange(200) % 2
    log_odds_NS = 20 * rng.normal(2 * targets_N[:, None] - 1, 1.0, (200, 2))
    row = Row(next(recipes(epochs=3)), (0, 1), log_odds_NS, 1.0)
    page = to_markdown([row], targets_N, targets_N < 2, epochs=3, share_of_fakes=0.5)
    before, after = page.splitlines()[-2:]
    changes = [
        [float(cell.split()[0]) for cell in line.strip("| ").split(" | ")[1:]]
        for line in (before, after)
    ]
    for was, now in list(zip(*changes, strict=True))[:3]:
        assert now < 0.7 * was
    assert changes[1][3] == pytest.approx(changes[0][3], abs=0.01)
    shifted = replace(row, log_odds_NS=log_odds_NS + np.log(3))
    page = to_markdown([shifted], targets_N, targets_N < 2, epochs=3, share_of_fakes=0.75)
    assert page.splitlines()[-2].split(" | ")[2] == before.split(" | ")[2]


def test_sound_and_picture_are_averaged_with_each_other() -> None:
    """The last rows that others build on: of sound, of both, and all their seeds together."""
    rng = np.random.default_rng(0)
    targets_N = np.arange(80) % 2
    of_sound = [x for x in recipes(epochs=3) if x.config.modality == "audio" and is_built_on(x)]
    chosen = [*of_sound[-2:], *list(recipes(epochs=3))[-2:]]
    rows = [Row(x, (0, 1), rng.normal(targets_N[:, None], 1.0, (80, 2)), 90.0) for x in chosen]
    lines = to_markdown(rows, targets_N, targets_N < 2, epochs=3, share_of_fakes=0.5).splitlines()
    averages = [line.split(" | ") for line in lines if "all seeds, averaged" in line]
    sound, both = chosen[1].number, chosen[3].number
    assert [cells[1] for cells in averages] == [f"{sound}", f"{both}", f"{sound} and {both}"]
    columns = [rows[1].log_odds_NS, rows[3].log_odds_NS]
    expected = roc_auc_score(targets_N, np.concatenate(columns, axis=1).mean(axis=1))
    assert averages[2][3].startswith(f"{expected:.3f} (")


def is_built_on(recipe: Recipe) -> bool:
    return STEPS[recipe.number - 1].is_built_on


def test_picture_shows_the_scores() -> None:
    """Equal rows are drawn equally, byte for byte; other scores give another picture."""
    targets_N = np.arange(80) % 2
    log_odds_NS = np.random.default_rng(0).normal(size=(80, 1))
    recipe = next(recipes(epochs=3))
    first, again, other = (
        draw([Row(recipe, (0,), x, 1.0)], targets_N)
        for x in (log_odds_NS, log_odds_NS, -log_odds_NS)
    )
    assert first == again != other
    assert first.count(b"LineCollection") == other.count(b"LineCollection") > 0
