"""What the papers measured, and what is left of it within limits."""

from jaxchop.evaluate.speed_protocols import OWN, PROTOCOLS


def test_sleb_reads_one_long_prompt_and_writes_many_short_texts():
  (prompt,), (writing,) = (list(grid.points()) for grid in PROTOCOLS["sleb"].grids)
  assert prompt == {"batch": 1, "prompt_tokens": 2048, "new_tokens": 0, "repeats": 50, "warm_up": 1}
  assert writing == {"batch": 64, "prompt_tokens": 64, "new_tokens": 128, "repeats": 10, "warm_up": 1}


def test_shortened_llama_writes_two_lengths_at_seven_batch_sizes():
  (grid,) = PROTOCOLS["shortened_llama"].grids
  points = [(point["batch"], point["new_tokens"]) for point in grid.points()]
  assert points == [(batch, new) for batch in (1, 8, 16, 32, 64, 128, 256) for new in (128, 512)]
  assert (grid.repeats, grid.warm_up, grid.prompt_tokens) == (20, 10, (12,))


def test_limits_make_nothing_larger_and_no_point_twice():
  (grid,) = PROTOCOLS["shortened_llama"].within(batch=[4, 2], new_tokens=[9999], repeats=3, warm_up=None).grids
  assert (grid.batch, grid.new_tokens, grid.repeats, grid.warm_up) == ((1, 4), (128, 512), 3, 10)
  prompt, writing = PROTOCOLS["sleb"].within(new_tokens=[4]).grids
  assert prompt.new_tokens == (0,) and writing.new_tokens == (4,)


def test_ones_own_is_one_point():
  assert len(list(OWN.points())) == 1
