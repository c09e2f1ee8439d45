"""How good an answer is: metrics, splits, scores, figures."""
