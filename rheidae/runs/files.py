"""Names of the files of a run folder."""

from __future__ import annotations

DIGESTED = (
    "model.yaml", "train_parms.yaml", "weights.safetensors", "error_scale.safetensors", "history.json", "rows.npz",
)  # fmt: skip
"""What a model is made of; ``run.json`` holds the digests."""

FILES = (*DIGESTED, "run.json", "state.pt", "last.safetensors", "history.jsonl", "history.csv", "MODEL_CARD.md")
"""All that a run writes into its folder, and no other command may."""
