"""Scores on eight devices are those on one."""

import json
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from flax import nnx
from jaxchop.config import ScoreConfig
from jaxchop.model.config import LlamaConfig
from jaxchop.model.llama import Llama
from jaxchop.prune.score import score
config = LlamaConfig(
  vocab_size=32, width=16, mlp_width=24, heads=4, kv_heads=2, head_dim=4, norm_eps=1e-5, max_positions=64
)
ids_NT = np.random.default_rng(0).integers(32, size=(11, 12), dtype=np.int32)
names = ["block_influence", "cka", "taylor", "perplexity", "perplexity_greedy"]
settings = ScoreConfig(batch_size=8, greedy_rounds=2)
found = score(Llama(config, 4, rngs=nnx.Rngs(0)), ids_NT, names, settings)
assert jax.local_device_count() == int(sys.argv[1])
print(json.dumps({name: found[name].per_layer for name in names}))
"""


@pytest.mark.slow
def test_windows_are_spread_over_all_devices_and_the_scores_stay():
  answers = []
  for devices in ("1", "8"):
    done = subprocess.run([sys.executable, "-c", PROGRAM, devices], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers.append(json.loads(done.stdout.splitlines()[-1]))
  for name, expected in answers[0].items():
    np.testing.assert_allclose(answers[1][name], expected, rtol=1e-4, err_msg=name)
