"""From hidden states to a relevance map, a confidence and a decision."""
