"""What the axes of each parameter are, so that a mesh can be laid over them: the only thing the model says about it.

`width` is the residual stream's; `heads`, `kv_heads`, `mlp` and `vocab` are cut in whole heads, columns and rows; None
is an axis too short to cut.
"""

_AXES: dict[str, tuple[str | None, ...]] = {
  "embedding": ("vocab", "width"),
  "head": ("width", "vocab"),
  "q.kernel": ("width", "heads"),
  "k.kernel": ("width", "kv_heads"),
  "v.kernel": ("width", "kv_heads"),
  "o.kernel": ("heads", "width"),
  "gate.kernel": ("width", "mlp"),
  "up.kernel": ("width", "mlp"),
  "down.kernel": ("mlp", "width"),
  "q.bias": ("heads",),
  "k.bias": ("kv_heads",),
  "v.bias": ("kv_heads",),
  "gate.bias": ("mlp",),
  "up.bias": ("mlp",),
}


def axes(name: str) -> tuple[str | None, ...]:
  """Returns the axes of the parameter with a dotted name; norms and the residual stream's biases are not cut."""
  *_, owner, leaf = ("", *name.split("."))
  if leaf in ("a", "b", "magnitude"):
    # Adapters: the rank is too short to cut.
    inputs, outputs = _AXES[f"{owner}.kernel"]
    return {"a": (inputs, None), "b": (None, outputs), "magnitude": (outputs,)}[leaf]
  if owner == "kernel":
    # Codes of four bits, two of which follow one another on the way into an output; their scales are not cut.
    return _AXES[".".join(name.split(".")[-3:-1])] if leaf == "codes" else (None, None)
  return _AXES.get(f"{owner}.{leaf}", _AXES.get(leaf, (None,)))
