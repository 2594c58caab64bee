"""Questions about pictures whose right answers are known."""
