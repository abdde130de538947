"""What the compiler's refusals say, as it writes them."""

from jaxchop.preflight.compiled import _OOM, _USED, _too_much

REFUSED = (
  "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.85G) exceeds "
  "available HBM (15.75G)."
)
OTHER = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory. Used 512.5M of 256.0M hbm."


def test_need_and_limit_are_read_from_a_refusal():
  said, other = _OOM.search(REFUSED), _USED.search(OTHER)
  assert said and _too_much(said) == {"needed": round(16.85 * 2**30), "limit": round(15.75 * 2**30)}
  assert other and _too_much(other) == {"needed": round(512.5 * 2**20), "limit": 2**28}
