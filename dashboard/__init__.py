"""The reviewers' dashboard: what flows by, which answers to look at, and the picture, map and verdict of each.

It reads the store and writes reviews, nothing else. `serve` starts it; importing this package needs no Streamlit.
"""
