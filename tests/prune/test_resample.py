"""What another draw of calibration windows might have said."""

import numpy as np
import pytest

from jaxchop.prune.agreement import agreement, usual_count, verdicts
from jaxchop.prune.resample import CONFIDENCE, draws, indistinct, intervals, stability
from jaxchop.prune.score import Score, Scores


def replicates(*means, spread, count=2000):
  return np.random.default_rng(0).normal(means, spread, (count, len(means)))


def test_every_draw_takes_as_many_windows_as_there_are():
  share_RN = draws(7)
  np.testing.assert_allclose(share_RN.sum(axis=1), 1)
  np.testing.assert_allclose(share_RN * 7, np.round(share_RN * 7))
  # A window is left out of a draw with probability (1 - 1/7)^7.
  assert np.mean(share_RN == 0) == pytest.approx((6 / 7) ** 7, abs=0.03)
  np.testing.assert_array_equal(share_RN, draws(7))


def test_an_interval_holds_its_share_of_the_resamplings():
  found = replicates(1.0, 5.0, spread=0.5)
  for layer, (low, high) in enumerate(intervals(found)):
    assert np.mean((found[:, layer] >= low) & (found[:, layer] <= high)) == pytest.approx(CONFIDENCE, abs=0.01)
  # Of a normal distribution: 1.96 deviations to either side.
  assert intervals(found)[1] == pytest.approx((5 - 0.98, 5 + 0.98), abs=0.06)


def test_neighbours_closer_than_their_noise_are_not_told_apart():
  found = replicates(0.0, 0.1, 5.0, spread=0.5)
  assert indistinct(found, (0, 1, 2)) == (True, False)


def test_a_set_is_as_stable_as_its_closest_call():
  found = replicates(0.0, 1.0, 1.0, 9.0, spread=0.2)
  assert stability(found, (0,), (0, 1, 2, 3)) > 0.99
  assert stability(found, (0, 1), (0, 1, 2, 3)) == pytest.approx(0.5, abs=0.05)
  assert stability(found, (1, 2), (1, 2, 3)) > 0.99


def scores():
  wide = tuple(map(tuple, replicates(3.0, 1.0, 2.0, 9.0, spread=0.1, count=200)))
  runs = ((3.0, 1.0, 2.0, 9.0), (4.0, 5.0, 0.5), (6.0, 7.0))
  return Scores(
    criteria={
      "block_influence": Score(name="block_influence", definition="a", per_layer=(3.0, 1.0, 2.0, 9.0), bootstrap=wide),
      "angular": Score(
        name="angular",
        definition="b",
        per_layer=runs[0],
        bootstrap=wide,
        runs=runs,
        run_share=(0.9, 0.8, 0.7),
      ),
      "perplexity_greedy": Score(name="perplexity_greedy", definition="c", per_layer=(2.0, 1.0, 2.0, 2.0)),
    }
  )


def test_a_verdict_is_what_the_criterion_drops_in_its_own_way():
  found = verdicts(scores(), range(4), 2)
  assert found["block_influence"].drop == (1, 2)
  assert found["block_influence"].order == (1, 2, 0, 3)
  assert found["block_influence"].same_set == 1.0
  assert found["angular"].drop == (2, 3)
  assert found["angular"].same_set == 0.8
  # Greedy removal went one round far.
  assert "perplexity_greedy" not in found
  assert verdicts(scores(), range(4), 1)["perplexity_greedy"].drop == (1,)
  assert verdicts(scores(), (0, 3), 1)["block_influence"].drop == (0,)


def test_agreement_is_the_share_of_common_layers():
  found = agreement({"a": (1, 2), "b": (2, 3), "c": ()})
  assert found["a"] == {"a": 1.0, "b": 1 / 3, "c": 0.0}
  assert found["c"]["c"] == 1.0
  assert [usual_count(layers) for layers in (1, 30, 32)] == [1, 6, 6]
