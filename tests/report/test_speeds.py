"""Speeds in words say what was gained, of what, and whether a drafted text is the target's own."""

from jaxchop.report import speeds

GAIN = {
  "removed": 6,
  "decode": 1.25,
  "ideal_by_layers": 1.25,
  "ideal_by_bytes": 1.19,
  "saved_per_layer": 0.0333,
  "of_layers": 1.0,
  "of_bytes": 1.25,
  "layer_seconds": 0.001,
  "fixed_seconds": 0.0,
}


def row(path, seconds, gain=None, **changes):
  spread = {"median": seconds, "low": 0.9 * seconds, "high": 1.2 * seconds}
  return {
    "path": path,
    "layers": 4,
    "batch": 1,
    "prompt_tokens": 8,
    "new_tokens": 2,
    "prefill_tokens_per_second": 8 / seconds,
    "decode_tokens_per_second": 2 / seconds,
    "prefill": spread,
    "decode": spread,
    "latency": spread,
    "memory_bytes": 5_000_000,
    "gain": gain,
    "protocol": "as ever",
  } | changes


def test_a_row_is_held_against_the_first_model_at_its_own_point():
  first, second, other = row("a", 2.0), row("b", 1.0), row("a", 1.0, batch=2)
  assert speeds.point(first) == speeds.point(second) == "1 x 8 + 2" != speeds.point(other)
  shown = speeds.cells(second, first)
  assert "2.00x, 2.00x" in [cell.replace("\u00a0", " ") for cell in shown]
  assert "2.0 ± 20 %" in [cell.replace("\u00a0", " ") for cell in shown]
  prompt = row("a", 2.0, decode=None, new_tokens=0)
  assert speeds.cells(prompt, prompt)[3] == "-"


def test_the_gain_is_told_beside_both_ideals_and_each_protocol_once():
  told = list(
    speeds.in_words(
      {"models": [row("a", 2.0), row("b", 1.0, GAIN)], "memory": {"bytes": 7, "of": "this"}, "paper": "As a paper"}
    )
  )
  assert "6 layers fewer decode 1.25x as fast (ideal 1.19x by bytes, 1.25x by layers)" in told[0]
  assert "each saves 3.33 % of a token's time" in told[0]
  assert told.count("as ever") == 1 and "As a paper" in told and any("by bytes: a token" in line for line in told)


def drafted(differing):
  gain = {"median": 1.3, "low": 1.1, "high": 1.4}
  one = {"drafted": 2, "accepted": 1.5, "tokens_per_pass": 2.5, "tokens_per_second": 9.0, "rounds": (1, 0, 3)}
  rows = [one | {"gain": gain, "differing": differing}]
  about = {"draft": "d", "target": "t", "target_tokens_per_second": 7.0, "protocol": "so"}
  return about | {"lengths": rows, "memory": {"bytes": 7, "of": "this"}}


def test_a_drafters_row_and_words_say_whether_the_text_is_the_targets():
  assert speeds.draft_cells(drafted({})["lengths"][0])[-2:] == ["1.30x (1.10 to 1.40)", "1 0 3"]
  assert any("every text is the target's" in line for line in speeds.draft_in_words(drafted({})))
  assert any(
    "NOT the target's greedy text with 2 drafted: prompt 1 from token 5" in line
    for line in speeds.draft_in_words(drafted({1: 5}))
  )
