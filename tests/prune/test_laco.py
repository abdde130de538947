"""LaCo's search against a plain loop that rebuilds the model for every try, one unpadded sentence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxchop.prune.laco
from jaxchop.errors import JaxchopError, UsageError
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import positions
from jaxchop.model.rope import rotation
from jaxchop.model.tree import abstract, flatten, unflatten
from jaxchop.prune.laco import LacoConfig, laco, laco_to
from jaxchop.prune.surgery import keep_layers

CONFIG = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
LAYERS = 8
IDS_NT = np.random.default_rng(0).integers(32, size=(3, 7), dtype=np.int32)
LENGTHS = (7, 4, 6)
MASK_NT = np.arange(7) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def model():
  """Weights large enough that a merge is felt, norms that differ from layer to layer."""
  rng = np.random.default_rng(1)
  like = abstract(CONFIG, LAYERS)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(*((1.0, 0.1) if leaf.ndim == 1 else (0.0, 0.15)), leaf.shape), jnp.float32),
    like,
  )


run = jax.jit(lambda block, x_BTD, turn: block(x_BTD, turn))


class Plain:
  """The loop in numpy on lists of layers, as {name: weights}; it knows nothing of stacks, masks and padding."""

  def __init__(self, model):
    self.model = model
    self.layers = [{name: np.asarray(leaf) for name, leaf in flatten(layer).items()} for layer in model.layers]
    self.wanted, self.known = self.states(self.layers), {}

  def states(self, layers):
    blocks = [unflatten(self.model.layers[0], weights) for weights in layers]
    found = []
    for ids_T, length in zip(IDS_NT, LENGTHS, strict=True):
      ids_1T = jnp.asarray(ids_T[None, :length])
      x_1TD, turn = self.model.embed(ids_1T), rotation(CONFIG, positions(ids_1T))
      for block in blocks:
        x_1TD = run(block, x_1TD, turn)
      found.append(np.asarray(self.model.norm(x_1TD), np.float64).ravel())
    return found

  def collapsed(self, layers, at, size, mode):
    base, group = layers[at], layers[at + 1 : at + 1 + size]
    new = dict(base)
    for name in base:
      if "norm" not in name:
        new[name] = group[-1][name] if mode == "telescope" else base[name] + sum(g[name] - base[name] for g in group)
    return [*layers[:at], new, *layers[at + 1 + size :]]

  def similarity(self, layers, state):
    if state not in self.known:
      found = self.states(layers)
      self.known[state] = np.mean(
        [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(self.wanted, found, strict=True)]
      )
    return self.known[state]

  def search(self, config, threshold):
    """Returns the merges as (base, absorbed) and the tries as (base, similarity, kept), all by original index."""
    layers, names, merges, tries = self.layers, list(range(LAYERS)), [], []
    at = (LAYERS - 1 if config.highest is None else config.highest) - config.layers_per_merge
    while at >= config.lowest:
      size = min(config.layers_per_merge - 1, len(layers) - at - 1)
      candidate = self.collapsed(layers, at, size, config.mode)
      merge = names[at], tuple(names[at + 1 : at + 1 + size])
      value = self.similarity(candidate, (config.mode, *merges, merge))
      tries.append((names[at], value, value > threshold))
      if value > threshold:
        layers, merges = candidate, [*merges, merge]
        del names[at + 1 : at + 1 + size]
        at -= config.interval
        if at >= len(layers):
          at = len(layers) - 1 - config.layers_per_merge
      else:
        at -= 1
    return merges, tries, layers


@pytest.fixture(scope="module")
def plain(model):
  return Plain(model)


def as_pairs(merges):
  return [(merge.into, merge.layers) for merge in merges]


# Thresholds between which the tries of this model lie, so that some stay and some do not.
@pytest.mark.parametrize(
  "config",
  [
    LacoConfig(layers_per_merge=3, interval=1, threshold=0.5, mode="telescope"),
    LacoConfig(layers_per_merge=3, interval=2, threshold=0.3, mode="rdsc"),
    LacoConfig(layers_per_merge=2, interval=1, threshold=0.6, mode="telescope", lowest=2, highest=LAYERS),
    LacoConfig(layers_per_merge=2, interval=3, threshold=0.842, mode="rdsc", highest=6),
  ],
  ids=str,
)
def test_merges_tries_and_weights_are_those_of_a_plain_loop(model, plain, config):
  merges, tries, layers = plain.search(config, config.threshold)
  found = laco(model, IDS_NT, MASK_NT, config, batch_size=2)
  assert {kept for *_, kept in tries} == {True, False}
  assert as_pairs(found.merges) == merges
  assert [(trial.layer, trial.committed) for trial in found.trials] == [(base, kept) for base, _, kept in tries]
  np.testing.assert_allclose([trial.similarity for trial in found.trials], [value for _, value, _ in tries], atol=1e-5)
  absorbed = {layer for _, group in merges for layer in group}
  assert found.keep == tuple(layer for layer in range(LAYERS) if layer not in absorbed)
  for block, weights in zip(found.model.layers, layers, strict=True):
    for name, leaf in flatten(block).items():
      np.testing.assert_allclose(leaf, weights[name], atol=1e-5, err_msg=name)


def test_a_merged_block_can_be_absorbed_again(model):
  config = LacoConfig(layers_per_merge=3, interval=1, threshold=-1.0)
  assert as_pairs(laco(model, IDS_NT, MASK_NT, config).merges) == [
    (4, (5, 6)),
    (3, (4, 7)),
    (2, (3,)),
    (1, (2,)),
    (0, (1,)),
  ]


@pytest.mark.parametrize("mode", ["telescope", "rdsc"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_count_is_met_exactly_by_the_highest_threshold_that_reaches_it(model, plain, mode, count):
  config = LacoConfig(layers_per_merge=3, interval=2, mode=mode)
  found = laco_to(model, IDS_NT, MASK_NT, config, count)
  for threshold in np.linspace(1, -1, 4001):
    merges, tries, _ = plain.search(config, threshold)
    if sum(len(group) for _, group in merges) >= count:
      break
  left, expected = count, []
  for base, group in merges:
    expected += [(base, group[:left])] if left else []
    left -= len(group[:left])
  assert as_pairs(found.merges) == expected
  assert len(found.model.layers) == len(found.keep) == LAYERS - count
  refused = [trial.similarity for trial in found.trials if not trial.committed]
  assert all(value <= threshold + 1e-3 for value in refused)
  assert [t.layer for t in found.trials] == [base for base, *_ in tries][: len(found.trials)]


def test_a_last_merge_that_is_cut_is_measured_as_it_is(model, plain):
  config = LacoConfig(layers_per_merge=3, interval=2)
  found = laco_to(model, IDS_NT, MASK_NT, config, 1)
  ((base, absorbed),) = as_pairs(found.merges)
  value = plain.similarity(plain.collapsed(plain.layers, base, 1, "telescope"), ("cut", base))
  assert absorbed == (base + 1,)
  assert found.trials[-1] == (base, pytest.approx(value, abs=1e-5), True)


def test_no_layers_fewer_is_the_model_as_it_is(model):
  found = laco_to(model, IDS_NT, MASK_NT, LacoConfig(layers_per_merge=3), 0)
  assert (found.keep, found.merges, found.trials) == (tuple(range(LAYERS)), (), ())


def test_a_count_out_of_reach_is_refused_with_the_count_that_is_not(model):
  config = LacoConfig(layers_per_merge=2, interval=3)
  most = len(laco(model, IDS_NT, MASK_NT, LacoConfig(layers_per_merge=2, interval=3, threshold=-1.0)).merges)
  assert len(laco_to(model, IDS_NT, MASK_NT, config, most).keep) == LAYERS - most
  with pytest.raises(UsageError, match=f"{LAYERS - 1} layers cannot go: at most {most} do"):
    laco_to(model, IDS_NT, MASK_NT, config, LAYERS - 1)


@pytest.mark.parametrize("count", [-1, LAYERS])
def test_a_count_outside_the_model_is_refused(model, count):
  with pytest.raises(UsageError, match=f"{count} of {LAYERS}"):
    laco_to(model, IDS_NT, MASK_NT, LacoConfig(), count)


def test_all_candidates_run_in_one_compiled_program(model, monkeypatch):
  traced = []
  rotation = jaxchop.prune.laco.rotation
  monkeypatch.setattr(jaxchop.prune.laco, "rotation", lambda *args: traced.append(args) or rotation(*args))
  # A shape of its own, which no other test has compiled.
  found = laco(model, IDS_NT[:, :5], np.ones((3, 5), bool), LacoConfig(layers_per_merge=4, interval=1, threshold=0.7))
  assert len(found.trials) > 2
  assert len(traced) == 1


def test_a_state_is_measured_once(model, monkeypatch):
  runs = []
  last_hidden = jaxchop.prune.laco._last_hidden
  monkeypatch.setattr(
    jaxchop.prune.laco,
    "_last_hidden",
    lambda *args: runs.append((int(args[3]), *np.flatnonzero(args[4]))) or last_hidden(*args),
  )
  laco_to(model, IDS_NT, MASK_NT, LacoConfig(layers_per_merge=2, interval=1), 4)
  # Pairs only: which layers are alive and which one was merged last say all of the state but its order.
  assert len(runs) > 10
  assert runs.count((0, *range(LAYERS))) == 1
  first_tries = [run for run in runs[1:] if len(run) == LAYERS]
  assert len(set(first_tries)) == len(first_tries)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"layers_per_merge": 1}, "merging.layers_per_merge is 1"),
    ({"interval": 0}, "merging.interval is 0"),
    ({"threshold": 1.5}, "merging.threshold is 1.5"),
    ({"highest": 9}, "merging.highest is 9"),
    ({"lowest": -1}, "merging.lowest is -1"),
    ({"lowest": 4}, r"merging.lowest is 4; .* 0\.\.3"),
  ],
)
def test_settings_that_do_not_fit_the_model_are_refused_by_name(model, settings, said):
  with pytest.raises(UsageError, match=said):
    laco(model, IDS_NT, MASK_NT, LacoConfig(**settings))


def test_a_broken_model_is_refused(model):
  broken = keep_layers(model, range(LAYERS))
  broken.norm.scale[...] = jnp.full(CONFIG.width, jnp.nan)
  with pytest.raises(JaxchopError, match="not finite"):
    laco(broken, IDS_NT, MASK_NT, LacoConfig())


def test_a_merge_that_overflows_is_never_kept(model):
  huge = keep_layers(model, range(LAYERS))
  for layer in (3, 4):
    # Alone each is finite; their sum less the base's is not.
    down = huge.layers[layer].mlp.down
    down.kernel[...] = jnp.full_like(down.kernel[...], 3e38)
    huge.layers[layer].mlp.up.kernel[...] = jnp.zeros_like(huge.layers[layer].mlp.up.kernel[...])
  config = LacoConfig(layers_per_merge=3, highest=5, lowest=2, threshold=-1.0, mode="rdsc")
  assert laco(huge, IDS_NT, MASK_NT, config).trials == ((2, -1.0, False),)
